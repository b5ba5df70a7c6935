"""Tables against plain Python, over crashes, lost answers, repeats, new columns, compaction and restarts."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.errors import UnavailableError
from headrace.keyindex import KeyIndex, hash_keys
from sinks.iceberg import splice
from sinks.iceberg.append import AppendTable
from sinks.iceberg.changes import fold, newest
from sinks.iceberg.current import CurrentTable
from sinks.iceberg.owned import OwnedTable, Prepared
from sinks.iceberg.slices import Slice
from tests.unit.sinks.iceberg.support import (
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

PARTITIONS = 2
# Operations, where "R" stands for a row that an incremental snapshot read; the last is seconds later.
CHANGE = st.tuples(
    st.integers(0, 7), st.sampled_from("cuudrRR"), st.sampled_from(["a", "b", ""]), st.sampled_from([0, 1, 30, 61])
)
TABLES = st.sampled_from(["bronze", "current", "current", "keyless"])
WIDE = pa.struct([("id", pa.int64()), ("name", pa.string()), ("n", pa.int64()), ("extra", pa.string())])


def place(event: dict[str, Any]) -> tuple[int, int]:
    """Where an event is in the source's log; a row read by a snapshot before any change from then on."""
    return log_place(event), -1 if event["op"] == "r" else event["transaction"]["total_order"]


def without_repeats(events: list[dict[str, Any] | None]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The events of a partition that are above all before them, with their offsets; those of snapshots always."""
    highest = (-1, -1)
    for offset, event in enumerate(events):
        if event is None:
            continue
        if event["op"] == "r" or place(event) > highest:
            yield offset, event
        if event["op"] != "r":
            highest = max(highest, place(event))


class Tables(RuleBasedStateMachine):
    """A log of change events in two partitions, and the tables that a sink makes of it.

    The model is the log itself: bronze is its prefix, current state is the fold of that prefix, less what is below the
    latest truncation in it, in whatever partition that is.
    """

    @initialize(joined=st.booleans())
    def start(self, joined: bool) -> None:
        self.patch = pytest.MonkeyPatch()
        if joined:
            # Compaction joins files as small as these without decoding them, where it can.
            self.patch.setattr(splice, "SMALLEST_ROWS", 1)
        self.folder = Path(tempfile.mkdtemp())
        self.catalog = catalog_in(self.folder)
        self.log: list[list[dict[str, Any] | None]] = [[] for _ in range(PARTITIONS)]
        self.lsn = self.clock = 0
        self.begins: dict[str, list[list[int]]] = defaultdict(lambda: [[] for _ in range(PARTITIONS)])
        self.wide = False
        self.tables: dict[str, OwnedTable] = {}
        self.restart()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            for name in self.tables:
                self.land(name)
            shutil.rmtree(self.folder)
            self.patch.undo()

    @rule(events=st.lists(CHANGE, min_size=4, max_size=14), wide=st.booleans())
    def changes(self, events: list[tuple[int, str, str, int]], wide: bool) -> None:
        """`wide`: from now on there is one column more, and another is wider."""
        self.wide |= wide and self.lsn > 60
        for number, op, name, later in events:
            self.lsn += 1
            self.clock += later
            row = {"id": number, "name": name, "n": self.lsn} | ({"extra": name * 2} if self.wide else {})
            partition = self.log[number % PARTITIONS]
            read = op == "R"
            partition.append(
                read_again(row, self.clock, self.lsn) if read else change(op, row, self.lsn, seconds=self.clock)
            )
            if op == "d":
                partition.append(None)

    @rule(partition=st.integers(0, PARTITIONS - 1))
    def truncate(self, partition: int) -> None:
        self.lsn += 1
        self.log[partition].append(change("t", None, self.lsn))

    @rule(number=st.integers(0, 7), other=st.integers(0, 7), name=st.sampled_from("ab"))
    def move(self, number: int, other: int, name: str) -> None:
        """A changed key: a delete and a create of one transaction, often in two partitions."""
        self.lsn += 1
        for key, op, order in ((number, "d", 1), (other, "c", 2)):
            row = {"id": key, "name": name, "n": self.lsn} | ({"extra": name * 2} if self.wide else {})
            self.log[key % PARTITIONS].append(change(op, row, self.lsn, order, seconds=self.clock))

    @rule(partition=st.integers(0, PARTITIONS - 1), count=st.integers(1, 6))
    def connect_repeats_itself(self, partition: int, count: int) -> None:
        """Snapshot rows have no position: a repeated snapshot is a later state, so those are left out."""
        tail = [event for event in self.log[partition][-count:] if event is None or event["op"] != "r"]
        self.log[partition] += tail

    @rule(name=TABLES, most=st.integers(3, 20))
    def land(self, name: str, most: int = 1 << 30) -> None:
        table = self.tables[name]
        slices = self.slices(name, most)
        if slices:
            table.commit(table.prepare(slices))
            table.care()
            self.compare(name)

    @rule(
        name=TABLES,
        most=st.integers(3, 20),
        call=st.integers(1, 25),
        after=st.booleans(),
        crash=st.booleans(),
    )
    def land_with_a_failing_call(self, name: str, most: int, call: int, after: bool, crash: bool) -> None:
        table = self.tables[name]
        slices = self.slices(name, most)
        if not slices:
            return
        prepared = table.prepare(slices)
        with faults(call, after=after):
            try:
                table.commit(prepared)
                table.care()
                prepared = None
            except UnavailableError:
                pass
        if crash:
            self.restart()
        elif prepared is not None:
            self.commit_again(table, prepared)
        self.compare(name)

    def commit_again(self, table: OwnedTable, prepared: Prepared) -> None:
        """After a failure: of the commit, which is repeated; or of the care after it, which is not."""
        if table.offsets != table.offsets | {s.partition: s.next_offset for s in prepared.slices}:
            table.commit(prepared)

    @rule()
    def restart(self) -> None:
        self.tables = {
            "bronze": AppendTable(self.catalog, "bronze.things", TOPIC, compact_every=2),
            "current": CurrentTable(self.catalog, "silver.things", TOPIC, compact_every=2),
            "keyless": CurrentTable(self.catalog, "silver.history", TOPIC, compact_every=2),
        }
        for name, table in self.tables.items():
            for partition, offset in table.open(source(PARTITIONS)).items():
                self.begins[name][partition].append(offset)

    @precondition(lambda self: hasattr(self, "tables"))
    @invariant()
    def offsets_are_within_the_log(self) -> None:
        for table in self.tables.values():
            assert all(offset <= len(self.log[p]) for p, offset in table.offsets.items())

    def compare(self, name: str) -> None:
        table = self.tables[name]
        if name == "bronze":
            expected = [
                (p, o, None if (event := self.log[p][o]) is None else event["op"])
                for p, end in table.offsets.items()
                for o in range(end)
            ]
            assert rows_of(table, "_kafka_partition", "_offset", "op") == sorted(expected, key=repr)
            return
        read = {p: without_repeats(self.log[p][:end]) for p, end in table.offsets.items()}
        if name == "current":
            read = {p: not_stale(events, self.begins[name][p]) for p, events in read.items()}
        fresh = [event for events in read.values() for _, event in events]
        floors = "tr" if name == "keyless" else "t"
        raising = [event for event in fresh if event["op"] in floors and not event["source"].get("snapshot")]
        floor = max(map(place, raising), default=(-1, -1))
        fresh = [event for event in fresh if event["op"] != "t" and place(event) >= floor]
        if name == "keyless":
            rows = [tuple(event["after"].values())[:3] for event in fresh if event["op"] in "cr"]
            assert rows_of(table, "id", "name", "n") == sorted(rows, key=repr)
            return
        state: dict[int, tuple[Any, ...]] = {}
        for event in fresh:
            row = event["after"] or event["before"]
            state[row["id"]] = (row["id"], row["name"], row["n"])
            if event["op"] == "d":
                del state[row["id"]]
        assert rows_of(table, "id", "name", "n") == sorted(state.values(), key=repr)

    def slices(self, name: str, most: int) -> list[Slice]:
        found = []
        table = self.tables[name]
        schema = envelope_schema(WIDE) if self.wide else envelope_schema()
        key = () if name == "keyless" else ("id",)
        for partition, events in enumerate(self.log):
            start = table.offsets.get(partition, 0)
            values = events[start : start + most]
            if values:
                found.append(slice_of(values, start, partition=partition, schema=schema, key_fields=key))
        return found


Tables.TestCase.settings = settings(
    max_examples=10, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestTables = Tables.TestCase


ROWS = st.lists(st.tuples(st.sampled_from("ccudt" + "r"), st.integers(0, 3)), max_size=30)


@settings(deadline=None, max_examples=25)
@given(ROWS, st.lists(st.integers(1, 12), min_size=1, max_size=5), st.booleans())
def test_a_table_without_a_key_is_a_multiset(steps, cuts, reopened):
    """Inserts, updates and deletes of equal rows, truncations and further snapshots, in any batches."""
    model: Counter[int] = Counter()
    events = []
    for number, (op, value) in enumerate(steps, 1):
        row = {"id": value, "name": None, "n": 0}
        if op == "t":
            model.clear()
            events.append(change("t", None, number))
        elif op == "r":
            model = Counter({value: 1})
            events.append(change("r", row, number))
        elif op == "c" or not model[value]:
            model[value] += 1
            events.append(change("c", row, number))
        else:
            model[value] -= 1
            after = {**row, "id": (value + 1) % 4}
            if op == "u":
                model[after["id"]] += 1
            events.append({**change(op, after, number), "before": row})
    with tempfile.TemporaryDirectory() as folder:
        catalog = catalog_in(Path(folder))
        table = CurrentTable(catalog, "silver.rows", TOPIC, compact_every=2)
        table.open(source(1))
        start = 0
        for size in [*cuts, 1 << 30]:
            part = events[start : start + size]
            if part:
                prepared = table.prepare([slice_of(part, start, key_fields=())])
                assert not prepared.rejects
                table.commit(prepared)
                table.care()
                start += len(part)
            if reopened:
                table = CurrentTable(catalog, "silver.rows", TOPIC, compact_every=2)
                table.open(source(1))
        assert rows_of(table, "id") == sorted(((value,) for value in model.elements()), key=repr)


KEYS = st.tuples(st.one_of(st.none(), st.text(max_size=20)), st.integers(-3, 3))
COMMANDS = st.lists(st.tuples(st.booleans(), st.lists(KEYS, min_size=1, max_size=40)), max_size=30)


@settings(deadline=None, max_examples=60)
@given(COMMANDS)
def test_the_index_is_a_dictionary(commands):
    """Puts (last wins), removals of known and unknown keys, growth and rebuilding of removed slots."""
    index, model, number = KeyIndex(16, versioned=True), {}, 0
    everything = set()
    for remove, keys in commands:
        hashes = hash_keys([pa.array([k[0] for k in keys], pa.string()), pa.array([k[1] for k in keys], pa.int32())])
        everything.update(keys)
        if remove:
            index.remove(hashes)
            for key in keys:
                model.pop(key, None)
        else:
            numbers = np.arange(number, number + len(keys))
            number += len(keys)
            added = index.put(hashes, numbers, numbers * 2)
            assert added == len(set(keys) - model.keys())
            model.update(zip(keys, numbers.tolist(), strict=True))
        assert len(index) == len(model)
    order = sorted(everything, key=repr)
    hashes = hash_keys([pa.array([k[0] for k in order], pa.string()), pa.array([k[1] for k in order], pa.int64())])
    assert index.locations(hashes).tolist() == [model.get(k, -1) for k in order]
    lowest = np.iinfo(np.int64).min
    assert index.versions(hashes).tolist() == [model[k] * 2 if k in model else lowest for k in order]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans())))
def test_a_fold_is_a_dictionary(changes):
    model: dict[int, int | None] = {}
    for i, (key, present) in enumerate(changes):
        model.pop(key, None)
        model[key] = i if present else None
    folded = fold(hash_keys([pa.array([k for k, _ in changes], pa.int64())]), np.array([p for _, p in changes], bool))
    assert folded.write.tolist() == sorted(i for i in model.values() if i is not None)
    assert len(folded.touched) == len(model)
    assert len(folded.keys) == len(folded.write)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9))), st.integers(0, 5))
def test_the_newest_revision_wins(rows, known):
    model: dict[int, tuple[int, int]] = {}
    for i, (key, revision) in enumerate(rows):
        if revision > known and revision >= model.get(key, (-1, 0))[0]:
            model[key] = (revision, i)
    keys = hash_keys([pa.array([k for k, _ in rows], pa.int64())])
    versions = np.array([r for _, r in rows], np.int64)
    folded = newest(keys, versions, np.full(len(rows), known))
    assert folded.write.tolist() == sorted(i for _, i in model.values())
