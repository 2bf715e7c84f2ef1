"""syncd.aio: tasks as owners, and what becomes of them when they are cancelled.
"""

import asyncio
import os
import pickle
import threading
import unittest

import syncd
from syncd import aio


class Tasks(unittest.IsolatedAsyncioTestCase):
    async def test_a_lock_excludes_tasks_threads_and_processes(self):
        lock = aio.Lock()
        async with lock:
            self.assertEqual((await lock.locked_by())[0].pid, os.getpid())
            self.assertIs(await asyncio.create_task(lock.acquire(0)), False)
            self.assertIs(syncd.Lock.attach(lock.token).acquire(False), False)
            token = lock.fencing_token
        self.assertIs(await asyncio.create_task(lock.acquire(0.01)), True)
        lock.release()
        with self.assertRaises(ValueError):
            lock.release()
        async with pickle.loads(pickle.dumps(lock)) as _, aio.Lock() as _:
            self.assertTrue(await lock.locked())
            self.assertIsInstance(token, int)

    async def test_an_rlock_is_its_tasks(self):
        lock = aio.RLock()
        async with lock, lock:
            self.assertIs(await asyncio.create_task(lock.acquire(0)), False)

            async def release():
                lock.release()

            with self.assertRaises(AssertionError):
                await asyncio.create_task(release())
        self.assertFalse(await lock.locked())

    async def test_a_cancelled_acquire_has_taken_nothing(self):
        for lock in (aio.Lock(), aio.Semaphore(1), aio.BoundedSemaphore(1)):
            for _ in range(20):
                await lock.acquire()
                task = asyncio.create_task(lock.acquire())
                await asyncio.sleep(0.001)
                lock.release()
                task.cancel()
                try:
                    await task
                    lock.release()
                except asyncio.CancelledError:
                    pass
                self.assertIs(await lock.acquire(60), True)
                lock.release()

    async def test_a_condition_wakes_the_oldest(self):
        condition, woken = aio.Condition(), []

        async def wait(number):
            async with condition:
                await condition.wait()
                woken.append(number)

        tasks = []
        for number in range(3):
            tasks.append(asyncio.create_task(wait(number)))
            while await condition.waiters() <= number:
                await asyncio.sleep(0.001)
        async with condition:
            condition.notify(2)
        await asyncio.gather(*tasks[:2])
        async with condition:
            condition.notify_all()
        await tasks[2]
        self.assertEqual(woken, [0, 1, 2])
        async with condition:
            self.assertIs(await condition.wait(0.01), False)

    async def test_a_cancelled_wait_has_its_lock_again(self):
        condition = aio.Condition(aio.Lock())
        seen = []

        async def wait():
            async with condition:
                try:
                    await condition.wait()
                finally:
                    seen.append(await condition._lock.locked())

        task = asyncio.create_task(wait())
        while not await condition.waiters():
            await asyncio.sleep(0.001)
        task.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await task
        self.assertEqual(seen, [True])
        self.assertFalse(await condition._lock.locked())

    async def test_events_and_barriers(self):
        event = aio.Event()
        self.assertIs(await event.wait(0.01), False)
        task = asyncio.create_task(event.wait())
        event.set()
        self.assertIs(await task, True)

        acted = []

        async def act():
            acted.append(1)

        barrier = aio.Barrier(3, act)
        numbers = await asyncio.gather(*(barrier.wait() for _ in range(3)))
        self.assertEqual((sorted(numbers), acted), ([0, 1, 2], [1]))
        with self.assertRaises(threading.BrokenBarrierError):
            await barrier.wait(0.01)
        self.assertTrue(await barrier.broken)

    async def test_a_semaphores_block_is_owned(self):
        semaphore = aio.Semaphore(2)
        await semaphore.acquire()
        async with semaphore:
            self.assertEqual(await semaphore.get_value(), 0)
            self.assertEqual(len(await semaphore.locked_by()), 1)
        self.assertEqual(await semaphore.get_value(), 1)

    async def test_a_forked_child_has_tasks_of_its_own(self):
        lock = aio.Lock()
        async with lock:
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    loop = asyncio.new_event_loop()
                    asyncio.events._set_running_loop(None)
                    code = int(loop.run_until_complete(lock.acquire(0.01)))
                finally:
                    os._exit(code)
            self.assertEqual(os.waitpid(pid, 0)[1], 0)


if __name__ == "__main__":
    unittest.main()
