"""Several processes: deaths, forks, signals, and every way for an object to get to another.
"""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import uuid
import warnings

import syncd
import syncd.multiprocessing as multiprocessing

METHODS = ("fork", "spawn", "forkserver")


def take_and_wait(taken, method, event):
    getattr(taken, method)()
    event.set()
    time.sleep(600)


def use(lock, condition, event, barrier, semaphore, value):
    with lock:
        value.value += 1
    barrier.wait()
    with condition:
        condition.notify_all()
    with semaphore:
        event.set()


def try_to_take(lock):
    return lock.acquire(False)


def killed_holder(context, taken, method="acquire"):
    """Has a process take something, and kills it."""
    event = context.Event()
    process = context.Process(target=take_and_wait, args=(taken, method, event))
    process.start()
    event.wait()
    os.kill(process.pid, signal.SIGKILL)
    return process


class Deaths(unittest.TestCase):
    def test_the_next_is_told_of_a_killed_holder(self):
        for method in METHODS:
            for kind in ("Lock", "RLock"):
                with self.subTest(method=method, kind=kind):
                    context = multiprocessing.get_context(method)
                    lock = getattr(context, kind)()
                    process = killed_holder(context, lock)
                    with self.assertWarns(syncd.AbandonedLockWarning) as warned:
                        lock.acquire()
                    self.assertEqual(warned.filename, __file__)
                    self.assertEqual(warned.warning.abandonment, lock.abandoned)
                    self.assertEqual(lock.abandoned.pid, process.pid)
                    self.assertEqual(lock.abandoned.cause, "died")
                    lock.release()
                    with warnings.catch_warnings():
                        warnings.simplefilter("error")
                        with lock:
                            self.assertIsNone(lock.abandoned)
                    process.join()

    def test_a_with_blocks_permit_returns_and_a_bare_one_does_not(self):
        context = multiprocessing.get_context("fork")
        semaphore = context.Semaphore(2)
        killed_holder(context, semaphore).join()
        killed_holder(context, semaphore, "__enter__").join()
        warnings.simplefilter("ignore", syncd.AbandonedLockWarning)
        with semaphore:
            self.assertEqual(semaphore.get_value(), 0)
        self.assertEqual(semaphore.get_value(), 1)

    def test_a_release_just_before_the_end_is_not_lost(self):
        semaphore = syncd.Semaphore(0)
        for _ in range(50):
            if os.fork() == 0:
                semaphore.release()
                os._exit(0)
            os.wait()
            self.assertIs(semaphore.acquire(True, 60), True)


class Ways(unittest.TestCase):
    def test_all_of_them_reach_a_child(self):
        for method in METHODS:
            with self.subTest(method):
                context = multiprocessing.get_context(method)
                shared = (
                    context.Lock(),
                    context.Condition(),
                    context.Event(),
                    context.Barrier(3),
                    context.Semaphore(1),
                    context.Value("i", 0),
                )
                processes = [context.Process(target=use, args=shared) for _ in range(3)]
                for process in processes:
                    process.start()
                for process in processes:
                    process.join()
                self.assertEqual([process.exitcode for process in processes], [0, 0, 0])
                self.assertEqual((shared[2].is_set(), shared[5].value), (True, 3))

    def test_a_pools_queue_carries_them(self):
        lock = syncd.Lock()
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            self.assertIs(pool.apply(try_to_take, (lock,)), True)
            self.assertIs(lock.acquire(False), False)
            self.assertIs(pool.apply(try_to_take, (lock,)), False)

    def test_what_is_held_outlives_the_object_by_which_it_was_taken(self):
        lock = syncd.Lock()
        pickle.loads(pickle.dumps(lock)).acquire()
        self.assertIs(lock.acquire(False), False)
        lock.release()
        self.assertIs(lock.acquire(False), True)

    def test_a_stranger_comes_by_token_or_by_name(self):
        name = uuid.uuid4().hex
        lock = syncd.Lock(name=name)
        for code in ("syncd.Lock(name=sys.argv[1])", "syncd.Lock.attach(sys.argv[2])"):
            code = f"import sys, syncd; print({code}.acquire(False))"
            command = [sys.executable, "-c", code, name, lock.token]
            with lock:
                self.assertEqual(subprocess.check_output(command), b"False\n")
            self.assertEqual(subprocess.check_output(command), b"True\n")


class Daemons(unittest.TestCase):
    def test_one_is_started_where_none_is_installed(self):
        with tempfile.TemporaryDirectory() as directory:
            socket = os.path.join(directory, "syncd.sock")
            environment = dict(os.environ, SYNCD_SOCKET=socket, PATH=directory)
            del environment["SYNCD_NO_AUTOSTART"]
            code = "import syncd; print(syncd.Lock(name='one').acquire())"
            command = [sys.executable, "-c", code]
            try:
                self.assertEqual(subprocess.check_output(command, env=environment), b"True\n")
                # The same daemon: it remembers who died.
                told = subprocess.run(
                    command, env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                )
                self.assertIn(b"AbandonedLockWarning", told.stdout)
            finally:
                with open(f"{socket}.pid") as file:
                    os.kill(int(file.read()), signal.SIGKILL)


class Forks(unittest.TestCase):
    def child(self, test):
        """What a forked child says."""
        reader, writer = os.pipe()
        if os.fork() == 0:
            try:
                os.write(writer, repr(test()).encode())
            except BaseException as error:
                os.write(writer, repr(error).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as file:
            answer = file.read()
        os.wait()
        return answer

    def test_a_child_holds_nothing_of_its_parents(self):
        lock = syncd.RLock()
        with lock:
            self.assertEqual(self.child(lambda: lock.acquire(False)), "False")
            self.assertEqual(self.child(lambda: lock._semlock._count()), "0")
            self.assertIn("AssertionError", self.child(lock.release))
            self.assertEqual(repr(lock), "<RLock(MainProcess, 1)>")
        self.assertEqual(self.child(lambda: lock.acquire(False)), "True")

    def test_a_fork_amid_busy_threads_leaves_both_sides_working(self):
        lock, stop = syncd.Lock(), threading.Event()

        def busy():
            while not stop.is_set():
                with lock:
                    pass

        threads = [threading.Thread(target=busy) for _ in range(3)]
        for thread in threads:
            thread.start()
        answers = {self.child(lambda: lock.acquire(True, 60)) for _ in range(20)}
        stop.set()
        for thread in threads:
            thread.join()
        self.assertEqual(answers, {"True"})


class Interrupted(Exception):
    pass


def interrupt(*_):
    raise Interrupted


class Signals(unittest.TestCase):
    def send(self, signum):
        """Sends this process a signal, presumably when it waits."""
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signum))
        timer.start()
        self.addCleanup(timer.join)

    def handle(self, signum, handler):
        self.addCleanup(signal.signal, signum, signal.signal(signum, handler))

    def in_child(self, taken, then):
        """A process that holds something until it is told to let go."""
        context = multiprocessing.get_context("fork")
        held, release = context.Event(), context.Event()

        def hold():
            with taken:
                held.set()
                release.wait()

        process = context.Process(target=hold)
        process.start()
        held.wait()
        try:
            then(release)
        finally:
            release.set()
            process.join()

    def test_ctrl_c_ends_every_wait(self):
        self.handle(signal.SIGINT, signal.default_int_handler)
        lock, condition = syncd.Lock(), syncd.Condition()
        barrier = syncd.Barrier(2)

        def check(_):
            for wait in (
                lock.acquire,
                lock.__enter__,
                syncd.Semaphore(0).acquire,
                syncd.Event().wait,
                barrier.wait,
            ):
                with self.assertRaises(KeyboardInterrupt):
                    self.send(signal.SIGINT)
                    wait()

        self.in_child(lock, check)
        self.assertIs(lock.acquire(True, 60), True)
        self.assertEqual((barrier.n_waiting, barrier.broken), (0, False))
        with condition:
            with self.assertRaises(KeyboardInterrupt):
                self.send(signal.SIGINT)
                condition.wait()
            self.assertEqual(repr(condition), "<Condition(<RLock(MainProcess, 1)>, 0)>")

    def test_an_interrupted_acquire_leaves_nothing_taken(self):
        self.handle(signal.SIGUSR1, interrupt)
        lock = syncd.Lock()

        def check(release):
            # The grant and the signal race.
            try:
                threading.Timer(0.2, release.set).start()
                self.send(signal.SIGUSR1)
                lock.acquire()
                signal.pause()
            except Interrupted:
                # The signal may have come when acquire had just returned.
                if lock._semlock._count():
                    lock.release()

        for _ in range(5):
            self.in_child(lock, check)
            self.assertIs(lock.acquire(True, 60), True)
            lock.release()

    def test_a_handler_that_returns_lets_the_wait_go_on(self):
        seen = []
        self.handle(signal.SIGUSR1, lambda *_: seen.append(syncd.Lock().acquire()))
        lock = syncd.Lock()

        def check(release):
            self.send(signal.SIGUSR1)
            start = time.monotonic()
            self.assertIs(lock.acquire(True, 3), False)
            self.assertGreaterEqual(time.monotonic() - start, 3)
            self.assertEqual(seen, [True])
            self.send(signal.SIGUSR1)
            threading.Timer(0.5, release.set).start()
            self.assertIs(lock.acquire(), True)

        self.in_child(lock, check)


if __name__ == "__main__":
    unittest.main()
