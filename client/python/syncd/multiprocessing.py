"""multiprocessing with syncd's locks: `import syncd.multiprocessing as multiprocessing`.

Process, Value, Manager, Pipe and the rest are the standard ones; Lock, RLock, Semaphore,
BoundedSemaphore, Condition, Event and Barrier are syncd's, and so is what Queue, Pool and Value
are guarded by.

Never here: the locks themselves, or a change to the standard module.
"""

import multiprocessing as _standard
import multiprocessing.context
from typing import Any, Callable, Dict, List, Optional, Union

from . import synchronize

__all__: List[str] = []


class _Primitives:
    """What a standard context is given."""

    def Lock(self, *, name: Optional[str] = None) -> synchronize.Lock:
        """A lock that isn't recursive."""
        return synchronize.Lock(name=name)

    def RLock(self, *, name: Optional[str] = None) -> synchronize.RLock:
        """A recursive lock."""
        return synchronize.RLock(name=name)

    def Semaphore(self, value: int = 1, *, name: Optional[str] = None) -> synchronize.Semaphore:
        """A semaphore."""
        return synchronize.Semaphore(value, name=name)

    def BoundedSemaphore(
        self, value: int = 1, *, name: Optional[str] = None
    ) -> synchronize.BoundedSemaphore:
        """A semaphore that never has more permits free than at first."""
        return synchronize.BoundedSemaphore(value, name=name)

    def Condition(
        self,
        lock: Union[synchronize.Lock, synchronize.RLock, None] = None,
        *,
        name: Optional[str] = None,
    ) -> synchronize.Condition:
        """A condition variable."""
        return synchronize.Condition(lock, name=name)

    def Event(self, *, name: Optional[str] = None) -> synchronize.Event:
        """An event."""
        return synchronize.Event(name=name)

    def Barrier(
        self,
        parties: int,
        action: Optional[Callable[[], object]] = None,
        timeout: Optional[float] = None,
        *,
        name: Optional[str] = None,
    ) -> synchronize.Barrier:
        """A barrier."""
        return synchronize.Barrier(parties, action, timeout, name=name)


_contexts: Dict[str, Any] = {}


def _context(method: str) -> Any:
    """The standard context of a start method, with these primitives."""
    standard = _standard.get_context(method)
    if method not in _contexts:
        _contexts[method] = type("Context", (_Primitives, type(standard)), {})()
    return _contexts[method]


class _DefaultContext(_Primitives, multiprocessing.context.DefaultContext):  # type: ignore[misc]
    """Follows the standard module's choice of a start method, and makes it."""

    def __init__(self) -> None:
        """Has nothing of its own."""

    def get_context(self, method: Optional[str] = None) -> Any:
        return _context(method or _standard.get_start_method())

    def set_start_method(self, method: Optional[str], force: bool = False) -> None:
        _standard.set_start_method(method, force)

    def get_start_method(self, allow_none: bool = False) -> Any:
        return _standard.get_start_method(allow_none)


_default = _DefaultContext()

__all__ += [name for name in dir(_default) if not name.startswith("_")]
globals().update((name, getattr(_default, name)) for name in __all__)


def __getattr__(name: str) -> Any:
    return getattr(_standard, name)
