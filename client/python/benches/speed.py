"""S2 and S3 of the speed table, from Python, each beside its rivals in the same run.

    speed.py [--rounds N]      pinned to one CPU, then not; prints a Markdown table

redis-py is measured where it can be imported and redis-server is on the path.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import syncd.multiprocessing

try:
    import redis
except ImportError:
    redis = None


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


class RedisSemaphore:
    """As a list, which is how Redis hands over: a release pushes, an acquire waits for an item."""

    def __init__(self, connect, key):
        self.connect, self.key, self.pid = connect, key, None

    def client(self):
        # A connection is its process's own.
        if self.pid != os.getpid():
            self.pid, self.redis = os.getpid(), self.connect()
        return self.redis

    def acquire(self):
        self.client().blpop([self.key])

    def release(self):
        self.client().rpush(self.key, b"")


def rivals(manager, connect):
    fork = multiprocessing.get_context("fork")
    yield "multiprocessing", fork, fork.Lock, fork.Semaphore
    yield "Manager", fork, manager.Lock, manager.Semaphore
    if connect:
        keys = itertools.count()
        yield (
            "redis-py",
            fork,
            lambda: connect().lock(f"lock {next(keys)}"),
            lambda _: RedisSemaphore(connect, f"semaphore {next(keys)}"),
        )
    ours = syncd.multiprocessing.get_context("fork")
    yield "**syncd**", ours, ours.Lock, ours.Semaphore


def measure(rounds, manager, connect):
    """By name: uncontended, hand-off. Rivals take turns, so that noise falls on all alike."""
    figures = {}
    for _ in range(5):
        for name, context, lock, semaphore in rivals(manager, connect):
            times = figures.setdefault(name, ([], []))
            times[0].append(uncontended(lock(), rounds // 5))
            times[1].append(hand_off(context, semaphore, rounds // 5))
    return {name: [statistics.median(values) for values in both] for name, both in figures.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20_000)
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
            wait_for(socket, daemon)
            rows = [__file__, "--rounds", str(arguments.rounds), "--rows", where]
            subprocess.run([sys.executable, *rows], env=environment, check=True)
            daemon.terminate()
            daemon.wait()


@contextlib.contextmanager
def redis_server():
    """Connects to a server of our own, on a Unix socket; None if there is none to be had."""
    program = shutil.which("redis-server")
    if not (redis and program):
        yield None
        return
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "redis.sock")
        # Neither a port nor a file: the settings that serve it best here.
        command = [program, "--port", "0", "--unixsocket", path, "--dir", directory, "--save", ""]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            wait_for(path, server)
            yield lambda: redis.Redis(unix_socket_path=path)
        finally:
            server.terminate()
            server.wait()


def wait_for(path, process):
    while not os.path.exists(path):
        if process.poll() is not None:
            raise SystemExit(f"{process.args[0]} ended before it listened")
        time.sleep(0.01)


def print_rows(rounds, where):
    with multiprocessing.get_context("fork").Manager() as manager, redis_server() as connect:
        figures = measure(rounds, manager, connect)
    for name, both in figures.items():
        cells = [
            f"{value:.1f} us | {rival / value:.1f} x"
            for value, rival in zip(both, figures["Manager"])
        ]
        print(f"| {name}, {where} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
