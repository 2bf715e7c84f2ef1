"""Locks, semaphores, conditions, events and barriers between the processes of one machine.

They have multiprocessing's API, and are kept by a daemon that notices when a process dies: what it
held is granted to the next waiter at once, and that owner is told. Import `syncd.multiprocessing`
in place of multiprocessing; `install()` supplies semaphores on platforms that have none.
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
