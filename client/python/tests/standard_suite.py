"""CPython's own tests of multiprocessing, from the standard library at hand, run on syncd's locks.

    standard_suite.py (drop-in | install) (fork | spawn | forkserver) [TEST ...]

What can't apply is left out by name, with the reason.
"""

import signal
import sys
import unittest

import syncd

MODE, METHOD = sys.argv[1:3]

# A shell's job in the background ignores it, and then Python has no KeyboardInterrupt to raise.
signal.signal(signal.SIGINT, signal.default_int_handler)

CLASSES = {
    "WithProcessesTestLock",
    "WithProcessesTestSemaphore",
    "WithProcessesTestCondition",
    "WithProcessesTestEvent",
    "WithProcessesTestBarrier",
    "WithProcessesTestQueue",
    "WithProcessesTestPool",
    "WithProcessesTestPoolWorkerLifetime",
    "WithProcessesTestValue",
    "WithProcessesTestArray",
    "TestSimpleQueue",
    "SemLockTests",
}

# By mode: what can't apply, and why.
LEFT_OUT = {
    "drop-in": {
        "SemLockTests": "of the C type, which only install() replaces",
    },
    "install": {},
}[MODE]

if MODE == "install":
    syncd.install(force=True)

import test._test_multiprocessing as standard  # noqa: E402

if MODE == "drop-in":
    import syncd.multiprocessing as ours

    standard.multiprocessing = ours
    for name in set(ours.__all__) & set(vars(standard.ProcessesMixin)):
        value = getattr(ours, name)
        setattr(
            standard.ProcessesMixin, name, value if isinstance(value, type) else staticmethod(value)
        )

    def check_invariant(self, condition):
        """The original looks at the semaphores of which the standard Condition is made."""
        if self.TYPE == "processes":
            self.assertEqual(condition._object.waiters(), 0)

    standard._TestCondition.check_invariant = check_invariant
    assert isinstance(standard.multiprocessing.Lock(), syncd.Lock)
else:
    assert type(standard.multiprocessing.Lock()._semlock).token

standard.install_tests_in_module_dict(globals(), METHOD)

for name, test in list(globals().items()):
    if isinstance(test, type) and issubclass(test, unittest.TestCase):
        if name not in CLASSES or name in LEFT_OUT:
            del globals()[name]
            continue
        for method in LEFT_OUT:
            if hasattr(test, method):
                setattr(test, method, unittest.skip(LEFT_OUT[method])(getattr(test, method)))

if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
