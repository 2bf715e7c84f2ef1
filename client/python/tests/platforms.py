"""install() on three platforms without working semaphores, each simulated in parent and children:
SemLock compiled out; no `_multiprocessing` and no `_posixshmem` at all; a SemLock that always
fails with ENOSYS. And what install() supplies, against the C type's contract.
"""

import os
import subprocess
import sys
import tempfile
import textwrap
import unittest

SITE = os.environ["SYNCD_TEST_SITE"]

# Runs at the start of every interpreter, as the platform's own Python would be built.
PLATFORMS = {
    "compiled out": """
        import _multiprocessing
        del _multiprocessing.SemLock, _multiprocessing.sem_unlink
    """,
    "no _multiprocessing": """
        import sys
        sys.modules["_multiprocessing"] = sys.modules["_posixshmem"] = None
    """,
    "ENOSYS": """
        import _multiprocessing
        class SemLock:
            SEM_VALUE_MAX = _multiprocessing.SemLock.SEM_VALUE_MAX
            def __new__(cls, *arguments, **keywords):
                raise OSError(38, "Function not implemented")
        _multiprocessing.SemLock = SemLock
    """,
}

PROGRAM = '''
import concurrent.futures, multiprocessing, os, signal, sys, warnings

def count(lock, value, queue, barrier, times):
    for _ in range(times):
        with lock:
            value.value += 1
    barrier.wait()
    queue.put(os.getpid())

def hold(lock, event):
    lock.acquire()
    event.set()
    signal.pause()

def take(queue):
    queue.put("item")

def main(method):
    context = multiprocessing.get_context(method)
    lock, queue, barrier = context.Lock(), context.Queue(), context.Barrier(3)
    value = context.Value("i", 0)
    processes = [
        context.Process(target=count, args=(lock, value, queue, barrier, 20)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    assert sorted(queue.get() for _ in processes) == sorted(p.pid for p in processes)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert value.value == 60

    with context.Pool(2) as pool:
        assert pool.map(abs, [-1, 2, -3]) == [1, 2, 3]
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
        assert list(executor.map(abs, [-4, 5])) == [4, 5]

    # A death is no deadlock, and the next is told.
    event = context.Event()
    process = context.Process(target=hold, args=(lock, event))
    process.start()
    event.wait()
    process.kill()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with lock:
            pass
    assert caught[-1].message.abandonment.pid == process.pid
    process.join()

    # A queue for one item looks like a Lock; what its putter took must stay taken.
    queue = context.Queue(1)
    process = context.Process(target=take, args=(queue,))
    process.start()
    process.join()
    assert queue.full()
    assert queue.get() == "item"
    assert queue.empty()

if __name__ == "__main__":
    main(sys.argv[1])
'''


def platform(directory, source):
    """The environment of a simulated platform."""
    with open(os.path.join(directory, "sitecustomize.py"), "w") as file:
        file.write(textwrap.dedent(source))
    return dict(os.environ, PYTHONPATH=os.pathsep.join([directory, SITE]))


class Platforms(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name
        self.program = os.path.join(self.directory, "program.py")
        with open(self.program, "w") as file:
            file.write(PROGRAM)

    def run_python(self, environment, *arguments):
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            cwd=self.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout

    def test_each_fails_without_and_works_with_it(self):
        for name, source in PLATFORMS.items():
            environment = platform(self.directory, source)
            code, output = self.run_python(environment, self.program, "fork")
            self.assertNotEqual(code, 0, output)
            for method in ("fork", "spawn", "forkserver"):
                with self.subTest(platform=name, method=method):
                    run = ("-m", "syncd", "run", self.program, method)
                    self.assertEqual(self.run_python(environment, *run), (0, ""))

    def test_install_decides_by_making_one(self):
        code = "import syncd; print(syncd.install(), syncd.install(force=True), syncd.install())"
        self.assertEqual(self.run_python(os.environ, "-c", code), (0, "False True True\n"))
        for name, source in PLATFORMS.items():
            with self.subTest(name):
                environment = platform(self.directory, source)
                code = "import syncd; print(syncd.install())"
                self.assertEqual(self.run_python(environment, "-c", code), (0, "True\n"))

    def test_it_fails_loudly_without_a_daemon(self):
        nobody = os.path.join(self.directory, "nobody")
        environment = dict(os.environ, SYNCD_SOCKET=nobody, SYNCD_NO_AUTOSTART="1")
        code, output = self.run_python(environment, "-c", "import syncd; syncd.install(force=True)")
        self.assertNotEqual(code, 0)
        self.assertIn("NoDaemon", output)

    def test_what_was_imported_and_decided_before_is_mended(self):
        source = PLATFORMS["ENOSYS"]
        code = """
import concurrent.futures.process, multiprocessing.synchronize
try:
    multiprocessing.Lock()
except OSError:
    pass
concurrent.futures.process._system_limits_checked = True
concurrent.futures.process._system_limited = "system provides too few semaphores"
import syncd
syncd.install()
with concurrent.futures.ProcessPoolExecutor(1) as executor:
    print(executor.submit(abs, -1).result())
"""
        self.assertEqual(
            self.run_python(platform(self.directory, source), "-c", code), (0, "1\n")
        )

    def test_the_environment_reaches_every_interpreter_of_a_site(self):
        site = os.path.join(self.directory, "site")
        os.mkdir(site)
        for name in ("syncd", "syncd.pth"):
            os.symlink(os.path.join(SITE, name), os.path.join(site, name))
        # A directory that has its .pth files read, as site-packages has.
        with open(os.path.join(self.directory, "sitecustomize.py"), "w") as file:
            file.write(f"import site; site.addsitedir({site!r})")
        code = "import _multiprocessing as m; print(hasattr(m.SemLock, 'token'))"
        for switch, expected in (("force", "True\n"), ("1", "False\n"), ("", "False\n")):
            environment = dict(os.environ, PYTHONPATH=self.directory, SYNCD_INSTALL=switch)
            self.assertEqual(self.run_python(environment, "-c", code), (0, expected))


class Contract(unittest.TestCase):
    """What was observed of CPython's SemLock."""

    @classmethod
    def setUpClass(cls):
        import syncd

        syncd.install(force=True)
        import _multiprocessing

        cls.module = _multiprocessing
        cls.number = 0

    def make(self, kind=1, value=1, maxvalue=1, unlink=True):
        type(self).number += 1
        self.name = f"/contract-{os.getpid()}-{self.number}"
        return self.module.SemLock(kind, value, maxvalue, self.name, unlink)

    def test_the_constructor_checks_its_arguments(self):
        make = self.module.SemLock
        with self.assertRaisesRegex(ValueError, "^unrecognized kind$"):
            make(2, 1, 1, "/x", True)
        for value, name in ((-1, "/x"), (1, ""), (1, "/a/b"), (1, "x" * 300)):
            with self.assertRaises(OSError) as raised:
                make(1, value, 1, name, True)
            self.assertEqual(raised.exception.errno, 22)
        with self.assertRaises(OverflowError):
            make(1, 2**31, 1, "/x", True)
        self.assertEqual(make(1, 3, 2, "no-slash", True)._get_value(), 3)
        keywords = dict(kind=0, value=0, maxvalue=1, name="/keywords", unlink=True)
        self.assertEqual(make(**keywords).kind, 0)

    def test_the_attributes_can_be_read_alone(self):
        semlock = self.make(value=2, maxvalue=5)
        self.assertEqual((semlock.kind, semlock.maxvalue, semlock.name), (1, 5, None))
        self.assertIsInstance(semlock.handle, int)
        self.assertEqual(self.module.SemLock.SEM_VALUE_MAX, 2147483647)
        with self.assertRaises(AttributeError):
            semlock.kind = 0
        named = self.make(unlink=False)
        self.assertEqual(named.name, self.name)
        self.module.sem_unlink(self.name)

    def test_a_name_is_taken_once_reopened_and_freed(self):
        semlock = self.make(value=3, maxvalue=3, unlink=False)
        with self.assertRaises(FileExistsError):
            self.module.SemLock(1, 1, 1, self.name, False)
        with self.assertRaises(FileExistsError):
            self.module.SemLock(1, 1, 1, self.name, True)
        again = self.module.SemLock._rebuild(semlock.handle, 1, 3, self.name)
        again.acquire()
        self.assertEqual(semlock._get_value(), 2)
        self.module.sem_unlink(self.name)
        with self.assertRaises(FileNotFoundError):
            self.module.sem_unlink(self.name)
        with self.assertRaises(FileNotFoundError):
            self.module.SemLock._rebuild(0, 1, 3, self.name)

    def test_counters(self):
        semlock = self.make(value=1, maxvalue=2)
        self.assertEqual((semlock._count(), semlock._is_mine()), (0, False))
        semlock.acquire()
        self.assertEqual((semlock._count(), semlock._is_mine(), semlock._is_zero()), (1, True, True))
        semlock.release()
        semlock.release()
        self.assertEqual((semlock._count(), semlock._is_mine()), (-1, False))
        with self.assertRaisesRegex(ValueError, "^semaphore or lock released too many times$"):
            semlock.release()
        self.assertEqual(semlock._count(), -1)

    def test_a_mutex_is_recursive_and_its_owners_alone(self):
        mutex = self.make(kind=0)
        message = "^attempt to release recursive lock not owned by thread$"
        with self.assertRaisesRegex(AssertionError, message):
            mutex.release()
        with mutex, mutex:
            self.assertEqual((mutex._count(), mutex._get_value()), (2, 0))
        self.assertEqual(mutex._get_value(), 1)

    def test_a_subclass_does_and_a_pickle_does_not(self):
        import pickle

        class Sub(self.module.SemLock):
            pass

        semlock = Sub(1, 1, 1, f"/sub-{os.getpid()}", True)
        self.assertIs(semlock.acquire(), True)
        with self.assertRaises(TypeError):
            pickle.dumps(semlock)


if __name__ == "__main__":
    unittest.main()
