"""multiprocessing's own primitives and Manager's, timed. Arguments: "multiprocessing" or
"manager", then "lock" (acquire and release, uncontended) or "semaphores" (one hand-off of a
ping-pong between two processes). Says "ready"; then answers each line, a number of repetitions,
with the median in nanoseconds, until its standard input ends. What it is compared with never
lies here."""

import contextlib
import multiprocessing
import sys
import time


def median(times):
    return sorted(times)[len(times) // 2]


def uncontended(lock, n):
    times = []
    for _ in range(n):
        start = time.perf_counter_ns()
        lock.acquire()
        lock.release()
        times.append(time.perf_counter_ns() - start)
    return median(times)


def handoffs(ours, theirs, n):
    times = []
    for _ in range(n):
        start = time.perf_counter_ns()
        theirs.release()
        ours.acquire()
        times.append((time.perf_counter_ns() - start) / 2)
    return median(times)


def give_back(ours, theirs):
    with contextlib.suppress(EOFError, OSError):  # the manager has gone
        while True:
            ours.acquire()
            theirs.release()


def main(rival, work):
    fork = multiprocessing.get_context("fork")
    maker = fork.Manager() if rival == "manager" else fork
    if work == "lock":
        lock = maker.Lock()
        measure = lambda n: uncontended(lock, n)
    else:
        ours, theirs = maker.Semaphore(0), maker.Semaphore(0)
        fork.Process(target=give_back, args=(theirs, ours), daemon=True).start()
        measure = lambda n: handoffs(ours, theirs, n)
    print("ready", flush=True)
    for line in sys.stdin:
        print(measure(int(line)), flush=True)


main(*sys.argv[1:])
