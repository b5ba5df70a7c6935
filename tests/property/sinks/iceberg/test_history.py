"""A history against plain Python, change by change, whatever the batches, crashes and restarts."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from headrace.errors import UnavailableError
from schemas.envelope import UNAVAILABLE
from sinks.iceberg.current import CurrentTable
from sinks.iceberg.history import HistoryTable
from sinks.iceberg.owned import OwnedTable
from sinks.iceberg.slices import Slice
from tests.unit.sinks.iceberg.support import (
    SOURCE,
    TOPIC,
    catalog_in,
    change,
    envelope_schema,
    faults,
    log_place,
    not_stale,
    read_again,
    rows_of,
    slice_of,
    source,
)

ROW = pa.struct([("id", pa.int64()), ("name", pa.string()), ("tags", pa.list_(pa.int32()))])
TIMED = pa.schema(
    [
        field.with_type(pa.struct([*SOURCE, ("ts_ms", pa.int64())])) if field.name == "source" else field
        for field in envelope_schema(ROW)
    ]
)
# Operations, where "x" stands for an update that does not send its unchanged name, "R" for a row that an incremental
# snapshot read.
PARTITIONS = 2
MOST = st.tuples(*[st.integers(0, 12)] * PARTITIONS)
CHANGE = st.tuples(st.integers(0, 5), st.sampled_from("cuuxdrRR"), st.sampled_from("ab"), st.integers(-2, 3))


@dataclass
class Version:
    row: tuple[Any, ...]
    begin: int
    end: int | None = None


class Oracle:
    """Versions by hand: dictionaries of open ones, one change at a time."""

    def __init__(self) -> None:
        self.open: dict[int, Version] = {}
        self.closed: list[Version] = []

    def close(self, key: int, time: int) -> int:
        version = self.open.pop(key, None)
        if version is None:
            return time
        version.end = max(time, version.begin)
        self.closed.append(version)
        return version.end

    def apply(self, event: dict[str, Any]) -> None:
        op, time = event["op"], event["source"]["ts_ms"]
        if op == "t":
            for key in list(self.open):
                self.close(key, time)
            return
        row = event["after"] or event["before"]
        key = row["id"]
        if op == "d":
            self.close(key, time)
            return
        have = self.open.get(key)
        name = have.row[1] if have is not None and row["name"] == UNAVAILABLE else row["name"]
        values = (key, name, row["tags"])
        if op == "r" and have is not None and have.row == values:
            return
        self.open[key] = Version(values, self.close(key, time))

    def rows(self) -> list[tuple[Any, ...]]:
        return sorted([(*v.row, v.begin, v.end) for v in (*self.closed, *self.open.values())], key=repr)


def without_repeats(events: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    highest = -1
    for offset, event in enumerate(events):
        lsn = log_place(event)
        if event["op"] == "r" or lsn > highest:
            yield offset, event
        if event["op"] != "r":
            highest = max(highest, lsn)


class History(RuleBasedStateMachine):
    """A log in two partitions, its history and its current state. After each landing the history is what the oracle
    makes of the log, its open versions are the current state's rows, and no record has left two versions."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.catalog = catalog_in(self.folder)
        self.log: list[list[dict[str, Any]]] = [[] for _ in range(PARTITIONS)]
        self.lsn = self.clock = 0
        self.begins: list[list[list[int]]] = [[[] for _ in range(PARTITIONS)] for _ in range(2)]
        self.time = 1000
        self.truncated = 0
        self.alive: set[int] = set()
        self.cleared: set[int] = set()
        self.restart()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.land()
            shutil.rmtree(self.folder)

    @rule(events=st.lists(CHANGE, min_size=1, max_size=10))
    def changes(self, events: list[tuple[int, str, str, int]]) -> None:
        for key, op, name, later in events:
            # What is read after a truncation was written after it: that change is before it in the partition.
            if (op in "uxr" and key not in self.alive) or (op == "R" and key in self.cleared):
                op = "c"
            self.lsn += 1
            self.clock += 15 * later
            # Clocks go back now and then.
            self.time = max(self.time + later, self.truncated + 1)
            row = {"id": key, "name": UNAVAILABLE if op == "x" else name, "tags": [1] if name == "a" else None}
            if op == "R":
                self.add(key % PARTITIONS, read_again(row, 0, self.lsn))
                continue
            self.add(key % PARTITIONS, change("u" if op == "x" else op, row, self.lsn))
            self.alive = self.alive - {key} if op == "d" else self.alive | {key}
            self.cleared.discard(key)

    @rule(partition=st.integers(0, PARTITIONS - 1))
    def truncate(self, partition: int) -> None:
        """Around it the clock goes forward only: see `sinks.iceberg.ends`."""
        self.lsn += 1
        times = [event["source"]["ts_ms"] for events in self.log for event in events]
        self.time = max([self.time, *times]) + 1
        self.alive.clear()
        self.cleared = set(range(6))
        self.add(partition, change("t", None, self.lsn))
        self.truncated = self.time

    @rule(partition=st.integers(0, PARTITIONS - 1), count=st.integers(1, 5))
    def connect_repeats_itself(self, partition: int, count: int) -> None:
        self.log[partition] += [event for event in self.log[partition][-count:] if event["op"] != "r"]

    @rule(most=MOST)
    def land(self, most: tuple[int, ...] = (1 << 30,) * PARTITIONS) -> None:
        for table in self.tables:
            if slices := self.next_of(table, most):
                table.commit(table.prepare(slices))
                table.care()
        self.compare()

    @rule(most=MOST, call=st.integers(1, 40), after=st.booleans(), crash=st.booleans())
    def land_with_a_failing_call(self, most: tuple[int, ...], call: int, after: bool, crash: bool) -> None:
        table = self.tables[0]
        slices = self.next_of(table, most)
        if not slices:
            return
        prepared = None
        with faults(call, after=after):
            try:
                prepared = table.prepare(slices)
                table.commit(prepared)
            except UnavailableError:
                pass
        if crash:
            self.restart()
            table = self.tables[0]
            slices = [s for s in slices if table.offsets.get(s.partition, 0) < s.next_offset]
            prepared = None
        if slices:
            table.commit(prepared or table.prepare(slices))
        self.compare()

    @rule()
    def restart(self) -> None:
        self.tables: list[OwnedTable] = [
            HistoryTable(self.catalog, "silver.things_history", TOPIC, of="silver.things", compact_every=2),
            CurrentTable(self.catalog, "silver.things", TOPIC, compact_every=3),
        ]
        for table, begins in zip(self.tables, self.begins, strict=True):
            for partition, offset in table.open(source(PARTITIONS)).items():
                begins[partition].append(offset)

    def read(self, number: int) -> list[dict[str, Any]]:
        """What a table has applied, in the log's order."""
        begins, offsets = self.begins[number], self.tables[number].offsets
        fresh = [without_repeats(self.log[p][: offsets.get(p, 0)]) for p in range(PARTITIONS)]
        read = chain(*(not_stale(events, begins[p]) for p, events in enumerate(fresh)))
        return sorted((event for _, event in read), key=log_place)

    def compare(self) -> None:
        history, current = self.tables
        oracle = Oracle()
        for event in self.read(0):
            oracle.apply(event)
        rows = rows_of(history, "id", "name", "tags", "valid_from", "valid_to")
        millis = [(*r[:3], *(None if t is None else round(t.timestamp() * 1000) for t in r[3:])) for r in rows]
        assert sorted(millis, key=repr) == oracle.rows()
        # After a restart one may know a change that the other has forgotten.
        if history.offsets == current.offsets and self.read(0) == self.read(1):
            now = [r[:3] for r in rows if r[4] is None]
            assert sorted(now, key=repr) == rows_of(current, "id", "name", "tags")
        assert len(set(rows_of(history, "_kafka_partition", "_offset"))) == len(rows)

    def add(self, partition: int, event: dict[str, Any]) -> None:
        event["source"]["ts_ms"] = self.time
        event["ts_ms"] = (1000 + self.clock) * 1000
        self.log[partition].append(event)

    def next_of(self, table: OwnedTable, most: tuple[int, ...]) -> list[Slice]:
        found = []
        for partition, count in enumerate(most):
            start = table.offsets.get(partition, 0)
            if values := self.log[partition][start : start + count]:
                found.append(slice_of(values, start, partition=partition, schema=TIMED))
        return found


History.TestCase.settings = settings(
    max_examples=8,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
TestHistory = History.TestCase
