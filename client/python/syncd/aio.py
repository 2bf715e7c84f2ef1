"""The same objects for asyncio: `async with`, and `await` where there is something to wait for.

They are the objects of `syncd.synchronize`, and share them with other processes and threads. An
asyncio task is an owner of its own; one that is cancelled in a wait has taken nothing.

Nothing in here blocks the event loop, but `token` and pickling of an object that nobody has used
yet. So a question to the daemon, as `locked()`, is awaited; and so may be what only tells it
something, as `Event.set()`: it is sent in any case, and awaiting it gives its error.
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

_GONE = "the lock or permit is gone: it was taken by force, or released by somebody else"
_FREE = "semaphore or lock released too many times"

_owners: "weakref.WeakKeyDictionary[asyncio.Task[Any], int]" = weakref.WeakKeyDictionary()


def _task() -> Task:
    """The current task; none in a forked child that is amid its parent's."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _owner() -> int:
    """The current task's number as an owner."""
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
        pass  # the loop is closed: nobody waits any more


async def _wait(start: Callable[[Any], _native.AsyncCall], undo: Callable[[Any], object]) -> Any:
    """What a call gives; if the task is cancelled, `undo` has what came all the same."""
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
    """Nothing was taken, or the garbage collector gives it back."""


class _Answer(Generic[T]):
    """What the daemon will say to something that is sent already. Await it; if nobody does, an
    error goes to the event loop's exception handler."""

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
        raise TypeError("the daemon's answer is still to come: await it")


def _nothing(_: Any) -> None:
    """The meaning of an answer that says nothing."""


class _Proxy:
    """A way to an object of `syncd.synchronize`, for tasks."""

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
            remote.token  # there is no loop that this could block
        else:
            remote.open(lambda *_: None)  # its first use tells of an error

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
        """Gets or creates it, which its first use does otherwise. Await it to know of an error, or
        before a fork."""
        return self._send(self._remote.open)

    @property
    def name(self) -> Optional[str]:
        """Its name, if it has one."""
        return self._name

    @property
    def token(self) -> str:
        """One line of text, by which another process of the user can attach. Waits for the daemon
        if the object isn't created yet."""
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
        # What each task holds by it, newest last; an RLock's hold once for each time.
        self._holds: Dict[Task, List[_native.AsyncHold]] = {}

    async def _take(self, timeout: Optional[float]) -> bool:
        """Takes it for the current task."""
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
        """Takes a task's newest hold out of the books, once."""
        holds = self._holds.get(task, [])
        hold = holds.pop() if holds else None
        if not holds:
            self._holds.pop(task, None)
        return hold

    async def __aenter__(self) -> None:
        await self._take(None)

    async def __aexit__(self, *raised: object) -> None:
        """Gives back what the block took. Does nothing in a forked child whose parent entered.

        Raises ValueError if it is gone.
        """
        if self._leaves_parents_block():
            return
        hold = self._leave(_task())
        if hold is None or not hold.release():
            raise ValueError(_GONE)

    def _leaves_parents_block(self) -> bool:
        """Whether a forked child leaves a block that its parent entered; takes that out of the
        books."""
        task = _task()
        for each in [task] if task in self._holds else list(self._holds):
            if self._holds[each][-1].is_inherited:
                self._leave(each)
                return True
        return False

    def locked_by(self) -> _Answer[List[Holder]]:
        """Who holds it, oldest first. Unowned permits are nobody's."""
        return self._ask(lambda state: list(state[3]))

    def locked(self) -> _Answer[bool]:
        """Whether an acquire would have to wait."""
        return self._ask(lambda state: bool(state[0] == 0))

    def _newest(self) -> Optional[_native.AsyncHold]:
        holds = self._holds.get(_task())
        return holds[-1] if holds and not holds[-1].is_inherited else None

    @property
    def fencing_token(self) -> Optional[int]:
        """The number of the grant by which the task holds it."""
        hold = self._newest()
        return hold.fencing_token if hold else None

    @property
    def abandoned(self) -> Optional[Abandonment]:
        """Who left it to the task without a release, if anybody did."""
        hold = self._newest()
        return hold.abandoned if hold else None


class Lock(_SemLock):
    """A lock that isn't recursive; any task may release it by the object that acquired it."""

    _KIND = synchronize.Lock

    def __init__(self, *, name: Optional[str] = None, namespace: Optional[str] = None) -> None:
        super().__init__(1, name, namespace)

    async def acquire(self, timeout: Optional[float] = None) -> bool:
        """Takes it; false if the time was over."""
        return await self._take(timeout)

    def release(self) -> None:
        """Releases what this object holds, the task's rather than another's.

        Raises ValueError if it holds nothing, or no longer.
        """
        task = _task()
        hold = self._leave(task if task in self._holds else next(iter(self._holds), None))
        if hold is None or hold.is_inherited:
            raise ValueError(_FREE)
        if not hold.release():
            raise ValueError(_GONE)


class RLock(_SemLock):
    """A lock that its task may take again, and alone may release."""

    _KIND = synchronize.RLock

    def __init__(self, *, name: Optional[str] = None, namespace: Optional[str] = None) -> None:
        super().__init__(1, name, namespace)

    async def acquire(self, timeout: Optional[float] = None) -> bool:
        """Takes it; false if the time was over."""
        hold = self._newest()
        if hold is None or not hold.is_valid:
            return await self._take(timeout)
        self._holds[_task()].append(hold)
        return True

    def release(self) -> None:
        """Releases it, once.

        Raises AssertionError if the task doesn't hold it, ValueError if it holds it no longer.
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
    """A number of permits. A bare `acquire` takes one for nobody; `async with` takes one that
    returns when the process dies."""

    _KIND = synchronize.Semaphore

    def __init__(
        self, value: int = 1, *, name: Optional[str] = None, namespace: Optional[str] = None
    ) -> None:
        super().__init__(value, name, namespace)

    async def acquire(self, timeout: Optional[float] = None) -> bool:
        """Takes a permit; false if the time was over."""
        start = functools.partial(self._remote.acquire_unowned, _owner(), timeout)
        try:
            await _wait(start, lambda _: self.release())
        except LockTimeout:
            return False
        return True

    def release(self) -> _Answer[None]:
        """Gives a permit. Awaiting it raises ValueError if it was one too many."""
        return self._send(self._remote.release, _owner())

    def get_value(self) -> _Answer[int]:
        """How many permits are free."""
        return self._ask(lambda state: int(state[0]))


class BoundedSemaphore(Semaphore):
    """A semaphore that never has more permits free than at first."""

    _KIND = synchronize.BoundedSemaphore


class Condition(_Proxy):
    """A condition variable. Each notify wakes exactly those that waited, oldest first."""

    _KIND = synchronize.Condition

    def __init__(
        self,
        lock: Union[Lock, RLock, None] = None,
        *,
        name: Optional[str] = None,
        namespace: Optional[str] = None,
    ) -> None:
        if lock is not None and namespace is not None:
            raise ValueError("a Condition is in its lock's namespace: give it to the lock")
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
        """Releases the lock, waits for a notify, and has the lock again; false if the time
        was over. It has the lock again when it is cancelled, too, but not when it fails because
        the lock or the session is gone: then leaving the block says so."""
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
            hold.release()  # it may have come back at the same time
            await self._regain(times)
            raise
        except BaseException:
            if hold.is_valid:
                self._lock._enter(hold, times)
            raise
        self._lock._enter(hold, times)
        return bool(notified)

    async def _regain(self, times: int) -> None:
        """Has the lock again, however often it is cancelled."""
        while True:
            try:
                await self._lock._take(None)
            except asyncio.CancelledError:
                continue
            holds = self._lock._holds[_task()]
            holds.extend(holds[-1:] * (times - 1))
            return

    async def wait_for(self, predicate: Callable[[], Any]) -> Any:
        """Waits until `predicate()` is true, and gives its value."""
        result = predicate()
        while not result:
            await self.wait()
            result = predicate()
        return result

    def notify(self, n: int = 1) -> _Answer[None]:
        """Wakes the `n` oldest waiters, before the lock is released."""
        hold = self._lock._newest()
        assert hold is not None, "lock is not owned"
        if n <= 0:
            return self.open()
        return self._send(self._remote.notify, _owner(), hold, n)

    def notify_all(self) -> _Answer[None]:
        """Wakes all who wait."""
        return self.notify(2**32 - 1)

    def waiters(self) -> _Answer[int]:
        """How many wait."""
        return self._ask(lambda state: int(state[1]))


class Event(_Proxy):
    """A flag that can be waited for."""

    _KIND = synchronize.Event

    def __init__(self, *, name: Optional[str] = None, namespace: Optional[str] = None) -> None:
        super().__init__(0, name, namespace)

    def set(self) -> _Answer[None]:
        """Sets it, and wakes all who wait."""
        return self._send(self._remote.set)

    def clear(self) -> _Answer[None]:
        """Clears it."""
        return self._send(self._remote.clear)

    def is_set(self) -> _Answer[bool]:
        """Whether it is set."""
        return self._ask(lambda state: bool(state[0]))

    async def wait(self, timeout: Optional[float] = None) -> bool:
        """Waits until it is set; false if the time was over first."""
        start = functools.partial(self._remote.event_wait, _owner(), timeout)
        return bool(await _wait(start, _forget))


class Barrier(_Proxy):
    """Where so many parties wait for each other. It breaks for all if one of them dies, or its
    time is over: `threading.BrokenBarrierError`. An `action` may be a coroutine function."""

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
        """Has nothing to give back."""

    async def wait(self, timeout: Optional[float] = None) -> int:
        """Waits for the others; gives this party's number, in order of arrival."""
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
        """Empties it: who waits gets BrokenBarrierError."""
        return self._send(self._remote.reset)

    def abort(self) -> _Answer[None]:
        """Breaks it, until it is reset."""
        return self._send(self._remote.abort)

    @property
    def n_waiting(self) -> _Answer[int]:
        """How many wait."""
        return self._ask(lambda state: int(state[0]))

    @property
    def broken(self) -> _Answer[bool]:
        """Whether it lets nobody pass until it is reset."""
        return self._ask(lambda state: bool(state[2]))
