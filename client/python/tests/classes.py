"""The classes within one process: multiprocessing's signatures, values, exceptions and messages,
and what they have beyond.
"""

import pickle
import threading
import unittest
import uuid

import syncd


def in_thread(call):
    """What a call gives in another thread."""
    result = []
    thread = threading.Thread(target=lambda: result.append(call()))
    thread.start()
    thread.join()
    return result[0]


class Locks(unittest.TestCase):
    def test_a_lock_is_taken_once(self):
        lock = syncd.Lock()
        self.assertIs(lock.acquire(), True)
        self.assertIs(lock.acquire(False), False)
        self.assertIs(lock.acquire(True, 0.01), False)
        self.assertIs(lock.acquire(True, -1), False)
        self.assertIs(lock.acquire(block=False), False)
        self.assertIsNone(lock.release())
        with lock as entered:
            self.assertIs(entered, True)
            self.assertTrue(lock.locked())
        self.assertFalse(lock.locked())

    def test_a_lock_is_released_by_anybody_but_not_twice(self):
        lock = syncd.Lock()
        lock.acquire()
        in_thread(lock.release)
        with self.assertRaisesRegex(ValueError, "^semaphore or lock released too many times$"):
            lock.release()

    def test_an_rlock_counts_and_is_released_by_its_owner_alone(self):
        lock = syncd.RLock()
        message = "^attempt to release recursive lock not owned by thread$"
        with lock, lock:
            self.assertEqual(repr(lock), "<RLock(MainProcess, 2)>")
            self.assertIs(in_thread(lambda: lock.acquire(False)), False)
            with self.assertRaisesRegex(AssertionError, message):
                in_thread_raising(lock.release)
        self.assertEqual(repr(lock), "<RLock(None, 0)>")
        with self.assertRaisesRegex(AssertionError, message):
            lock.release()

    def test_threads_are_separate_owners(self):
        lock = syncd.RLock()
        in_thread(lock.acquire)
        self.assertIs(lock.acquire(False), False)

    def test_a_repr_names_the_owner(self):
        lock = syncd.Lock()
        self.assertEqual(repr(lock), "<Lock(owner=None)>")
        lock.acquire()
        self.assertEqual(repr(lock), "<Lock(owner=MainProcess)>")
        self.assertEqual(in_thread(lambda: repr(lock)), "<Lock(owner=SomeOtherThread)>")

    def test_tokens_rise_and_holders_are_known(self):
        lock = syncd.Lock()
        self.assertEqual((lock.fencing_token, lock.locked_by(), lock.abandoned), (None, [], None))
        with lock:
            first = lock.fencing_token
            (holder,) = lock.locked_by()
            self.assertEqual(holder.fencing_token, first)
        with lock:
            self.assertGreater(lock.fencing_token, first)

    def test_a_timeout_says_who_holds_it(self):
        lock = syncd.Lock()
        with lock.within(10):
            with self.assertRaises(syncd.LockTimeout) as raised, lock.within(0.01):
                self.fail("it was held")
            self.assertEqual(raised.exception.holders[0].fencing_token, lock.fencing_token)
            self.assertIsInstance(raised.exception, TimeoutError)

    def test_one_name_is_one_object(self):
        name = uuid.uuid4().hex
        one, other = syncd.Lock(name=name), syncd.Lock(name=name)
        with one:
            self.assertIs(in_thread(lambda: other.acquire(False)), False)
        self.assertEqual(other.name, name)
        with self.assertRaises(ValueError):
            syncd.Semaphore(2, name=name)


def in_thread_raising(call):
    raised = []

    def guarded():
        try:
            call()
        except Exception as error:
            raised.append(error)

    in_thread(guarded)
    raise raised[0]


class Semaphores(unittest.TestCase):
    def test_permits_are_counted(self):
        semaphore = syncd.Semaphore(2)
        self.assertEqual(repr(semaphore), "<Semaphore(value=2)>")
        semaphore.acquire()
        with semaphore:
            self.assertEqual(semaphore.get_value(), 0)
            self.assertIs(semaphore.acquire(False), False)
        for _ in range(3):
            semaphore.release()
        self.assertEqual(semaphore.get_value(), 4)

    def test_any_ends_at_the_greatest_value(self):
        semaphore = syncd.Semaphore(2**31 - 1)
        with self.assertRaisesRegex(ValueError, "^semaphore or lock released too many times$"):
            semaphore.release()
        semaphore.acquire()
        semaphore.release()
        self.assertEqual(semaphore.get_value(), 2**31 - 1)

    def test_a_bounded_one_ends_where_it_began(self):
        semaphore = syncd.BoundedSemaphore(2)
        self.assertEqual(repr(semaphore), "<BoundedSemaphore(value=2, maxvalue=2)>")
        with self.assertRaisesRegex(ValueError, "^semaphore or lock released too many times$"):
            semaphore.release()
        with semaphore:
            self.assertEqual(len(semaphore.locked_by()), 1)

    def test_a_bare_permit_is_nobodys(self):
        semaphore = syncd.Semaphore(1)
        semaphore.acquire()
        self.assertEqual(semaphore.locked_by(), [])


class Conditions(unittest.TestCase):
    def test_without_the_lock_nothing_is_waited_for(self):
        condition = syncd.Condition()
        with self.assertRaisesRegex(AssertionError, r"^must acquire\(\) condition before using wait"):
            condition.wait()
        with self.assertRaisesRegex(AssertionError, "^lock is not owned$"):
            condition.notify()

    def test_a_wait_returns_with_the_lock_as_deep_as_before(self):
        condition = syncd.Condition()
        with condition, condition:
            self.assertIs(condition.wait(0.01), False)
            self.assertEqual(repr(condition), "<Condition(<RLock(MainProcess, 2)>, 0)>")
        self.assertIs(in_thread(lambda: condition.acquire(False)), True)

    def test_a_notify_wakes_the_oldest(self):
        condition, woken, waiting = syncd.Condition(syncd.Lock()), [], threading.Semaphore(0)

        def wait(number):
            with condition:
                waiting.release()
                condition.wait()
                woken.append(number)

        threads = [threading.Thread(target=wait, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
            waiting.acquire()
            with condition:
                pass  # it waits by now
        for thread in threads:
            with condition:
                condition.notify()
            thread.join()
        self.assertEqual(woken, [0, 1, 2])

    def test_wait_for_gives_the_predicates_value(self):
        condition = syncd.Condition()
        with condition:
            self.assertEqual(condition.wait_for(lambda: 7), 7)
            self.assertEqual(condition.wait_for(lambda: 0, timeout=0.01), 0)


class EventsAndBarriers(unittest.TestCase):
    def test_an_event_stays_set(self):
        event = syncd.Event()
        self.assertIs(event.wait(0), False)
        event.set()
        self.assertIs(event.wait(), True)
        event.clear()
        self.assertIs(event.is_set(), False)

    def test_a_barrier_numbers_its_parties_and_one_acts(self):
        acted = []
        barrier = syncd.Barrier(3, action=lambda: acted.append(1))
        numbers = []
        threads = [threading.Thread(target=lambda: numbers.append(barrier.wait())) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual((sorted(numbers), acted), ([0, 1, 2], [1]))
        self.assertEqual((barrier.parties, barrier.n_waiting, barrier.broken), (3, 0, False))

    def test_an_action_that_raises_breaks_the_barrier(self):
        def fail():
            raise KeyError("action")

        barrier = syncd.Barrier(1, action=fail)
        with self.assertRaises(KeyError):
            barrier.wait()
        with self.assertRaises(threading.BrokenBarrierError):
            barrier.wait()
        barrier.reset()
        self.assertFalse(barrier.broken)

    def test_a_late_party_breaks_the_barrier(self):
        barrier = syncd.Barrier(2, timeout=0.01)
        with self.assertRaises(threading.BrokenBarrierError):
            barrier.wait()
        self.assertTrue(barrier.broken)


class Pickles(unittest.TestCase):
    def test_what_comes_out_is_the_same_object(self):
        lock = syncd.Lock()
        copy = pickle.loads(pickle.dumps(lock))
        with lock:
            self.assertIs(in_thread(lambda: copy.acquire(False)), False)
        condition = syncd.Condition(syncd.Lock())
        again = pickle.loads(pickle.dumps(condition))
        with again:
            again.notify_all()
        for made in (syncd.Semaphore(3), syncd.BoundedSemaphore(3), syncd.RLock()):
            self.assertEqual(repr(pickle.loads(pickle.dumps(made))), repr(made))
        event, barrier = pickle.loads(pickle.dumps((syncd.Event(), syncd.Barrier(4, timeout=1))))
        self.assertEqual((event.is_set(), barrier.parties), (False, 4))

    def test_a_token_is_of_one_kind(self):
        with self.assertRaises(ValueError):
            syncd.Semaphore.attach(syncd.Lock().token)
        with self.assertRaises(ValueError):
            syncd.Lock.attach("no token")


if __name__ == "__main__":
    unittest.main()
