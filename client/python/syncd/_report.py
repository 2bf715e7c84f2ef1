"""What the daemon reports: of processes, and of what went wrong.
"""

import os
import shutil
import sys
import warnings
from typing import List, NamedTuple, Optional, Sequence


class Holder(NamedTuple):
    """Somebody who holds a lock or a permit."""

    #: Process id.
    pid: int
    #: The first words of its command line.
    command: str
    #: For how many seconds it has held.
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
    #: What became of it, as in "died".
    cause: str
    #: For how many seconds it had held.
    held: float
    #: How many seconds ago it lost it.
    ago: float
    #: The fencing token of the abandoned hold.
    fencing_token: int

    def __str__(self) -> str:
        return (
            f"abandoned by pid {self.pid} ({self.command}), "
            f"which {self.cause} {self.ago:.3g} s ago after holding it {self.held:.3g} s"
        )


class AbandonedLockWarning(UserWarning):
    """The last owner went without a release. The lock is acquired all the same."""

    def __init__(self, abandonment: Abandonment, name: Optional[str] = None) -> None:
        self.abandonment = abandonment
        super().__init__(f"{name or 'a lock'} was {abandonment}")


class Error(Exception):
    """Whatever goes wrong that multiprocessing has no exception for."""


class NoDaemon(Error, OSError):
    """There is no daemon, and none could be started."""


class SessionLost(Error):
    """The session with the daemon is over, and with it all that this process held."""


class LockTimeout(Error, TimeoutError):
    """The time was over."""

    def __init__(self, text: str, holders: Sequence[Holder] = ()) -> None:
        super().__init__(text)
        #: Who held it then, oldest first.
        self.holders = tuple(holders)


def warn(abandonment: Abandonment, name: Optional[str]) -> None:
    """Warns whoever has just acquired what was abandoned."""
    here = os.path.dirname(__file__)
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and os.path.dirname(frame.f_code.co_filename) == here:
        frame, level = frame.f_back, level + 1
    warnings.warn(AbandonedLockWarning(abandonment, name), stacklevel=level)


def daemon_command() -> Optional[List[str]]:
    """What starts a daemon; None where one is installed, and found without our help."""
    if os.environ.get("SYNCD_DAEMON") or shutil.which("syncd"):
        return None
    # Without site and the user's environment: what they set up is for their own programs.
    path = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    code = f"import sys; sys.path.append({path!r}); from syncd.__main__ import main; main()"
    return [sys.executable, "-I", "-S", "-c", code]
