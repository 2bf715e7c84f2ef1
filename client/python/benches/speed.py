"""S2 and S3 of the speed table, from Python, each beside its rivals in the same run.

    speed.py [--rounds N]      pinned to one CPU, then not; prints a Markdown table

Never here: a goal that fails anything; a timing is a row in a table.
"""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time

import syncd.multiprocessing


def uncontended(lock, rounds):
    """The median of an acquire and its release, in microseconds."""
    acquire, release, clock = lock.acquire, lock.release, time.perf_counter_ns
    taken = []
    for _ in range(rounds):
        start = clock()
        acquire()
        release()
        taken.append(clock() - start)
    return statistics.median(taken) / 1000


def echo(ping, pong, rounds):
    for _ in range(rounds):
        ping.acquire()
        pong.release()


def hand_off(context, make, rounds):
    """Half of a round of ping-pong over two semaphores, in microseconds: the mean."""
    ping, pong = make(0), make(0)
    process = context.Process(target=echo, args=(ping, pong, rounds))
    process.start()
    # The first round waits for the process to be there.
    ping.release()
    pong.acquire()
    start = time.perf_counter_ns()
    for _ in range(rounds - 1):
        ping.release()
        pong.acquire()
    taken = time.perf_counter_ns() - start
    process.join()
    return taken / (rounds - 1) / 2000


def rivals(manager):
    fork = multiprocessing.get_context("fork")
    yield "multiprocessing", fork, fork.Lock, fork.Semaphore
    yield "Manager", fork, manager.Lock, manager.Semaphore
    ours = syncd.multiprocessing.get_context("fork")
    yield "**syncd**", ours, ours.Lock, ours.Semaphore


def measure(rounds, manager):
    """By name: uncontended, hand-off. Rivals take turns, so that noise falls on all alike."""
    figures = {}
    for _ in range(5):
        for name, context, lock, semaphore in rivals(manager):
            times = figures.setdefault(name, ([], []))
            times[0].append(uncontended(lock(), rounds // 5))
            times[1].append(hand_off(context, semaphore, rounds // 5))
    return {name: [statistics.median(values) for values in both] for name, both in figures.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5000)
    parser.add_argument("--rows", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rows:
        return print_rows(arguments.rounds, arguments.rows)
    everywhere = os.sched_getaffinity(0)
    print("| | S2: acquire + release | than Manager | S3: hand-off | than Manager |")
    print("|---|---|---|---|---|")
    print("| goal, pinned | | 3 x faster | | 5 x faster |", flush=True)
    for where, cpus in (("pinned", {min(everywhere)}), ("unpinned", everywhere)):
        # What is started from here is pinned with us.
        os.sched_setaffinity(0, cpus)
        with tempfile.TemporaryDirectory() as directory:
            socket = os.path.join(directory, "syncd.sock")
            environment = dict(os.environ, SYNCD_SOCKET=socket, SYNCD_NO_AUTOSTART="1")
            command = [sys.executable, "-m", "syncd", "--log", "warn"]
            daemon = subprocess.Popen(command, env=environment)
            while not os.path.exists(socket):
                time.sleep(0.01)
            rows = [__file__, "--rounds", str(arguments.rounds), "--rows", where]
            subprocess.run([sys.executable, *rows], env=environment, check=True)
            daemon.terminate()
            daemon.wait()


def print_rows(rounds, where):
    with multiprocessing.get_context("fork").Manager() as manager:
        figures = measure(rounds, manager)
    for name, both in figures.items():
        cells = [
            f"{value:.1f} us | {rival / value:.1f} x"
            for value, rival in zip(both, figures["Manager"])
        ]
        print(f"| {name}, {where} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
