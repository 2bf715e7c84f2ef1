"""multiprocessing's locks, with owners: what a dead process held is released, and the next owner
is told.

Every object can be pickled and sent to any process of the same user; a named object can also be
got by its name. Threads of one process exclude each other as processes do.
"""

import contextlib
import multiprocessing.process
import multiprocessing.util
import operator
import sys
import threading
import time
from typing import Any, Callable, Iterator, List, Optional, Tuple, Type, TypeVar, Union

from . import _native
from ._report import Abandonment, Error, Holder

__all__ = [
    "Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "Semaphore",
]  # fmt: skip

T = TypeVar("T")
P = TypeVar("P", bound="_Proxy")


class _Proxy:
    """The common part: name, token, pickling, fork."""

    _object: Union[_native.SemLock, _native.Condition, _native.Event, _native.Barrier]

    def _enrol(self) -> None:
        multiprocessing.util.register_after_fork(self, _Proxy._after_fork)

    def _after_fork(self) -> None:
        # Attaches now, since the parent may detach before this process first uses the object. If
        # that fails, the first use raises the error.
        with contextlib.suppress(Error, OSError):
            self._object._after_fork()

    @property
    def name(self) -> Optional[str]:
        """The object's name, or None."""
        return self._object.label

    @property
    def token(self) -> str:
        """The token, one line of text, by which another process of the user can `attach`."""
        return self._object.token

    @classmethod
    def attach(cls: Type[P], token: str) -> P:
        """Attaches to the object that a token names."""
        raise NotImplementedError

    def __reduce__(self) -> Tuple[Any, ...]:
        return type(self).attach, (self.token,)


class _SemLock(_Proxy):
    """A lock or semaphore."""

    _KIND = ""
    _object: _native.SemLock

    def __init__(self, value: int, name: Optional[str], namespace: Optional[str]) -> None:
        self._set(_native.SemLock.make(self._KIND, value, name or "", namespace))

    def _set(self, semlock: _native.SemLock) -> None:
        self._object = self._semlock = semlock
        self.acquire = semlock.acquire
        self.release = semlock.release
        self._enter, self._exit = semlock.__enter__, semlock.__exit__
        self._enrol()

    @classmethod
    def attach(cls: Type[P], token: str) -> P:
        self = cls.__new__(cls)
        self._set(_native.SemLock.attach(cls._KIND, token))  # type: ignore[attr-defined]
        return self

    # A with-statement calls the extension's methods directly, without a Python frame.
    __enter__: Callable[[], bool] = property(operator.attrgetter("_enter"))  # type: ignore[assignment]
    __exit__: Callable[..., None] = property(operator.attrgetter("_exit"))  # type: ignore[assignment]

    @contextlib.contextmanager
    def within(self, timeout: float) -> Iterator[None]:
        """Acquires for a with-block. Raises `LockTimeout`, with the holders, after `timeout` (in
        seconds)."""
        self._semlock.enter_within(timeout)
        try:
            yield
        finally:
            self._semlock.__exit__()

    def locked_by(self) -> List[Holder]:
        """Who holds it, oldest first. Unowned permits aren't listed."""
        return self._semlock.locked_by()

    @property
    def fencing_token(self) -> Optional[int]:
        """The fencing token of this process's hold, which rises with every grant; or None."""
        return self._semlock.fencing_token

    @property
    def abandoned(self) -> Optional[Abandonment]:
        """The abandonment that this process's hold was told of, or None."""
        return self._semlock.abandoned

    def _owner(self) -> str:
        """The owner as multiprocessing's repr() shows it."""
        if self._semlock._is_mine():
            name = multiprocessing.process.current_process().name
            thread = threading.current_thread().name
            return name if thread == "MainThread" else f"{name}|{thread}"
        if self._semlock._get_value() == 1:
            return "None"
        return "SomeOtherThread" if self._semlock._count() > 0 else "SomeOtherProcess"


class Lock(_SemLock):
    """A lock that isn't recursive. Any thread of any process may release it."""

    _KIND = "Lock"

    def __init__(self, *, name: Optional[str] = None, namespace: Optional[str] = None) -> None:
        super().__init__(1, name, namespace)

    def locked(self) -> bool:
        """Whether anybody has it."""
        return self._semlock._is_zero()

    def __repr__(self) -> str:
        try:
            owner = self._owner()
        except Exception:
            owner = "unknown"
        return f"<{type(self).__name__}(owner={owner})>"


class RLock(_SemLock):
    """A recursive lock: its owner can acquire it again, and only the owner can release it."""

    _KIND = "RLock"

    def __init__(self, *, name: Optional[str] = None, namespace: Optional[str] = None) -> None:
        super().__init__(1, name, namespace)

    def locked(self) -> bool:
        """Whether anybody has it."""
        return self._semlock._is_zero()

    def __repr__(self) -> str:
        count: Union[int, str] = "unknown"
        try:
            owner = self._owner()
            if owner in ("SomeOtherThread", "SomeOtherProcess"):
                count = "nonzero"
            else:
                count = 0 if owner == "None" else self._semlock._count()
        except Exception:
            owner = "unknown"
        return f"<{type(self).__name__}({owner}, {count})>"


class Semaphore(_SemLock):
    """A number of permits. `acquire` takes an unowned permit, as POSIX semaphores do; a with-block
    holds one that goes back when the process dies."""

    _KIND = "Semaphore"

    def __init__(
        self, value: int = 1, *, name: Optional[str] = None, namespace: Optional[str] = None
    ) -> None:
        super().__init__(value, name, namespace)

    def get_value(self) -> int:
        """How many permits are free."""
        return self._semlock._get_value()

    def locked(self) -> bool:
        """Whether no permit is free."""
        return self._semlock._is_zero()

    def _value(self) -> Union[int, str]:
        try:
            return self.get_value()
        except Exception:
            return "unknown"

    def __repr__(self) -> str:
        return f"<{type(self).__name__}(value={self._value()})>"


class BoundedSemaphore(Semaphore):
    """A semaphore that never has more permits free than initially."""

    _KIND = "BoundedSemaphore"

    def __repr__(self) -> str:
        name, limit = type(self).__name__, self._semlock.maxvalue
        return f"<{name}(value={self._value()}, maxvalue={limit})>"


class Condition(_Proxy):
    """A condition variable. A notify wakes the oldest waiters."""

    _object: _native.Condition

    def __init__(
        self,
        lock: Union[Lock, RLock, None] = None,
        *,
        name: Optional[str] = None,
        namespace: Optional[str] = None,
    ) -> None:
        if lock is not None and namespace is not None:
            raise ValueError("a Condition is in its lock's namespace: pass namespace to the lock")
        lock = lock or RLock(namespace=namespace)
        self._set(lock, _native.Condition(lock._semlock, name or ""))

    def _set(self, lock: Union[Lock, RLock], condition: _native.Condition) -> None:
        self._lock, self._object = lock, condition
        self.acquire = lock.acquire
        self.release = lock.release
        self._enter, self._exit = lock._enter, lock._exit
        self._enrol()

    @classmethod
    def attach(cls, token: str, lock: Union[Lock, RLock, None] = None) -> "Condition":
        """Attaches to the condition that a token names; `lock` is its lock."""
        if lock is None:
            raise TypeError("attaching to a Condition needs its lock")
        self = cls.__new__(cls)
        self._set(lock, _native.Condition.attach(lock._semlock, token))
        return self

    def __reduce__(self) -> Tuple[Any, ...]:
        return type(self).attach, (self.token, self._lock)

    __enter__: Callable[[], bool] = property(operator.attrgetter("_enter"))  # type: ignore[assignment]
    __exit__: Callable[..., None] = property(operator.attrgetter("_exit"))  # type: ignore[assignment]

    def wait(self, timeout: Optional[float] = None) -> bool:
        """Releases the lock, waits for a notify, and acquires the lock again; False if the time-out
        (in seconds) expired."""
        assert self._lock._semlock._is_mine(), "must acquire() condition before using wait()"
        return self._object.wait(timeout)

    def wait_for(self, predicate: Callable[[], T], timeout: Optional[float] = None) -> T:
        """Waits until `predicate()` is true or the time-out expires; returns its last value."""
        end = None if timeout is None else time.monotonic() + timeout
        result = predicate()
        while not result:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
            result = predicate()
        return result

    def notify(self, n: int = 1) -> None:
        """Notifies the `n` oldest waiters."""
        assert self._lock._semlock._is_mine(), "lock is not owned"
        if n > 0:
            self._object.notify(min(n, 2**32 - 1))

    def notify_all(self) -> None:
        """Notifies all waiters."""
        self.notify(sys.maxsize)

    def __repr__(self) -> str:
        try:
            waiters: Union[int, str] = self._object.waiters()
        except Exception:
            waiters = "unknown"
        return f"<{type(self).__name__}({self._lock}, {waiters})>"


class Event(_Proxy):
    """A flag that can be waited for."""

    _object: _native.Event

    def __init__(self, *, name: Optional[str] = None, namespace: Optional[str] = None) -> None:
        self._set(_native.Event(name or "", namespace))

    def _set(self, event: _native.Event) -> None:
        self._object = event
        self.is_set, self.set, self.clear = event.is_set, event.set, event.clear
        self._enrol()

    @classmethod
    def attach(cls: Type[P], token: str) -> P:
        self = cls.__new__(cls)
        self._set(_native.Event.attach(token))  # type: ignore[attr-defined]
        return self

    def wait(self, timeout: Optional[float] = None) -> bool:
        """Waits until the event is set; False if the time-out (in seconds) expired first."""
        return self._object.wait(timeout)

    def __repr__(self) -> str:
        state = "set" if self.is_set() else "unset"
        return f"<{type(self).__qualname__} at {id(self):#x} {state}>"


class Barrier(_Proxy):
    """A number of parties that wait for each other. It breaks for all, with
    `threading.BrokenBarrierError`, if one of them dies or times out."""

    _object: _native.Barrier

    def __init__(
        self,
        parties: int,
        action: Optional[Callable[[], object]] = None,
        timeout: Optional[float] = None,
        *,
        name: Optional[str] = None,
        namespace: Optional[str] = None,
    ) -> None:
        if parties < 1:
            raise ValueError("parties must be > 0")
        self._set(_native.Barrier(parties, name or "", namespace), action, timeout)

    def _set(
        self,
        barrier: _native.Barrier,
        action: Optional[Callable[[], object]],
        timeout: Optional[float],
    ) -> None:
        self._object, self._action, self._timeout = barrier, action, timeout
        self.abort, self.reset = barrier.abort, barrier.reset
        self._enrol()

    @classmethod
    def attach(
        cls,
        token: str,
        action: Optional[Callable[[], object]] = None,
        timeout: Optional[float] = None,
    ) -> "Barrier":
        """Attaches to the barrier that a token names; `action` and `timeout` are this party's."""
        self = cls.__new__(cls)
        self._set(_native.Barrier.attach(token), action, timeout)
        return self

    def __reduce__(self) -> Tuple[Any, ...]:
        return type(self).attach, (self.token, self._action, self._timeout)

    def wait(self, timeout: Optional[float] = None) -> int:
        """Waits for the others; returns this party's index, in order of arrival."""
        return self._object.wait(self._timeout if timeout is None else timeout, self._action)

    @property
    def parties(self) -> int:
        """The number of parties."""
        return self._object.parties

    @property
    def n_waiting(self) -> int:
        """The number of waiting parties."""
        return self._object.state()[0]

    @property
    def broken(self) -> bool:
        """Whether the barrier is broken until it is reset."""
        return self._object.state()[1]

    def __repr__(self) -> str:
        name, address = type(self).__qualname__, f"{id(self):#x}"
        if self.broken:
            return f"<{name} at {address}: broken>"
        return f"<{name} at {address}: waiters={self.n_waiting}/{self.parties}>"
