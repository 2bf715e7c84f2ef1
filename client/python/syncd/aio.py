"""The same objects for asyncio: `async with`, and `await` where there is something to wait for.

They are the objects of `syncd.synchronize`, and share them with other processes and threads. An
asyncio task is an owner of its own; one that is cancelled in a wait has taken nothing.

Never here: what an object does, or a thread.
"""

import asyncio
import functools
import inspect
from typing import Any, Callable, Dict, List, Optional, Tuple, Type, TypeVar, Union

from . import _native, _report, synchronize
from ._report import Abandonment, Holder, LockTimeout

__all__ = [
    "Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "Semaphore",
]  # fmt: skip

P = TypeVar("P", bound="_Proxy")
Task = Optional["asyncio.Task[Any]"]


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


class _Proxy:
    """One of `syncd.synchronize`, and the way to wait for it."""

    _KIND: Type[Any]

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self._set(self._KIND(*arguments, **keywords))

    def _set(self, sync: Any) -> None:
        self._sync = sync
        self._remote = _native.AsyncObject(sync.token)

    @classmethod
    def of(cls: Type[P], sync: Any) -> P:
        """The asyncio face of an object of `syncd.synchronize`."""
        self = cls.__new__(cls)
        self._set(sync)
        return self

    def __reduce__(self) -> Tuple[Any, ...]:
        return type(self).of, (self._sync,)

    @property
    def name(self) -> Optional[str]:
        """Its name, if it has one."""
        name: Optional[str] = self._sync.name
        return name

    @property
    def token(self) -> str:
        """One line of text, by which another process of the user can attach."""
        return str(self._sync.token)

    def __repr__(self) -> str:
        return f"<aio {self._sync!r}>"


class _SemLock(_Proxy):
    def _set(self, sync: Any) -> None:
        super()._set(sync)
        # What each task holds by it, newest last.
        self._holds: Dict[Task, List[_native.AsyncHold]] = {}

    async def _take(self, timeout: Optional[float]) -> bool:
        """Takes it for the current task."""
        start = functools.partial(self._remote.acquire, timeout)
        try:
            hold = await _wait(start, _native.AsyncHold.release)
        except LockTimeout:
            return False
        self._enter(hold)
        return True

    def _enter(self, hold: _native.AsyncHold) -> None:
        if hold.abandoned is not None:
            _report.warn(hold.abandoned, self.name)
        self._holds.setdefault(asyncio.current_task(), []).append(hold)

    def _leave(self, task: Task) -> Optional[_native.AsyncHold]:
        """Takes a task's newest hold out of the books."""
        holds = self._holds.get(task, [])
        hold = holds.pop() if holds else None
        if not holds:
            self._holds.pop(task, None)
        return hold

    async def __aenter__(self) -> None:
        await self._take(None)

    async def __aexit__(self, *raised: object) -> None:
        hold = self._leave(asyncio.current_task())
        if hold is None or not hold.release():
            self._remote.release()

    def locked_by(self) -> List[Holder]:
        """Who holds it, oldest first. Loose permits are nobody's."""
        return list(self._sync.locked_by())

    def locked(self) -> bool:
        """Whether an acquire would have to wait."""
        return bool(self._sync.locked())

    def _newest(self) -> Optional[_native.AsyncHold]:
        holds = self._holds.get(asyncio.current_task())
        return holds[-1] if holds else None

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
    """A lock that isn't recursive; anybody may release it."""

    _KIND = synchronize.Lock

    def __init__(self, *, name: Optional[str] = None) -> None:
        super().__init__(name=name)

    async def acquire(self, timeout: Optional[float] = None) -> bool:
        """Takes it; false if the time was over."""
        return await self._take(timeout)

    def release(self) -> None:
        """Releases it, whoever has it."""
        task = asyncio.current_task()
        hold = self._leave(task if task in self._holds else next(iter(self._holds), None))
        if hold is None or not hold.release():
            self._remote.release()


class RLock(_SemLock):
    """A lock that its task may take again, and alone may release."""

    _KIND = synchronize.RLock

    def __init__(self, *, name: Optional[str] = None) -> None:
        super().__init__(name=name)

    def _set(self, sync: Any) -> None:
        super()._set(sync)
        self._depths: Dict[Task, int] = {}

    async def acquire(self, timeout: Optional[float] = None) -> bool:
        """Takes it; false if the time was over."""
        if self._newest() is None and not await self._take(timeout):
            return False
        task = asyncio.current_task()
        self._depths[task] = self._depths.get(task, 0) + 1
        return True

    def release(self) -> None:
        """Releases it, once."""
        if self._newest() is None:
            raise AssertionError("attempt to release recursive lock not owned by task")
        task = asyncio.current_task()
        self._depths[task] -= 1
        if self._depths[task] == 0:
            del self._depths[task]
            hold = self._leave(task)
            assert hold is not None
            hold.release()

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *raised: object) -> None:
        self.release()


class Semaphore(_SemLock):
    """A number of permits. A bare `acquire` takes one for nobody; `async with` takes one that
    returns when the process dies."""

    _KIND = synchronize.Semaphore

    def __init__(self, value: int = 1, *, name: Optional[str] = None) -> None:
        super().__init__(value, name=name)

    async def acquire(self, timeout: Optional[float] = None) -> bool:
        """Takes a permit; false if the time was over."""
        start = functools.partial(self._remote.acquire_unowned, timeout)
        try:
            await _wait(start, lambda _: self._remote.release())
        except LockTimeout:
            return False
        return True

    def release(self) -> None:
        """Gives a permit."""
        self._remote.release()

    def get_value(self) -> int:
        """How many permits are free."""
        return int(self._sync.get_value())


class BoundedSemaphore(Semaphore):
    """A semaphore that never has more permits free than at first."""

    _KIND = synchronize.BoundedSemaphore


class Condition(_Proxy):
    """A condition variable. Each notify wakes exactly those that waited, oldest first."""

    _KIND = synchronize.Condition

    def __init__(
        self, lock: Union[Lock, RLock, None] = None, *, name: Optional[str] = None
    ) -> None:
        self._lock = lock or RLock()
        self._set(synchronize.Condition(self._lock._sync, name=name))

    def _set(self, sync: Any) -> None:
        super()._set(sync)
        if not hasattr(self, "_lock"):
            face = RLock if isinstance(sync._lock, synchronize.RLock) else Lock
            self._lock = face.of(sync._lock)
        self.acquire, self.release = self._lock.acquire, self._lock.release

    async def __aenter__(self) -> None:
        await self._lock.__aenter__()

    async def __aexit__(self, *raised: object) -> None:
        await self._lock.__aexit__(*raised)

    async def wait(self, timeout: Optional[float] = None) -> bool:
        """Releases the lock, waits for a notify, and has the lock again; false if the time
        was over. It has the lock again when it is cancelled, too."""
        task = asyncio.current_task()
        hold = self._lock._leave(task)
        assert hold is not None, "must acquire() condition before using wait()"
        start = functools.partial(self._remote.wait, hold, timeout)
        try:
            hold, notified = await _wait(start, _forget)
        except asyncio.CancelledError:
            await self._regain()
            raise
        self._lock._enter(hold)
        return bool(notified)

    async def _regain(self) -> None:
        """Has the lock again, however often it is cancelled."""
        while True:
            try:
                await self._lock._take(None)
                return
            except asyncio.CancelledError:
                continue

    async def wait_for(self, predicate: Callable[[], Any]) -> Any:
        """Waits until `predicate()` is true, and gives its value."""
        result = predicate()
        while not result:
            await self.wait()
            result = predicate()
        return result

    def notify(self, n: int = 1) -> None:
        """Wakes the `n` oldest waiters."""
        hold = self._lock._newest()
        assert hold is not None, "lock is not owned"
        if n > 0:
            self._remote.notify(hold, n)

    def notify_all(self) -> None:
        """Wakes all who wait."""
        self.notify(2**32 - 1)


class Event(_Proxy):
    """A flag that can be waited for."""

    _KIND = synchronize.Event

    def __init__(self, *, name: Optional[str] = None) -> None:
        super().__init__(name=name)

    def _set(self, sync: Any) -> None:
        super()._set(sync)
        self.is_set, self.set, self.clear = sync.is_set, sync.set, sync.clear

    async def wait(self, timeout: Optional[float] = None) -> bool:
        """Waits until it is set; false if the time was over first."""
        return bool(await _wait(functools.partial(self._remote.event_wait, timeout), _forget))


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
    ) -> None:
        super().__init__(parties, action, timeout, name=name)

    def _set(self, sync: Any) -> None:
        super()._set(sync)
        self.abort, self.reset = sync.abort, sync.reset

    async def __aenter__(self) -> int:
        return await self.wait()

    async def __aexit__(self, *raised: object) -> None:
        """Has nothing to give back."""

    async def wait(self, timeout: Optional[float] = None) -> int:
        """Waits for the others; gives this party's number, in order of arrival."""
        timeout, act = self._sync._timeout if timeout is None else timeout, self._sync._action
        start = functools.partial(self._remote.barrier_wait, timeout, act is not None)
        index, action = await _wait(start, _forget)
        if action is not None:
            ok = False
            try:
                result = act()
                if inspect.isawaitable(result):
                    await result
                ok = True
            finally:
                action.done(ok)
        return int(index)

    @property
    def parties(self) -> int:
        """How many pass at once."""
        return int(self._sync.parties)

    @property
    def n_waiting(self) -> int:
        """How many wait."""
        return int(self._sync.n_waiting)

    @property
    def broken(self) -> bool:
        """Whether it lets nobody pass until it is reset."""
        return bool(self._sync.broken)
