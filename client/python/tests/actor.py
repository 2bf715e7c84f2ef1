"""One session that does what lines on stdin say, in the language of the conformance scripts
(tests/conformance/README.md): `actor.py SITE NAMESPACE`, with the package in SITE. Each owner is a
thread.
"""

import os
import queue
import sys
import threading
import warnings

sys.path.insert(0, sys.argv[1])
os.environ["SYNCD_NO_AUTOSTART"] = "1"

import syncd  # noqa: E402

CAUSES = {"was disconnected": "disconnected", "was kicked": "kicked", "lost it by force": "forced"}


class Refused(Exception):
    """An outcome that isn't what was wished for."""


def say(line):
    """Tells the runner, in one write: owners speak at the same time."""
    os.write(1, f"{line}\n".encode())


def seconds(words):
    """The time after `timeout`: `5s`, `5ms` or microseconds."""
    if "timeout" not in words:
        return None
    time = words[words.index("timeout") + 1]
    for unit, size in ("ms", 1e-3), ("s", 1.0):
        if time.endswith(unit):
            return int(time[: -len(unit)]) * size
    return int(time) * 1e-6


class Session:
    """What this process knows of its objects."""

    def __init__(self):
        self._declared = {}
        self._things = {}
        self._opening = threading.RLock()

    def declare(self, name, kind, *words):
        self._declared[name] = kind, words

    def thing(self, name):
        """Gets or creates an object, once."""
        with self._opening:
            if name not in self._things:
                self._things[name] = self._open(name)
            return self._things[name]

    def _open(self, name):
        kind, words = self._declared[name]
        if {"poison", "keep", "max"} & set(words):
            raise Refused(f"beyond this face: {words}")
        if kind == "Condition":
            arguments = [self.thing(words[1])]
        else:
            arguments = [int(word) for word in words[:1] if word.isdigit()]
        if "by" in words:
            token = words[-1]
            rest = arguments if kind == "Condition" else ()
            thing = getattr(syncd, kind).attach(token, *rest)
        elif "anonymous" in words:
            thing = getattr(syncd, kind)(*arguments)
        else:
            thing = getattr(syncd, kind)(*arguments, name=name)
        if "anonymous" in words:
            say(f"key {name} {thing.token}")
        return thing


class Owner(threading.Thread):
    """One owner."""

    def __init__(self, number, session):
        super().__init__(daemon=True)
        self.lines = queue.SimpleQueue()
        self._number, self._session = number, session
        # How to end what it holds, by the object's name, newest last.
        self._ends = {}

    def run(self):
        while True:
            words = self.lines.get().split()
            try:
                outcome = self._perform(*words)
            except Refused as refusal:
                outcome = str(refusal)
            except syncd.SessionLost:
                outcome = "session lost"
            except Exception as error:
                outcome = repr(error)
            say(f"{self._number} {outcome}")

    def _perform(self, operation, name="", *words):
        do = getattr(self, f"_{operation}", None)
        if do is None or not name:
            raise Refused(f"beyond this face: {operation}")
        return do(name, self._session.thing(name), words)

    def _open(self, name, thing, words):
        return "ok"

    def _try(self, name, lock, words):
        return self._take(name, lock, 0, "unowned" in words)

    def _acquire(self, name, lock, words):
        if "unless" in words:
            raise Refused("beyond this face: unless deadlock")
        return self._take(name, lock, seconds(words), "unowned" in words)

    def _take(self, name, lock, timeout, unowned):
        ends = self._ends.setdefault(name, [])
        if unowned:
            # What a bare acquire of a semaphore takes is nobody's.
            if not isinstance(lock, syncd.Semaphore):
                raise Refused("only semaphores have unowned permits")
            if not lock.acquire(timeout=timeout):
                raise Refused("timed out")
            ends.append(lock.release)
            return "granted"
        block = lock if timeout is None else lock.within(timeout)
        try:
            block.__enter__()
        except syncd.LockTimeout as error:
            holders = "".join(f" pid:{holder.pid}" for holder in error.holders)
            raise Refused("timed out" + (holders and f" held by{holders}")) from None
        ends.append(lambda: block.__exit__(None, None, None))
        return self._granted("granted", lock)

    def _granted(self, what, lock):
        # An RLock's depth is told by its text alone: <RLock(MainProcess|Thread-1, 2)>.
        depth = 1
        if isinstance(lock, syncd.RLock):
            depth = int(repr(lock).rpartition(", ")[2].rstrip(")>"))
        if depth > 1:
            what += f" depth {depth}"
        left = lock.abandoned
        if left is not None and (depth == 1 or not what.startswith("granted")):
            what += f" abandoned by pid:{left.pid} {CAUSES.get(left.cause, left.cause)}"
        return f"{what} @{lock.fencing_token}"

    def _release(self, name, lock, words):
        ends = self._ends.get(name, [])
        if "bare" in words:
            end = lock.release
        elif ends:
            end = ends.pop()
        else:
            raise Refused("it holds nothing")
        try:
            end()
        except AssertionError:
            raise Refused("not owner") from None
        except ValueError:
            raise Refused("over-released") from None
        # It may be sent and not answered: what comes after must find it done.
        lock.locked()
        return "ok"

    def _valid(self, name, lock, words):
        try:
            held = lock.fencing_token in [holder.fencing_token for holder in lock.locked_by()]
        except syncd.SessionLost:
            held = False
        return str(held).lower()

    def _wait(self, name, condition, words):
        notified = condition.wait(seconds(words))
        return self._granted("notified" if notified else "unnotified", condition._lock)

    def _notify(self, name, condition, words):
        condition.notify_all() if words[0] == "all" else condition.notify(int(words[0]))
        return "ok ?"

    def _set(self, name, event, words):
        event.set()
        return "ok ?"

    def _clear(self, name, event, words):
        event.clear()
        return "ok"

    def _await(self, name, event, words):
        return "ok" if event.wait(seconds(words)) else "timed out"

    def _meet(self, name, barrier, words):
        if "acting" in words:
            raise Refused("beyond this face: acting")
        try:
            return f"passed {barrier.wait(seconds(words))}"
        except threading.BrokenBarrierError as error:
            # As threading's, one exception for both; its text says which.
            late = str(error).startswith("timed out")
            raise Refused("timed out" if late else "broken") from None

    def _reset(self, name, barrier, words):
        barrier.reset()
        return "ok"

    def _abort(self, name, barrier, words):
        barrier.abort()
        return "ok"


def main():
    if sys.argv[2]:
        sys.exit("the package knows the default namespace alone")
    warnings.simplefilter("ignore", syncd.AbandonedLockWarning)
    session, owners = Session(), {}
    for line in sys.stdin:
        first, _, rest = line.partition(" ")
        if first == "object":
            name, *words = rest.split()
            session.declare(name, *words)
            continue
        if first not in owners:
            owners[first] = Owner(first, session)
            owners[first].start()
        owners[first].lines.put(rest)
    # As a process that is killed would: nothing is released.
    os._exit(0)


if __name__ == "__main__":
    main()
