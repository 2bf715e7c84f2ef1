"""Holders, abandonments, exceptions and the warning, as the daemon reports them.
"""

import os
import shutil
import sys
import warnings
from typing import List, NamedTuple, Optional, Sequence


class Holder(NamedTuple):
    """A holder of a lock or a permit."""

    #: Process id.
    pid: int
    #: The first words of its command line.
    command: str
    #: For how many seconds it has held the object.
    held: float
    #: The fencing token of its hold.
    fencing_token: int

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.command}) for {self.held:.3g} s"


class Abandonment(NamedTuple):
    """A hold that ended without a release, so that what it guarded may be half changed."""

    #: Process id.
    pid: int
    #: The first words of its command line.
    command: str
    #: Why the hold ended, for example "died".
    cause: str
    #: For how many seconds the object had been held.
    held: float
    #: How many seconds ago the hold ended.
    ago: float
    #: The fencing token of the abandoned hold.
    fencing_token: int

    def __str__(self) -> str:
        return (
            f"abandoned by pid {self.pid} ({self.command}), "
            f"which {self.cause} {self.ago:.3g} s ago after holding it {self.held:.3g} s"
        )


class AbandonedLockWarning(UserWarning):
    """The last owner ended without a release. The lock is acquired nevertheless."""

    def __init__(self, abandonment: Abandonment, name: Optional[str] = None) -> None:
        self.abandonment = abandonment
        super().__init__(f"{name or 'a lock'} was {abandonment}")


class Error(Exception):
    """An error that multiprocessing has no exception for."""


class NoDaemon(Error, OSError):
    """There is no daemon, and none could be started."""


class SessionLost(Error):
    """The session with the daemon is lost, and with it everything that this process held."""


class LockTimeout(Error, TimeoutError):
    """The time-out expired."""

    def __init__(self, text: str, holders: Sequence[Holder] = ()) -> None:
        super().__init__(text)
        #: Who held the object then, oldest first.
        self.holders = tuple(holders)


def warn(abandonment: Abandonment, name: Optional[str]) -> None:
    """Warns the caller that acquired an abandoned lock, at its line of code."""
    here = os.path.dirname(__file__)
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and os.path.dirname(frame.f_code.co_filename) == here:
        frame, level = frame.f_back, level + 1
    warnings.warn(AbandonedLockWarning(abandonment, name), stacklevel=level)


def daemon_command() -> Optional[List[str]]:
    """The command that starts a daemon; None if the client finds an installed one by itself."""
    if os.environ.get("SYNCD_DAEMON") or shutil.which("syncd"):
        return None
    # -I and -S: the user's site and environment settings are meant for other programs.
    path = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    code = f"import sys; sys.path.append({path!r}); from syncd.__main__ import main; main()"
    return [sys.executable, "-I", "-S", "-c", code]
