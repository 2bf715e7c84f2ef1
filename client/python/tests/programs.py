"""The article's three programs, their import line alone changed, and what they print.
"""

import os
import re
import subprocess
import sys
import tempfile
import unittest

PROGRAMS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs")


def run(name, method="fork"):
    """The lines that a program prints."""
    with open(os.path.join(PROGRAMS, name)) as file:
        source = file.read()
    line = "import syncd.multiprocessing as multiprocessing"
    source, changed = re.subn("(?m)^import multiprocessing$", line, source)
    assert changed == 1
    guard = "if __name__ == '__main__':\n"
    chosen = f"{guard}    multiprocessing.set_start_method({method!r})\n"
    assert guard in source
    if method != "fork":
        source = source.replace(guard, chosen)
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "program.py")
        with open(path, "w") as file:
            file.write(source)
        # Each line in one piece, and at once: as on a terminal.
        with open(os.path.join(directory, "sitecustomize.py"), "w") as file:
            file.write("import sys; sys.stdout.reconfigure(line_buffering=True)")
        path_list = os.pathsep.join([directory, os.environ["PYTHONPATH"]])
        done = subprocess.run(
            [sys.executable, path],
            env=dict(os.environ, PYTHONPATH=path_list),
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        return done.stdout.splitlines()


class TheArticlesPrograms(unittest.TestCase):
    def test_a_lock_keeps_the_counters_lines_in_pairs(self):
        for method in ("fork", "spawn", "forkserver"):
            with self.subTest(method):
                *lines, last = run("example_lock.py", method)
                self.assertEqual(last, "Final shared value: 3")
                self.assertEqual(len(lines), 6)
                for value, (one, two) in enumerate(zip(lines[::2], lines[1::2])):
                    name = re.match(r"Process (Worker-\d) ", one)[1]
                    self.assertEqual(one, f"Process {name} acquiring lock, value: {value}")
                    self.assertEqual(two, f"Process {name} releasing lock, value: {value + 1}")

    def test_a_semaphore_lets_two_work_at_a_time(self):
        *lines, last = run("example_semaphore.py")
        self.assertEqual(last, "All work completed.")
        self.assertEqual(len(lines), 10)
        working = 0
        for line in lines:
            working += 1 if "working on" in line else -1
            self.assertIn(working, (0, 1, 2))

    def test_a_condition_brings_each_item_to_the_consumer(self):
        *lines, last = run("example_condition.py")
        self.assertEqual(last, "Producer and consumer finished.")
        for who, does in (("Producer", "producing"), ("Consumer", "consuming")):
            own = [line for line in lines if line.startswith(who)]
            self.assertEqual(own, [f"{who} {who} {does} item: {i}" for i in range(5)])


if __name__ == "__main__":
    unittest.main()
