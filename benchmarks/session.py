"""One run of the benchmarks: hops in turn, systems in turn, each alone on the machine; what fails loses its own row."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

from benchmarks import stages
from benchmarks.clients import CLIENTS, measure_client
from benchmarks.freshness import RATE, measure_freshness
from benchmarks.hops import CLIENT_HOPS, FRESHNESS, HOPS, START, Hop
from benchmarks.ours import AGENT
from benchmarks.ours import NAME as OURS
from benchmarks.row import Row
from benchmarks.shapes import READING
from benchmarks.start import STARTS, measure_start
from benchmarks.system import FEWEST, Run, System, measure, with_next_event
from benchmarks.topics import PARTITIONS, Topics
from headrace.config import Settings
from headrace.errors import HeadraceError, unforeseen

# A short run has one event of so many of the long one.
SHORT = 5
FRESH_SECONDS, QUICK_FRESH_SECONDS = 30, 5
# The ordinary producer is some 40 times slower: a share is enough to know its cost.
PLAIN_PRODUCE_SHARE = 10


class Session:
    """Measures into `rows`, as they come."""

    def __init__(self, settings: Settings, events: int, systems: Sequence[str], *, quick: bool) -> None:
        """No `systems` means all of them. A `quick` session makes no second, short run."""
        self.rows: list[Row] = []
        self._settings = settings
        self._events = events
        self._systems = systems
        self._quick = quick
        self._topics = Topics(settings)
        self._numbers = count(1)

    def close(self) -> None:
        self._topics.close()

    def run(self, hop: str) -> None:
        """Add the rows of one hop."""
        if hop in CLIENT_HOPS:
            for name, client in CLIENTS:
                if name == hop and self._wanted(client):
                    self._add(hop, client, partial(self._client, hop, client))
            return
        if hop == START:
            if self._wanted(OURS):
                self._add(hop, OURS, self._start)
            return
        method = self._fresh if hop == FRESHNESS else self._measured
        for system in HOPS["append" if hop == FRESHNESS else hop].systems:
            if self._wanted(system.name):
                self._add(hop, system.name, partial(method, hop, system))

    def _wanted(self, system: str) -> bool:
        return not self._systems or system in self._systems

    def _add(self, hop: str, system: str, measured: Callable[[], Row]) -> None:
        print(f"{hop:<10} {system} ...", file=sys.stderr, flush=True)
        try:
            row = measured()
        except HeadraceError as e:
            row = Row(hop, system, error=str(e))
        except Exception as e:
            # Whatever a peer breaks, the others' figures are kept; the page tells what it was.
            row = Row(hop, system, error=f"{unforeseen(e)}: {e}")
        self.rows.append(row)
        print(f"{'':<10} {said(row)}", file=sys.stderr, flush=True)

    def _fresh(self, _: str, system: System) -> Row:
        system.prepare()
        number = next(self._numbers)
        topic = self._topics.empty(f"bench.readings_{number}_fresh")
        self._topics.declare_readings(topic)
        with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
            events = RATE * (QUICK_FRESH_SECONDS if self._quick else FRESH_SECONDS)
            run = Run(self._settings, topic, events, PARTITIONS, Path(folder), READING, 1.0, number)
            return measure_freshness(system, run)

    def _start(self) -> Row:
        topic = HOPS["agent"].topic(self._topics, FEWEST)
        with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
            run = Run(self._settings, topic, FEWEST, PARTITIONS, Path(folder), READING, number=next(self._numbers))
            return measure_start(AGENT, run, 1 if self._quick else STARTS)

    def _client(self, hop: str, system: str) -> Row:
        if hop == "produce":
            events = self._events // (1 if system == OURS else PLAIN_PRODUCE_SHARE)
            topic = self._topics.empty(f"bench.produced_{next(self._numbers)}")
        else:
            events = self._events // (1 if system == OURS else SHORT)
            topic = self._topics.readings(events)
        row = measure_client(hop, system, self._settings, topic, events, PARTITIONS)
        if system != OURS or self._quick:
            return row
        topic = self._topics.empty(f"bench.produced_{next(self._numbers)}") if hop == "produce" else topic
        with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
            into = Path(folder) / "stages.json"
            measure_client(hop, system, self._settings, topic, events, PARTITIONS, into)
            # A client is measured after its imports: start-up is not in its figures.
            spent = {stage: ns for stage, ns in stages.read(into, events).items() if stage != stages.START}
            return replace(row, stages_ns=spent)

    def _measured(self, name: str, system: System) -> Row:
        system.prepare()
        hop, events = HOPS[name], system.events(self._events)
        if self._quick:
            return self._once(name, hop, system, events)
        if system.name == OURS:
            # Kernels are compiled once a machine, by whoever comes first.
            self._once(name, hop, system, min(events, FEWEST))
        row = self._once(name, hop, system, events)
        try:
            if system.name == OURS:
                row = replace(row, stages_ns=self._once(name, hop, system, events, profile=True).stages_ns)
            if hop.steady:
                row = with_next_event(row, self._once(name, hop, system, events // SHORT))
        except HeadraceError as e:
            # The long run's figures stand.
            row = replace(row, note="; ".join(filter(None, [row.note, f"a second run failed: {e}"])))
        return row

    def _once(self, name: str, hop: Hop, system: System, events: int, *, profile: bool = False) -> Row:
        topic = hop.topic(self._topics, events)
        with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
            into = Path(folder) / "stages.json" if profile else None
            run = Run(
                self._settings,
                topic,
                events,
                PARTITIONS,
                Path(folder),
                hop.schema,
                number=next(self._numbers),
                stages=into,
            )
            row = measure(name, system, run)
            return row if into is None else replace(row, stages_ns=stages.read(into, events))


def said(row: Row) -> str:
    """A row as one line for the terminal."""
    if row.error:
        return f"NOT MEASURED: {row.error}"
    line = f"{row.cpu_us_per_event:9.2f} us/event  {row.per_core:12,.0f} ev/s a core  {row.per_second:12,.0f} ev/s"
    more = "" if row.next_cpu_us is None else f"  one more {row.next_cpu_us:.2f} us"
    fresh = "" if row.freshness_p99 is None else f"  fresh {row.freshness_p50:.2f} s, p99 {row.freshness_p99:.2f} s"
    return f"{line}{more}{fresh}  {row.peak_rss_mb:5.0f} MB  rows {'ok' if row.rows_ok else 'WRONG'}"
