"""How long an event takes from its production until a reader finds it in the Iceberg table, at a steady rate."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from benchmarks import tables
from benchmarks.row import Row
from benchmarks.system import PATIENCE, Run, System
from benchmarks.tree import Tree
from headrace.errors import TerminalError

RATE = 20_000
# How often the catalog is asked for a new snapshot: what is reported is late by up to this.
LOOK_SECONDS = 0.05
# A first helping, so that the table exists and nobody is measured while he starts.
FIRST = 2_000
# How long after the last event it may take to arrive.
LATEST_SECONDS = 120.0

Micros = npt.NDArray[np.int64]
# When the rows of a file were produced, and when they came.
Arrival = tuple[Micros, float]


def produce(run: Run, events: int) -> list[str]:
    asked = {
        "settings": run.settings.model_dump_json(),
        "topic": run.topic,
        "partitions": run.partitions,
        "rate": RATE,
        "events": events,
    }
    return [sys.executable, "-m", "benchmarks.pace", json.dumps(asked)]


def watch(location: Callable[[], str | None], events: int, going: Callable[[], bool]) -> list[Arrival]:
    """What each new snapshot brings, as it is seen, until one holds `events` rows. Raises `TerminalError`.

    Files are read at once: metadata of older snapshots does not stay for long.
    """
    last, known, found = None, set[str](), list[Arrival]()
    deadline = time.monotonic() + PATIENCE
    while True:
        at = location()
        if at is not None and at != last:
            last, now = at, time.time()
            for path in tables.data_files(at):
                if path not in known:
                    known.add(path)
                    found.append((tables.column(path, "measured_at").cast("int64").to_numpy(), now))
            if tables.total_records(at) >= events:
                return found
        if going():
            deadline = time.monotonic() + LATEST_SECONDS
        elif time.monotonic() > deadline:
            raise TerminalError(f"the last event is not there {LATEST_SECONDS:.0f} s after it was sent", where="table")
        time.sleep(LOOK_SECONDS)


def delays(arrivals: list[Arrival]) -> npt.NDArray[np.float64]:
    """Seconds from production to arrival of each event, at its first arrival: a rewritten file brings it again.

    `arrivals` are in order of their coming.
    """
    produced = np.concatenate([times for times, _ in arrivals])
    arrived = np.repeat([at for _, at in arrivals], [len(times) for times, _ in arrivals])
    events, first = np.unique(produced, return_index=True)
    found: npt.NDArray[np.float64] = arrived[first] - events / 1e6
    return found


def measure_freshness(system: System, run: Run) -> Row:
    """`run.events` at 20,000 a second into an empty topic, once the system has proved that it works."""
    with Tree(system.command(run), system.environment(run)) as tree:
        with Tree(produce(run, FIRST), {}) as first:
            first.finish(PATIENCE)
        tree.wait(lambda: tables.total_records(system.location(run)) >= FIRST, PATIENCE)
        start = time.time()
        with Tree(produce(run, run.events), {}) as producer:

            def both() -> bool:
                return tree.running() and producer.running()

            arrivals = watch(lambda: system.location(run), FIRST + run.events, both)
        seconds = time.time() - start
        tree.end()
    found = delays([(times[times >= start * 1e6], at) for times, at in arrivals])
    p50, p99 = np.percentile(found, [50, 99])
    return Row(
        "freshness",
        system.name,
        run.events,
        seconds,
        tree.cpu_seconds / run.events * 1e6,
        tree.peak_mb,
        len(found) == run.events,
        freshness_p50=float(p50),
        freshness_p99=float(p99),
    )
