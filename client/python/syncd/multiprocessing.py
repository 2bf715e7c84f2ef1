"""multiprocessing with syncd's locks: `import syncd.multiprocessing as multiprocessing`.

Process, Value, Manager, Pipe and the rest are the standard ones; Lock, RLock, Semaphore,
BoundedSemaphore, Condition, Event and Barrier are syncd's, and so are the locks inside Queue, Pool
and Value.
"""

import multiprocessing as _standard
import multiprocessing.context
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

from . import synchronize

__all__: List[str] = []


class _Primitives:
    """The methods that replace those of a standard context."""

    #: The namespace of its objects; None: `$SYNCD_NAMESPACE`.
    _namespace: Optional[str] = None

    def get_context(self, method: Optional[str] = None) -> Any:
        """This context, or that of a start method, in the same namespace."""
        return self if method is None else _context(method, self._namespace)

    def Lock(self, *, name: Optional[str] = None) -> synchronize.Lock:
        """A lock that isn't recursive."""
        return synchronize.Lock(name=name, namespace=self._namespace)

    def RLock(self, *, name: Optional[str] = None) -> synchronize.RLock:
        """A recursive lock."""
        return synchronize.RLock(name=name, namespace=self._namespace)

    def Semaphore(self, value: int = 1, *, name: Optional[str] = None) -> synchronize.Semaphore:
        """A semaphore."""
        return synchronize.Semaphore(value, name=name, namespace=self._namespace)

    def BoundedSemaphore(
        self, value: int = 1, *, name: Optional[str] = None
    ) -> synchronize.BoundedSemaphore:
        """A semaphore that never has more permits free than initially."""
        return synchronize.BoundedSemaphore(value, name=name, namespace=self._namespace)

    def Condition(
        self,
        lock: Union[synchronize.Lock, synchronize.RLock, None] = None,
        *,
        name: Optional[str] = None,
    ) -> synchronize.Condition:
        """A condition variable."""
        namespace = self._namespace if lock is None else None
        return synchronize.Condition(lock, name=name, namespace=namespace)

    def Event(self, *, name: Optional[str] = None) -> synchronize.Event:
        """An event."""
        return synchronize.Event(name=name, namespace=self._namespace)

    def Barrier(
        self,
        parties: int,
        action: Optional[Callable[[], object]] = None,
        timeout: Optional[float] = None,
        *,
        name: Optional[str] = None,
    ) -> synchronize.Barrier:
        """A barrier."""
        namespace = self._namespace
        return synchronize.Barrier(parties, action, timeout, name=name, namespace=namespace)


_contexts: Dict[Tuple[str, Optional[str]], Any] = {}


def _context(method: str, namespace: Optional[str]) -> Any:
    """The standard context of a start method, with syncd's primitives and the same class name."""
    standard = type(_standard.get_context(method))
    if (method, namespace) not in _contexts:
        contents = {"_namespace": namespace, "__module__": __name__}
        made = type(standard.__name__, (_Primitives, standard), contents)()
        _contexts[method, namespace] = made
    return _contexts[method, namespace]


class DefaultContext(_Primitives, multiprocessing.context.DefaultContext):  # type: ignore[misc]
    """The default context; the start method is the standard module's."""

    def __init__(self) -> None:
        """Doesn't call the standard initializer: the state is the standard module's."""

    def get_context(self, method: Optional[str] = None, *, namespace: Optional[str] = None) -> Any:
        """The context of a start method; its objects are in `namespace`, by default
        `$SYNCD_NAMESPACE`."""
        return _context(method or _standard.get_start_method(), namespace)

    def set_start_method(self, method: Optional[str], force: bool = False) -> None:
        _standard.set_start_method(method, force)

    def get_start_method(self, allow_none: bool = False) -> Any:
        return _standard.get_start_method(allow_none)


_default = DefaultContext()

__all__ += [name for name in dir(_default) if not name.startswith("_")]
globals().update((name, getattr(_default, name)) for name in __all__)


def __getattr__(name: str) -> Any:
    return getattr(_standard, name)
