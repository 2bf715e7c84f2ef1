"""What happens at the edges: forks within a block, holds that are taken away, daemons that are
stopped, signals in the wrong moment. Each program is a process of its own.
"""

import asyncio
import contextlib
import os
import pickle
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import unittest
import uuid

import syncd
import syncd.multiprocessing as multiprocessing
from syncd import aio

#: Against hangs alone, in seconds.
LIMIT = 120

FORK = """
import asyncio, contextlib, os, sys, syncd
from syncd import aio

def forked(holders):
    pid = os.fork()
    if pid == 0:
        sys.exit(7)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 7, code
    return holders()
"""

SYNC = (
    FORK
    + """
held, lock = {held}
with held:
    (holder,) = forked(lock.locked_by)
    assert holder.pid == os.getpid()
assert lock.locked_by() == []
print("ok")
"""
)

TASK = (
    FORK
    + """
async def main():
    held, lock = {held}
    try:
        async with held:
            (holder,) = await forked(lock.locked_by)
            assert holder.pid == os.getpid()
    except SystemExit as leaving:
        # The event loop's own clean-up in a child breaks its parent's loop.
        os._exit(leaving.code)
    assert await lock.locked_by() == []
    print("ok")
asyncio.run(main())
"""
)

INSTALLED = (
    FORK
    + """
syncd.install(force=True)
import multiprocessing
lock = multiprocessing.{kind}()
with lock:
    assert forked(lambda: lock._semlock._get_value()) == 0
assert lock._semlock._get_value() == 1
print("ok")
"""
)


def start(code, *arguments, **environment):
    """Starts a program."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=dict(os.environ, **environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def say(code, *arguments, **environment):
    """What a program says until it ends."""
    program = start(code, *arguments, **environment)
    try:
        said, _ = program.communicate(timeout=LIMIT)
    finally:
        program.kill()
    if program.returncode != 0:
        raise AssertionError(f"exit code {program.returncode}: {said}")
    return said.split()


class Forks(unittest.TestCase):
    def test_a_child_that_leaves_its_parents_block_releases_nothing(self):
        for held in (
            "[syncd.Lock()] * 2",
            "[syncd.RLock()] * 2",
            "[syncd.Semaphore(1)] * 2",
            "[syncd.BoundedSemaphore(1)] * 2",
            "(lambda lock: (syncd.Condition(lock), lock))(syncd.Lock())",
            "(lambda lock: (syncd.Condition(lock), lock))(syncd.RLock())",
            "(lambda lock: (lock.within(60), lock))(syncd.Lock())",
        ):
            with self.subTest(held):
                self.assertEqual(say(SYNC.format(held=held)), ["ok"])

    def test_neither_does_a_task_of_its(self):
        for held in (
            "[aio.Lock()] * 2",
            "[aio.RLock()] * 2",
            "[aio.Semaphore(1)] * 2",
            "[aio.BoundedSemaphore(1)] * 2",
            "(lambda lock: (aio.Condition(lock), lock))(aio.Lock())",
            "(lambda lock: (aio.Condition(lock), lock))(aio.RLock())",
        ):
            with self.subTest(held):
                self.assertEqual(say(TASK.format(held=held)), ["ok"])

    def test_nor_with_installed_semaphores(self):
        for kind in ("Lock", "RLock", "Semaphore", "BoundedSemaphore"):
            with self.subTest(kind):
                self.assertEqual(say(INSTALLED.format(kind=kind)), ["ok"])

    def test_what_a_child_takes_itself_it_releases(self):
        lock = syncd.RLock()
        with lock:
            pid = os.fork()
            if pid == 0:
                code = 1
                with contextlib.suppress(BaseException):
                    other = syncd.Lock()
                    with other:
                        pass
                    code = len(other.locked_by())
                os._exit(code)
            self.assertEqual(os.waitpid(pid, 0)[1], 0)


class Gone(unittest.TestCase):
    """A hold that was taken away is an error to whoever leaves its block."""

    def test_leaving_a_block_whose_lock_is_gone_raises_and_leaves_the_next_owner_alone(self):
        lock = syncd.Lock()
        taker = syncd.Lock.attach(lock.token)

        def take():
            taker.release()
            taker.acquire()

        for block in (lock, lock.within(60), syncd.Condition(lock)):
            with self.subTest(block=block):
                with self.assertRaises(ValueError):
                    with block:
                        thread = threading.Thread(target=take)
                        thread.start()
                        thread.join()
                self.assertIs(lock.acquire(False), False)
                taker.release()

    def test_a_release_through_another_object_is_seen_by_the_block(self):
        lock = syncd.Lock()
        other = pickle.loads(pickle.dumps(lock))
        with self.assertRaises(ValueError):
            with lock:
                other.release()
                self.assertFalse(lock.locked())
        self.assertIs(lock.acquire(False), True)
        lock.release()

    def test_a_recursive_lock_is_released_by_no_other_object(self):
        lock = syncd.RLock()
        other = pickle.loads(pickle.dumps(lock))
        with lock:
            with self.assertRaises(AssertionError):
                other.release()
            self.assertTrue(lock.locked())

    def test_a_block_that_was_not_entered_releases_nothing(self):
        for made in (syncd.Lock, syncd.Semaphore, syncd.BoundedSemaphore, syncd.RLock):
            with self.subTest(made.__name__):
                lock = made()
                other = pickle.loads(pickle.dumps(lock))
                with lock:
                    with self.assertRaises((ValueError, AssertionError)):
                        other.__exit__(None, None, None)
                    self.assertEqual(len(lock.locked_by()), 1)


class Taken(unittest.IsolatedAsyncioTestCase):
    """The same for tasks."""

    async def test_leaving_a_block_whose_lock_is_gone_raises_and_leaves_the_next_owner_alone(self):
        lock = aio.Lock()
        await lock.open()
        taker = syncd.Lock.attach(lock.token)
        for block in (lock, aio.Condition(lock)):
            with self.subTest(block=block):
                with self.assertRaises(ValueError):
                    async with block:
                        taker.release()
                        taker.acquire()
                self.assertIs(taker.acquire(False), False)
                taker.release()
                await lock.acquire()
                taker.release()
                taker.acquire()
                with self.assertRaises(ValueError):
                    lock.release()
                self.assertIs(taker.acquire(False), False)
                taker.release()

    async def test_a_task_is_one_owner(self):
        lock = aio.RLock()
        other = pickle.loads(pickle.dumps(lock))
        async with lock:
            self.assertIs(await other.acquire(10), True)
            self.assertIs(await asyncio.create_task(other.acquire(0)), False)
            other.release()
            self.assertTrue(await lock.locked())
        self.assertFalse(await lock.locked())


class Exits(unittest.TestCase):
    def test_what_is_still_to_be_sent_is_sent(self):
        code = """
import asyncio, sys, syncd
from syncd import aio

async def main():
    for _ in range(100):
        semaphore.release()

semaphore = aio.Semaphore.of(syncd.Semaphore.attach(sys.argv[1]))
asyncio.run(main())
"""
        semaphore = syncd.Semaphore(0)
        say(code, semaphore.token)
        for _ in range(100):
            self.assertIs(semaphore.acquire(True, 60), True)

    def test_a_call_that_ends_with_the_interpreter_does_no_harm(self):
        code = """
import asyncio
from syncd import aio

async def main():
    for _ in range(20):
        await aio.Lock().acquire(0)
        aio.Event().set()

asyncio.run(main())
"""
        for _ in range(10):
            say(code)


class Daemon:
    """A daemon that can be stopped and killed."""

    def __init__(self, test):
        directory = tempfile.TemporaryDirectory()
        test.addCleanup(directory.cleanup)
        self.socket = os.path.join(directory.name, "syncd.sock")
        self.process = None
        self.start()
        test.addCleanup(self.kill)

    def start(self):
        command = [sys.executable, "-m", "syncd", "--log", "error"]
        self.process = subprocess.Popen(command, env=dict(os.environ, SYNCD_SOCKET=self.socket))
        end = time.monotonic() + LIMIT
        while not self.is_up():
            assert time.monotonic() < end and self.process.poll() is None
            time.sleep(0.01)

    def is_up(self):
        code = "import syncd; syncd.Lock(name='up')"
        environment = dict(os.environ, SYNCD_SOCKET=self.socket)
        tried = subprocess.run(
            [sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL
        )
        return tried.returncode == 0

    def send(self, signum):
        self.process.send_signal(signum)

    def kill(self):
        self.process.kill()
        self.process.wait()


class Stopped(unittest.TestCase):
    """The daemon is stopped while a program uses it."""

    def talk(self, code, *then):
        """Has a program run to each of its pauses, where it says a word and reads a line; what is
        in `then` is done there. Gives the words."""
        daemon = Daemon(self)
        program = start(code, str(daemon.process.pid), SYNCD_SOCKET=daemon.socket)
        watchdog = threading.Timer(LIMIT, program.kill)
        watchdog.start()
        words = []
        try:
            for do in then:
                words.append(program.stdout.readline().strip())
                do(daemon)
                program.stdin.write("\n")
                program.stdin.flush()
            words += program.stdout.read().split()
            self.assertEqual(program.wait(), 0, words)
        finally:
            watchdog.cancel()
            program.kill()
            program.communicate()
        return words

    def test_no_call_of_aio_blocks_the_loop(self):
        code = """
import asyncio, os, signal, sys
from syncd import aio
pid = int(sys.argv[1])

async def main():
    lock, event, condition = aio.Lock(), aio.Event(), aio.Condition()
    semaphore, barrier = aio.Semaphore(1), aio.Barrier(2)
    await asyncio.gather(*(each.open() for each in (lock, event, condition, semaphore, barrier)))
    await lock.acquire()
    await condition.acquire()
    os.kill(pid, signal.SIGSTOP)
    answers = [
        condition.notify(), event.set(), event.is_set(), event.clear(), semaphore.release(),
        semaphore.get_value(), barrier.abort(), barrier.broken, barrier.n_waiting,
        barrier.reset(), lock.locked(), lock.locked_by(),
    ]
    lock.release()
    condition.release()
    answers.append(aio.Lock(name="new").locked())
    repr([lock, event, condition, semaphore, barrier])
    try:
        if answers[2]:
            pass
    except TypeError:
        print("await", flush=True)
    sys.stdin.readline()
    answers = [await answer for answer in answers]
    assert answers[2] is True and answers[5] == 2 and answers[7] is True, answers
    assert not await lock.locked() and not await condition._lock.locked()
    print("ok")

asyncio.run(main())
"""
        words = self.talk(code, lambda daemon: daemon.send(signal.SIGCONT))
        self.assertEqual(words, ["await", "ok"])

    def test_a_timeout_ends_by_the_programs_own_clock(self):
        code = """
import asyncio, os, signal, sys, syncd
from syncd import aio
lock, task_lock = syncd.Lock(), aio.Lock()
os.kill(int(sys.argv[1]), signal.SIGSTOP)
print(lock.acquire(timeout=1), asyncio.run(task_lock.acquire(timeout=1)), flush=True)
sys.stdin.readline()
"""
        words = self.talk(code, lambda daemon: daemon.send(signal.SIGCONT))
        self.assertEqual(words, ["False False"])

    def test_a_release_that_waits_for_room_lets_other_threads_run(self):
        code = """
import os, signal, sys, threading, time, syncd
lock, semaphore, ticks = syncd.Lock(), syncd.Semaphore(0), 0

def tick():
    global ticks
    while True:
        time.sleep(0.001)
        ticks += 1

released = 0
def crowd():
    global released
    while True:
        semaphore.release()
        released += 1

lock.acquire()
os.kill(int(sys.argv[1]), signal.SIGSTOP)
threading.Thread(target=crowd, daemon=True).start()
seen = -1
while released != seen or not seen:
    seen = released
    time.sleep(0.5)
threading.Thread(target=tick, daemon=True).start()
time.sleep(0.1)
before = ticks
lock.release()
print("ran" if ticks - before > 20 else f"stood-{ticks - before}", flush=True)
sys.stdin.readline()
os._exit(0)
"""
        words = self.talk(code, lambda daemon: daemon.send(signal.SIGCONT))
        self.assertEqual(words, ["ran"])

    def test_a_signals_handler_may_use_it_while_its_thread_connects(self):
        code = """
import os, signal, sys, syncd
taken = []

def handle(*_):
    # It waits, too: somebody else must let the daemon go on.
    print("handling", flush=True)
    taken.append(syncd.Lock().acquire())

signal.signal(signal.SIGALRM, handle)
os.kill(int(sys.argv[1]), signal.SIGSTOP)
signal.setitimer(signal.ITIMER_REAL, 0.2)
lock = syncd.Lock()
print(lock.acquire(), taken, flush=True)
"""

        def later(daemon):
            threading.Timer(0.5, daemon.send, (signal.SIGCONT,)).start()

        words = self.talk(code, later)
        self.assertEqual(words, ["handling", "True", "[True]"])

    def test_a_signals_handler_may_use_it_while_its_thread_waits(self):
        code = """
import os, signal, sys, syncd
lock, taken = syncd.Lock(), []
lock.acquire()

def handle(*_):
    taken.append(syncd.Lock().acquire())
    syncd.Lock.attach(lock.token).release()

signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.2)
print(lock.acquire(), taken)
"""
        self.assertEqual(self.talk(code), ["True", "[True]"])

    def test_a_wait_that_fails_leaves_no_depth(self):
        code = """
import asyncio, os, signal, sys, syncd
from syncd import aio

async def main():
    condition = aio.Condition(name="news")
    try:
        async with condition:
            async with condition:
                waiting = asyncio.ensure_future(asyncio.sleep(0.2))
                waiting.add_done_callback(lambda _: os.kill(int(sys.argv[1]), signal.SIGKILL))
                await condition.wait()
    except (ValueError, syncd.Error) as error:
        print("failed", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    lock = aio.RLock(name="after")
    rlock = condition._lock
    assert not rlock._holds, rlock._holds
    assert rlock.fencing_token is None
    async with lock:
        pass
    assert not await lock.locked()
    print("ok")

asyncio.run(main())
"""

        def again(daemon):
            daemon.process.wait()
            daemon.start()

        self.assertEqual(self.talk(code, again), ["failed", "ok"])


    def test_a_fork_while_an_object_is_created_leaves_the_child_without_it(self):
        code = """
import asyncio, os, signal, sys, syncd
from syncd import aio

async def main():
    await aio.Lock().open()
    os.kill(int(sys.argv[1]), signal.SIGSTOP)
    lock = aio.Lock()
    opening = asyncio.ensure_future(lock.open())
    await asyncio.sleep(0)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            asyncio.events._set_running_loop(None)
            asyncio.new_event_loop().run_until_complete(lock.acquire(60))
        except syncd.Error:
            code = 7
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    sys.stdin.readline()
    await opening
    async with lock:
        print("ok")

asyncio.run(main())
"""
        words = self.talk(code, lambda daemon: daemon.send(signal.SIGCONT))
        self.assertEqual(words, ["7", "ok"])


class Execs(unittest.TestCase):
    def test_the_new_program_has_neither_the_session_nor_its_socket(self):
        code = """
import os, sys, syncd
for take in syncd.Lock.attach(sys.argv[1]), syncd.RLock.attach(sys.argv[2]):
    assert take.acquire(False)
os.execv(sys.executable, [sys.executable, "-c", '''
import os, stat, sys
sockets = 0
for fd in range(256):
    try:
        sockets += stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        pass
import syncd
lock, rlock = syncd.Lock.attach(sys.argv[1]), syncd.RLock.attach(sys.argv[2])
print(sockets, lock.acquire(False), rlock.acquire(False))
''', *sys.argv[1:]])
"""
        lock, rlock = syncd.Lock(), syncd.RLock()
        self.assertEqual(say(code, lock.token, rlock.token), ["0", "False", "False"])
        for left in (lock, rlock):
            with self.assertWarns(syncd.AbandonedLockWarning):
                self.assertIs(left.acquire(True, LIMIT), True)
            self.assertEqual(left.abandoned.cause, "died")
            left.release()


class Namespaces(unittest.TestCase):
    def test_names_are_of_a_namespace(self):
        name, namespace = uuid.uuid4().hex, uuid.uuid4().hex
        context = multiprocessing.get_context("spawn", namespace=namespace)
        code = """
import asyncio, sys, syncd
from syncd import aio
async def main():
    return await aio.Lock(name=sys.argv[1]).acquire(0), await aio.Lock(name=sys.argv[1], namespace="").acquire(0)
print(syncd.Lock(name=sys.argv[1]).acquire(False), *asyncio.run(main()))
"""
        with syncd.Lock(name=name, namespace=namespace) as _:
            self.assertIs(context.Lock(name=name).acquire(False), False)
            self.assertIs(context.get_context("fork").Lock(name=name).acquire(False), False)
            self.assertIs(syncd.Lock(name=name).acquire(False), True)
            syncd.Lock(name=name).release()
            self.assertEqual(
                say(code, name, SYNCD_NAMESPACE=namespace), ["False", "False", "True"]
            )
            self.assertIn(namespace, context.Condition(name=f"{name}-condition").token)
            for kind in ("RLock", "Semaphore", "BoundedSemaphore", "Event"):
                self.assertIn(namespace, getattr(context, kind)().token)
            self.assertIn(namespace, context.Barrier(2).token)


class Faces(unittest.TestCase):
    def test_contexts_are_named_as_the_standard_ones(self):
        for method, name in (
            ("fork", "ForkContext"),
            ("spawn", "SpawnContext"),
            ("forkserver", "ForkServerContext"),
        ):
            context = multiprocessing.get_context(method)
            self.assertEqual(type(context).__name__, name)
            self.assertIsInstance(context.get_context("spawn").Lock(), syncd.Lock)

    @unittest.skipUnless(sysconfig.get_config_var("Py_GIL_DISABLED"), "this Python has its GIL")
    def test_a_free_threaded_python_gets_its_gil_back_and_says_so(self):
        code = """
import sys, warnings
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    import syncd
assert any("GIL" in str(warning.message) for warning in told), told
print(sys._is_gil_enabled())
"""
        self.assertEqual(say(code), ["True"])

    def test_a_with_statement_runs_no_python_of_the_packages(self):
        frames = []
        for block in (syncd.Lock(), syncd.RLock(), syncd.Semaphore(1), syncd.Condition()):
            sys.setprofile(lambda frame, event, _: event == "call" and frames.append(frame))
            try:
                with block:
                    pass
            finally:
                sys.setprofile(None)
        self.assertEqual([frame.f_code.co_name for frame in frames], [])


if __name__ == "__main__":
    unittest.main()
