"""How long a worker takes from its start until it is ready: kernels compiled, topics and schemas there, its lookup of
100,000 devices read."""

from __future__ import annotations

import time
import urllib.error
import urllib.request

from benchmarks.row import Row
from benchmarks.system import PATIENCE, Run, System
from benchmarks.tree import Tree
from headrace.errors import TerminalError
from stack.ports import choose

STARTS = 5
FIRST_PORT = 9900
LOOK_SECONDS = 0.01


def measure_start(system: System, run: Run, starts: int = STARTS) -> Row:
    """The median start, after one that is not counted; `events` is 1, and CPU is of the process to its end."""
    warm = [_start(system, run) for _ in range(1 + starts)][1:]
    seconds, cpu, peak = sorted(warm)[starts // 2]
    return Row("start", system.name, 1, seconds, cpu * 1e6, peak, rows_ok=True)


def _start(system: System, run: Run) -> tuple[float, float, float]:
    """Seconds until ready, CPU seconds, MB. Raises `TerminalError` when the process ends before."""
    port = choose({"worker": FIRST_PORT}, {})["worker"]
    begun = time.perf_counter()
    with Tree([*system.command(run), "--port", str(port)], system.environment(run)) as tree:
        while not _ready(port):
            if not tree.running() or time.perf_counter() - begun > PATIENCE:
                raise TerminalError(f"it did not get ready: {tree.tail()}", where=system.name)
            time.sleep(LOOK_SECONDS)
        seconds = time.perf_counter() - begun
    return seconds, tree.cpu_seconds, tree.peak_mb


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
