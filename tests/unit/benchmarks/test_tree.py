"""A measured process tree: its figures, and that nothing of it is left."""

from __future__ import annotations

import sys
import time

import psutil
import pytest

from benchmarks.tree import Tree
from headrace.errors import TerminalError

BURN = "import time\nwhile time.process_time() < 0.5: pass\n"
# A child that does not listen, in a process that does not wait for it.
FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN)\\n"
    "while time.process_time() < 0.5: pass\\nhold = bytearray(80 << 20); time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def test_cpu_time_is_that_of_the_process() -> None:
    with Tree([sys.executable, "-c", BURN], {}) as tree:
        tree.finish(60)
    assert tree.cpu_seconds >= 0.5


def test_descendants_count_and_are_ended() -> None:
    with Tree([sys.executable, "-c", FAMILY], {}) as tree:
        tree.wait(lambda: tree.peak_mb > 80, 60)
        child = int(tree.tail())
    assert tree.cpu_seconds >= 0.5
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_nothing_is_left_after_an_interrupt() -> None:
    seen: list[int] = []

    def interrupted() -> None:
        with Tree([sys.executable, "-c", "import time; time.sleep(600)"], {}) as tree:
            seen.append(tree.pid)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not psutil.pid_exists(seen[0])


def test_one_that_ends_too_early_says_what_it_said() -> None:
    with (
        Tree([sys.executable, "-c", "import sys; sys.exit('out of luck')"], {}) as tree,
        pytest.raises(TerminalError, match="out of luck"),
    ):
        tree.wait(lambda: False, 60)


def test_one_that_fails_is_an_error() -> None:
    with Tree([sys.executable, "-c", "1 / 0"], {}) as tree, pytest.raises(TerminalError, match="ZeroDivisionError"):
        tree.finish(60)


def test_patience_ends() -> None:
    with (
        Tree([sys.executable, "-c", "import time; time.sleep(600)"], {}) as tree,
        pytest.raises(TerminalError, match="not done"),
    ):
        tree.wait(lambda: False, 0.1)
