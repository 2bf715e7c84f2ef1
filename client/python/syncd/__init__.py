"""Locks, semaphores, conditions, events and barriers between the processes of one machine.

They are multiprocessing's, kept by a daemon that sees its clients die: what a dead process held
is granted on at once, and the next owner is told. `syncd.multiprocessing` is the module to import
in multiprocessing's place, and `install()` supplies the semaphores of a platform that has none.

Never here: the classes, which are in `syncd.synchronize`.
"""

import atexit

from . import _native
from ._install import install
from ._report import (
    AbandonedLockWarning,
    Abandonment,
    Error,
    Holder,
    LockTimeout,
    NoDaemon,
    SessionLost,
)
from .synchronize import (
    Barrier,
    BoundedSemaphore,
    Condition,
    Event,
    Lock,
    RLock,
    Semaphore,
)

__all__ = [
    "AbandonedLockWarning",
    "Abandonment",
    "Barrier",
    "BoundedSemaphore",
    "Condition",
    "Error",
    "Event",
    "Holder",
    "Lock",
    "LockTimeout",
    "NoDaemon",
    "RLock",
    "Semaphore",
    "SessionLost",
    "install",
]

atexit.register(_native.at_exit)
