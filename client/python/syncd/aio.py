"""The objects of `syncd.synchronize` for asyncio, shared with other processes and threads.

Each asyncio task is an owner. A task that is cancelled while it waits has acquired nothing.

Nothing here blocks the event loop, except `token` and pickling of an object that hasn't been used
yet. Queries such as `locked()` have to be awaited. Calls such as `Event.set()` are sent in any
case; awaiting them raises their errors.
"""

import asyncio
import functools
import inspect
import weakref
from typing import (
    Any, Callable, Dict, Generator, Generic, List, Optional, Tuple, Type, TypeVar, Union,
)  # fmt: skip

from . import _native, _report, synchronize
from ._report import Abandonment, Holder, LockTimeout

__all__ = [
    "Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "Semaphore",
]  # fmt: skip

T = TypeVar("T")
P = TypeVar("P", bound="_Proxy")
Task = Optional["asyncio.Task[Any]"]

_GONE = "the lock or permit is no longer held: it was released by force or by another owner"
_FREE = "semaphore or lock released too many times"

_owners: "weakref.WeakKeyDictionary[asyncio.Task[Any], int]" = weakref.WeakKeyDictionary()


def _task() -> Task:
    """The current task; None in a forked child that runs inside its parent's task."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _owner() -> int:
    """The current task's owner number."""
    task = _task()
    if task is None:
        return _native.fresh_owner()
    number = _owners.get(task)
    if number is None:
        number = _owners[task] = _native.fresh_owner()
    return number


def _tell(loop: asyncio.AbstractEventLoop, settle: Any, result: Any, error: Any) -> None:
    """Runs in the extension's thread."""
    try:
        loop.call_soon_threadsafe(settle, result, error)
    except RuntimeError:
        pass  # the loop is closed: no task waits any more


async def _wait(start: Callable[[Any], _native.AsyncCall], undo: Callable[[Any], object]) -> Any:
    """Returns a call's result. If the task is cancelled and a result comes nevertheless, passes it
    to `undo`."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def settle(result: Any, error: Any) -> None:
        if not future.done():
            future.set_result(result) if error is None else future.set_exception(error)
        elif error is None:
            undo(result)

    call = start(functools.partial(_tell, loop, settle))
    try:
        return await future
    except asyncio.CancelledError:
        call.cancel()
        if future.done() and not future.cancelled() and future.exception() is None:
            undo(future.result())
        raise


def _forget(_: Any) -> None:
    """Nothing to undo: nothing was acquired, or the result's finalizer gives it back."""


class _Answer(Generic[T]):
    """The reply to a request that was sent. If it isn't awaited, an error goes to the event loop's
    exception handler."""

    __slots__ = ("_future",)

    def __init__(
        self,
        start: Callable[[Any], _native.AsyncCall],
        meaning: Callable[[Any], T],
    ) -> None:
        loop = asyncio.get_running_loop()
        future = self._future = loop.create_future()

        def settle(result: Any, error: Any) -> None:
            if not future.done():
                future.set_result(meaning(result)) if error is None else future.set_exception(error)

        start(functools.partial(_tell, loop, settle))

    def __await__(self) -> Generator[Any, None, T]:
        waiting: Generator[Any, None, T] = asyncio.shield(self._future).__await__()
        return waiting

    def __bool__(self) -> bool:
        raise TypeError("this is a pending reply of the daemon: await it")


def _nothing(_: Any) -> None:
    """The result of a reply without content."""


class _Proxy:
    """The asyncio face of an object."""

    _KIND: Type[Any]

    def __init__(
        self,
        value: int = 1,
        name: Optional[str] = None,
        namespace: Optional[str] = None,
        lock: Optional[_native.AsyncObject] = None,
    ) -> None:
        kind = self._KIND.__name__
        remote = _native.AsyncObject.create(kind, value, name or "", namespace, lock)
        self._set(remote, name)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            remote.token  # waits for the creation: no event loop runs here
        else:
            remote.open(lambda *_: None)  # the object's first use raises an error

    def _set(self, remote: _native.AsyncObject, name: Optional[str]) -> None:
        self._remote, self._name = remote, name or None

    @classmethod
    def of(cls: Type[P], sync: Any) -> P:
        """The asyncio face of an object of `syncd.synchronize`."""
        return cls._attach(sync.token, sync.name)

    @classmethod
    def _attach(cls: Type[P], token: str, name: Optional[str]) -> P:
        self = cls.__new__(cls)
        self._set(_native.AsyncObject.attach(token), name)
        return self

    def __reduce__(self) -> Tuple[Any, ...]:
        return type(self)._attach, (self.token, self._name)

    def open(self) -> _Answer[None]:
        """Gets or creates the object now, instead of at its first use. Await it to get an error, or
        before a fork."""
        return self._send(self._remote.open)

    @property
    def name(self) -> Optional[str]:
        """The object's name, or None."""
        return self._name

    @property
    def token(self) -> str:
        """The token, one line of text, by which another process can attach. Waits for the daemon if
        the object isn't created yet."""
        return self._remote.token

    def _send(self, call: Callable[..., _native.AsyncCall], *arguments: Any) -> _Answer[None]:
        return _Answer(functools.partial(call, *arguments), _nothing)

    def _ask(self, meaning: Callable[[Any], T]) -> _Answer[T]:
        return _Answer(self._remote.query, meaning)

    def __repr__(self) -> str:
        name = f"name={self._name!r}" if self._name else f"at {id(self):#x}"
        return f"<aio.{type(self).__name__} {name}>"


class _SemLock(_Proxy):
    def _set(self, remote: _native.AsyncObject, name: Optional[str]) -> None:
        super()._set(remote, name)
        # The holds of each task, newest last; an RLock's hold once for each level.
        self._holds: Dict[Task, List[_native.AsyncHold]] = {}

    async def _take(self, timeout: Optional[float]) -> bool:
        """Acquires for the current task."""
        start = functools.partial(self._remote.acquire, _owner(), timeout)
        try:
            hold = await _wait(start, _native.AsyncHold.release)
        except LockTimeout:
            return False
        self._enter(hold)
        return True

    def _enter(self, hold: _native.AsyncHold, times: int = 1) -> None:
        if hold.abandoned is not None:
            _report.warn(hold.abandoned, self.name)
        self._holds.setdefault(_task(), []).extend([hold] * times)

    def _leave(self, task: Task) -> Optional[_native.AsyncHold]:
        """Removes and returns a task's newest hold, or one level of it."""
        holds = self._holds.get(task, [])
        hold = holds.pop() if holds else None
        if not holds:
            self._holds.pop(task, None)
        return hold

    async def __aenter__(self) -> None:
        await self._take(None)

    async def __aexit__(self, *raised: object) -> None:
        """Releases what the block acquired. Does nothing in a forked child whose parent entered.

        Raises ValueError if the hold is gone.
        """
        if self._leaves_parents_block():
            return
        hold = self._leave(_task())
        if hold is None or not hold.release():
            raise ValueError(_GONE)

    def _leaves_parents_block(self) -> bool:
        """Whether a forked child leaves a block that its parent entered; removes that hold."""
        task = _task()
        for each in [task] if task in self._holds else list(self._holds):
            if self._holds[each][-1].is_inherited:
                self._leave(each)
                return True
        return False

    def locked_by(self) -> _Answer[List[Holder]]:
        """Who holds it, oldest first. Unowned permits aren't listed."""
        return self._ask(lambda state: list(state[3]))

    def locked(self) -> _Answer[bool]:
        """Whether an acquire would have to wait."""
        return self._ask(lambda state: bool(state[0] == 0))

    def _newest(self) -> Optional[_native.AsyncHold]:
        holds = self._holds.get(_task())
        return holds[-1] if holds and not holds[-1].is_inherited else None

    @property
    def fencing_token(self) -> Optional[int]:
        """The fencing token of the task's hold, or None."""
        hold = self._newest()
        return hold.fencing_token if hold else None

    @property
    def abandoned(self) -> Optional[Abandonment]:
        """The abandonment that the task's hold was told of, or None."""
        hold = self._newest()
        return hold.abandoned if hold else None


class Lock(_SemLock):
    """A lock that isn't recursive. Any task may release it, through the object that acquired it."""

    _KIND = synchronize.Lock

    def __init__(self, *, name: Optional[str] = None, namespace: Optional[str] = None) -> None:
        super().__init__(1, name, namespace)

    async def acquire(self, timeout: Optional[float] = None) -> bool:
        """Acquires the lock; False if the time-out (in seconds) expired."""
        return await self._take(timeout)

    def release(self) -> None:
        """Releases a hold of this object, preferably the current task's.

        Raises ValueError if there is none, or if it is gone.
        """
        task = _task()
        hold = self._leave(task if task in self._holds else next(iter(self._holds), None))
        if hold is None or hold.is_inherited:
            raise ValueError(_FREE)
        if not hold.release():
            raise ValueError(_GONE)


class RLock(_SemLock):
    """A recursive lock: its task can acquire it again, and only that task can release it."""

    _KIND = synchronize.RLock

    def __init__(self, *, name: Optional[str] = None, namespace: Optional[str] = None) -> None:
        super().__init__(1, name, namespace)

    async def acquire(self, timeout: Optional[float] = None) -> bool:
        """Acquires the lock; False if the time-out (in seconds) expired."""
        hold = self._newest()
        if hold is None or not hold.is_valid:
            return await self._take(timeout)
        self._holds[_task()].append(hold)
        return True

    def release(self) -> None:
        """Releases one level.

        Raises AssertionError if the task doesn't hold the lock, ValueError if the hold is gone.
        """
        if self._newest() is None:
            raise AssertionError("attempt to release recursive lock not owned by task")
        self._let_go()

    def _let_go(self) -> None:
        hold = self._leave(_task())
        if hold is None:
            raise ValueError(_GONE)
        again = hold in self._holds.get(_task(), [])
        if not (hold.is_valid if again else hold.release()):
            raise ValueError(_GONE)

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *raised: object) -> None:
        """As Lock's."""
        if not self._leaves_parents_block():
            self._let_go()


class Semaphore(_SemLock):
    """A number of permits. `acquire` takes an unowned permit; `async with` holds one that goes back
    when the process dies."""

    _KIND = synchronize.Semaphore

    def __init__(
        self, value: int = 1, *, name: Optional[str] = None, namespace: Optional[str] = None
    ) -> None:
        super().__init__(value, name, namespace)

    async def acquire(self, timeout: Optional[float] = None) -> bool:
        """Takes an unowned permit; False if the time-out (in seconds) expired."""
        start = functools.partial(self._remote.acquire_unowned, _owner(), timeout)
        try:
            await _wait(start, lambda _: self.release())
        except LockTimeout:
            return False
        return True

    def release(self) -> _Answer[None]:
        """Adds a permit. Awaiting it raises ValueError if it was one too many."""
        return self._send(self._remote.release, _owner())

    def get_value(self) -> _Answer[int]:
        """How many permits are free."""
        return self._ask(lambda state: int(state[0]))


class BoundedSemaphore(Semaphore):
    """A semaphore that never has more permits free than initially."""

    _KIND = synchronize.BoundedSemaphore


class Condition(_Proxy):
    """A condition variable. A notify wakes the oldest waiters."""

    _KIND = synchronize.Condition

    def __init__(
        self,
        lock: Union[Lock, RLock, None] = None,
        *,
        name: Optional[str] = None,
        namespace: Optional[str] = None,
    ) -> None:
        if lock is not None and namespace is not None:
            raise ValueError("a Condition is in its lock's namespace: pass namespace to the lock")
        self._guard(lock or RLock(namespace=namespace))
        super().__init__(0, name, None, self._lock._remote)

    def _guard(self, lock: Union[Lock, RLock]) -> None:
        self._lock = lock
        self.acquire, self.release = lock.acquire, lock.release

    @classmethod
    def of(cls, sync: Any) -> "Condition":
        face = RLock if isinstance(sync._lock, synchronize.RLock) else Lock
        return cls._join(sync.token, sync.name, face.of(sync._lock))

    @classmethod
    def _join(cls, token: str, name: Optional[str], lock: Union[Lock, RLock]) -> "Condition":
        self = cls._attach(token, name)
        self._guard(lock)
        return self

    def __reduce__(self) -> Tuple[Any, ...]:
        return type(self)._join, (self.token, self._name, self._lock)

    async def __aenter__(self) -> None:
        await self._lock.__aenter__()

    async def __aexit__(self, *raised: object) -> None:
        await self._lock.__aexit__(*raised)

    async def wait(self, timeout: Optional[float] = None) -> bool:
        """Releases the lock, waits for a notify, and acquires the lock again; False if the time-out
        (in seconds) expired. Also when cancelled, it first acquires the lock again. If the lock or
        the session is lost, it raises without the lock; leaving the block then raises, too."""
        hold = self._lock._newest()
        assert hold is not None, "must acquire() condition before using wait()"
        holds = self._lock._holds[_task()]
        times = holds.count(hold)
        del holds[-times:]
        if not holds:
            del self._lock._holds[_task()]
        start = functools.partial(self._remote.wait, hold, timeout)
        try:
            notified = await _wait(start, _forget)
        except asyncio.CancelledError:
            hold.release()  # the wait may have ended at the same time
            await self._regain(times)
            raise
        except BaseException:
            if hold.is_valid:
                self._lock._enter(hold, times)
            raise
        self._lock._enter(hold, times)
        return bool(notified)

    async def _regain(self, times: int) -> None:
        """Acquires the lock again, even if cancelled meanwhile."""
        while True:
            try:
                await self._lock._take(None)
            except asyncio.CancelledError:
                continue
            holds = self._lock._holds[_task()]
            holds.extend(holds[-1:] * (times - 1))
            return

    async def wait_for(self, predicate: Callable[[], Any]) -> Any:
        """Waits until `predicate()` is true, and returns its value."""
        result = predicate()
        while not result:
            await self.wait()
            result = predicate()
        return result

    def notify(self, n: int = 1) -> _Answer[None]:
        """Notifies the `n` oldest waiters; takes effect before a later release of the lock."""
        hold = self._lock._newest()
        assert hold is not None, "lock is not owned"
        if n <= 0:
            return self.open()
        return self._send(self._remote.notify, _owner(), hold, n)

    def notify_all(self) -> _Answer[None]:
        """Notifies all waiters."""
        return self.notify(2**32 - 1)

    def waiters(self) -> _Answer[int]:
        """The number of waiters."""
        return self._ask(lambda state: int(state[1]))


class Event(_Proxy):
    """A flag that can be waited for."""

    _KIND = synchronize.Event

    def __init__(self, *, name: Optional[str] = None, namespace: Optional[str] = None) -> None:
        super().__init__(0, name, namespace)

    def set(self) -> _Answer[None]:
        """Sets the event, and wakes all waiters."""
        return self._send(self._remote.set)

    def clear(self) -> _Answer[None]:
        """Clears the event."""
        return self._send(self._remote.clear)

    def is_set(self) -> _Answer[bool]:
        """Whether the event is set."""
        return self._ask(lambda state: bool(state[0]))

    async def wait(self, timeout: Optional[float] = None) -> bool:
        """Waits until the event is set; False if the time-out (in seconds) expired first."""
        start = functools.partial(self._remote.event_wait, _owner(), timeout)
        return bool(await _wait(start, _forget))


class Barrier(_Proxy):
    """A number of parties that wait for each other. It breaks for all, with
    `threading.BrokenBarrierError`, if one of them dies or times out. `action` may be a coroutine
    function."""

    _KIND = synchronize.Barrier

    def __init__(
        self,
        parties: int,
        action: Optional[Callable[[], Any]] = None,
        timeout: Optional[float] = None,
        *,
        name: Optional[str] = None,
        namespace: Optional[str] = None,
    ) -> None:
        if parties < 1:
            raise ValueError("parties must be > 0")
        self._meet(parties, action, timeout)
        super().__init__(parties, name, namespace)

    def _meet(
        self, parties: int, action: Optional[Callable[[], Any]], timeout: Optional[float]
    ) -> None:
        self.parties, self._action, self._timeout = parties, action, timeout

    @classmethod
    def of(cls, sync: Any) -> "Barrier":
        return cls._join(sync.token, sync.name, sync.parties, sync._action, sync._timeout)

    @classmethod
    def _join(cls, token: str, name: Optional[str], *party: Any) -> "Barrier":
        self = cls._attach(token, name)
        self._meet(*party)
        return self

    def __reduce__(self) -> Tuple[Any, ...]:
        party = self.parties, self._action, self._timeout
        return type(self)._join, (self.token, self._name, *party)

    async def __aenter__(self) -> int:
        return await self.wait()

    async def __aexit__(self, *raised: object) -> None:
        """Does nothing."""

    async def wait(self, timeout: Optional[float] = None) -> int:
        """Waits for the others; returns this party's index, in order of arrival."""
        timeout, act = self._timeout if timeout is None else timeout, self._action
        start = functools.partial(self._remote.barrier_wait, _owner(), timeout, act is not None)
        index, action = await _wait(start, _forget)
        if action is not None and act is not None:
            try:
                result = act()
                if inspect.isawaitable(result):
                    await result
            except BaseException:
                self._send(action.done, False)
                raise
            await self._send(action.done, True)
        return int(index)

    def reset(self) -> _Answer[None]:
        """Empties the barrier and mends it; waiting parties get BrokenBarrierError."""
        return self._send(self._remote.reset)

    def abort(self) -> _Answer[None]:
        """Breaks the barrier until it is reset."""
        return self._send(self._remote.abort)

    @property
    def n_waiting(self) -> _Answer[int]:
        """The number of waiting parties."""
        return self._ask(lambda state: int(state[0]))

    @property
    def broken(self) -> _Answer[bool]:
        """Whether the barrier is broken until it is reset."""
        return self._ask(lambda state: bool(state[2]))
