"""Append and upsert tables, and what all tables have in common, on a catalog in SQLite and files on disk."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog

from headrace.errors import FencedError, IdentityError, OffsetGapError, TerminalError, UnavailableError
from headrace.lake import open_duckdb
from schemas.contracts import BUILTIN, Contract, load_contract
from sinks.iceberg.append import AppendTable, DerivedTable
from sinks.iceberg.compact import EXPIRE_EVERY, KEEP_SNAPSHOTS, expire
from sinks.iceberg.current import CurrentTable
from sinks.iceberg.filerows import column_batches
from sinks.iceberg.parquet import MOST_PARTITIONS
from sinks.iceberg.sweep import Sweeper, orphans
from sinks.iceberg.upsert import UpsertTable
from tests.unit.sinks.iceberg.support import (
    ROW,
    TOPIC,
    catalog_in,
    change,
    duckdb_rows,
    envelope_schema,
    faults,
    lake,
    land,
    opened,
    rows_of,
    slice_of,
    source,
    thing,
)


def partitioned_things(folder: Path, **storage: object) -> Contract:
    path = folder / "thing.avsc"
    path.write_text(
        json.dumps(
            {
                "type": "record",
                "name": "Thing",
                "owner": "somebody",
                "topic": TOPIC,
                "key": ["id"],
                "storage": {"table": "silver.things", "mode": "current", "partition": ["bucket(3, id)"], **storage},
                "fields": [{"name": "id", "type": "long"}, {"name": "name", "type": "string", "pii": "name"}],
            }
        )
    )
    return load_contract(path)


def test_bronze_keeps_everything_as_received(bronze, tmp_path):
    prepared = land(bronze, slice_of([change("c", thing(1), 1), None, change("d", thing(1), 2), None], bad=[3]))
    assert rows_of(bronze, "_kafka_partition", "_offset", "op", "_key") == [
        (0, 0, "c", b"k0"),
        (0, 1, None, b"k1"),
        (0, 2, "d", b"k2"),
    ]
    assert [(r.rows.tolist(), r.rule, r.reasons) for r in prepared.rejects] == [([3], "broken", ("broken",))]
    assert bronze.offsets == {0: 4}
    assert duckdb_rows(tmp_path, bronze, "_offset", "after") == rows_of(bronze, "_offset", "after")


def test_columns_are_added_and_widened_and_other_types_refused(current, tmp_path):
    land(current, slice_of([change("c", thing(1), 1)]))
    wider = pa.struct([("id", pa.int64()), ("name", pa.string()), ("n", pa.int64()), ("extra", pa.float32())])
    row = {"id": 2, "name": "y", "n": 1 << 40, "extra": 0.5}
    land(current, slice_of([change("c", row, 2)], 1, schema=envelope_schema(wider)))
    land(current, slice_of([change("u", thing(1, "z"), 3)], 2))
    expected = [(1, "z", 0, None), (2, "y", 1 << 40, 0.5)]
    assert rows_of(current, "id", "name", "n", "extra") == expected
    assert duckdb_rows(tmp_path, current, "id", "name", "n", "extra") == expected
    text = pa.struct([("id", pa.int64()), ("name", pa.string()), ("n", pa.string())])
    event = change("c", {"id": 4, "name": "y", "n": "many"}, 4)
    prepared = land(current, slice_of([event], 3, schema=envelope_schema(text)))
    assert [(r.rule, r.reasons) for r in prepared.rejects] == [
        ("schema: type", ("n is string here but int64 in the table",))
    ]
    assert current.offsets == {0: 4}


@pytest.mark.parametrize(("partitioned", "sort"), [(False, []), (True, []), (True, ["name", "id"])])
def test_compaction_keeps_the_rows_and_the_index(catalog, tmp_path, partitioned, sort):
    contract = partitioned_things(tmp_path, sort=sort) if partitioned else None
    options = {"contract": contract, "partitioned": partitioned}
    table = opened(CurrentTable(catalog, "silver.things", TOPIC, compact_every=3, **options))
    model: dict[int, tuple[str, int]] = {}
    offset = 0
    rng = np.random.default_rng(5)
    for round_ in range(14):
        events = []
        for i in range(40):
            number = int(rng.integers(30))
            if rng.random() < 0.3 and number in model:
                events.append(change("d", thing(number), round_ * 100 + i))
                del model[number]
            else:
                model[number] = (f"r{round_}", i)
                events.append(change("u", thing(number, f"r{round_}", i), round_ * 100 + i))
        land(table, slice_of(events, offset))
        offset += len(events)
        table.care()
    expected = sorted(((k, *v) for k, v in model.items()), key=repr)
    assert rows_of(table, "id", "name", "n") == expected
    assert duckdb_rows(tmp_path, table, "id", "name", "n") == expected
    tasks = list(table.table.scan().plan_files())
    assert len(tasks) <= (12 if partitioned else 4)
    assert {len(task.file.partition) for task in tasks} == {int(partitioned)}
    assert any(s.summary.operation.value == "replace" for s in table.table.snapshots())
    again = opened(CurrentTable(catalog, "silver.things", TOPIC))
    assert len(again.index) == len(table.index) == len(model)
    for task in tasks:
        pieces = column_batches(table.table.io, task.file, table.table.schema(), sort) if sort else []
        rows = [row for piece in pieces for row in piece.to_pylist()]
        assert [tuple(r.values()) for r in rows] == sorted(tuple(r.values()) for r in rows)
        assert task.file.sort_order_id == (table.table.sort_order().order_id if sort else None)


def test_rows_scattered_over_many_partitions_share_a_file(catalog, tmp_path):
    """Files of a commit stay few, and every reader finds every row, by whatever it filters; the index too."""
    contract = partitioned_things(tmp_path, partition=["id"])
    table = opened(CurrentTable(catalog, "silver.things", TOPIC, contract=contract, partitioned=True, compact_every=2))
    many = MOST_PARTITIONS + 40
    events = [change("c", thing(i % many), i) for i in range(many + 30)]
    land(table, slice_of(events))
    tasks = list(table.table.scan().plan_files())
    assert len(tasks) == MOST_PARTITIONS
    assert sorted(task.file.record_count for task in tasks)[-1] == 41
    model = {i: ("x", 0) for i in range(many)}
    offset = len(events)
    for round_ in range(1, 4):
        changed = {i: (f"r{round_}", i) for i in range(0, many, round_ + 2)}
        land(table, slice_of([change("u", thing(i, *v), 1000 * round_ + i) for i, v in changed.items()], offset))
        offset += len(changed)
        model |= changed
        table.care()
    expected = sorted(((i, *v) for i, v in model.items()), key=repr)
    assert rows_of(table, "id", "name", "n") == expected
    assert duckdb_rows(tmp_path, table, "id", "name", "n") == expected
    for i in (0, many - 1):
        assert table.table.scan(f"id == {i}").to_arrow().select(["id", "name"]).to_pylist() == [
            {"id": i, "name": model[i][0]}
        ]
        with open_duckdb(lake(tmp_path)) as connection:
            sql = f"SELECT name FROM iceberg_scan('{table.table.metadata_location}') WHERE id = {i}"
            assert connection.execute(sql).fetchall() == [(model[i][0],)]
    again = opened(CurrentTable(catalog, "silver.things", TOPIC))
    assert len(again.index) == len(table.index) == many


def test_metadata_does_not_grow_with_commits(bronze):
    """After 300 commits: few snapshots, few manifests, few files, and metadata of the size it had after 100."""
    size = {}
    for commit in range(300):
        land(bronze, slice_of([None], commit))
        bronze.care()
        size[commit] = Path(bronze.table.metadata_location.removeprefix("file://")).stat().st_size
    snapshots = bronze.table.metadata.snapshots
    assert len(snapshots) <= KEEP_SNAPSHOTS + EXPIRE_EVERY
    assert len(bronze.table.current_snapshot().manifests(bronze.table.io)) <= 40
    assert len(list(bronze.table.scan().plan_files())) <= 60
    assert max(size[i] for i in range(200, 300)) <= 1.1 * max(size[i] for i in range(100, 200))
    assert len(rows_of(bronze, "_offset")) == 300


def test_upserts_keep_the_highest_revision(catalog):
    contract = load_contract(BUILTIN / "kpi_value.avsc")
    schema = pa.schema(
        {
            "kpi": pa.string(),
            "window_start": pa.timestamp("us", "UTC"),
            "group": pa.string(),
            "value": pa.float64(),
            "revision": pa.int64(),
        }
    )

    def value(kpi: str, number: float, revision: int) -> dict[str, object]:
        return {"kpi": kpi, "window_start": None, "group": "{}", "value": number, "revision": revision}

    def made():
        return opened(UpsertTable(catalog, "gold.kpi_values", "kpi.values", contract=contract))

    table = made()
    kpis = dict(topic="kpi.values", schema=schema)
    land(table, slice_of([value("a", 1, 1), value("b", 5, 2), value("a", 3, 4), value("a", 2, 3)], **kpis))
    assert rows_of(table, "kpi", "value") == [("a", 3.0), ("b", 5.0)]
    table = made()
    prepared = land(table, slice_of([value("a", 9, 4), value("b", 6, 5), value("b", 5, 2), None], 4, **kpis))
    assert rows_of(table, "kpi", "value") == [("a", 3.0), ("b", 6.0)]
    assert [r.rule for r in prepared.rejects] == ["tombstone"]


def test_replays_of_a_derived_topic_are_dropped_by_lane(catalog):
    schema = pa.schema([("source_offset", pa.int64()), ("source_topic", pa.string()), ("v", pa.int64())])

    def row(topic: str, offset: int) -> dict[str, object]:
        return {"source_offset": offset, "source_topic": topic, "v": offset}

    table = opened(DerivedTable(catalog, "silver.clean", "clean"))
    land(table, slice_of([row("a", 1), row("b", 1), row("a", 2), row("a", 1)], topic="clean", schema=schema))
    table = opened(DerivedTable(catalog, "silver.clean", "clean"))
    prepared = land(table, slice_of([row("a", 2), row("b", 2), row("a", 3)], 4, topic="clean", schema=schema))
    assert rows_of(table, "source_topic", "v") == [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 2)]
    assert prepared.dropped == 1
    null = land(table, slice_of([{"source_offset": None}], 7, topic="clean", schema=schema))
    assert [r.rule for r in null.rejects] == ["coordinates"]


def test_personal_data_leaves_no_bounds_in_manifests(catalog, tmp_path):
    table = opened(CurrentTable(catalog, "silver.things", TOPIC, contract=partitioned_things(tmp_path)))
    land(table, slice_of([change("c", thing(1, "Ada"), 1)]))
    (task,) = table.table.scan().plan_files()
    ids = {name: table.table.schema().find_field(name).field_id for name in ("id", "name")}
    assert ids["id"] in task.file.lower_bounds
    assert ids["name"] not in task.file.lower_bounds


def test_a_commit_that_lands_after_it_was_given_up_is_found(bronze):
    """The catalog answers with an error, the commit arrives late: no row is doubled, nothing is taken for a rival."""
    land(bronze, slice_of([None]))
    prepared = bronze.prepare([slice_of([None, None], 1)])
    held: list = []

    def lost(self, *args):
        if not held:
            held.append(args)
            raise OSError("connection reset")
        if len(held) == 1:
            held.append(None)
            commit_table(self, *held[0])
        return commit_table(self, *args)

    commit_table = SqlCatalog.commit_table
    with patch.object(SqlCatalog, "commit_table", lost):
        bronze.commit(prepared)
    assert len(held) == 2
    assert rows_of(bronze, "_offset") == [(0,), (1,), (2,)]
    assert len(bronze.table.snapshots()) == 2


def test_a_second_writer_is_fenced(catalog, bronze):
    land(bronze, slice_of([None, None]))
    zombie = opened(AppendTable(catalog, "bronze.things", TOPIC))
    land(bronze, slice_of([None], 2))
    before = rows_of(bronze, "_offset")
    with pytest.raises(FencedError, match="run only one"):
        land(zombie, slice_of([None, None], 2))
    assert rows_of(bronze, "_offset") == before


def test_a_zombie_of_a_table_kept_by_position_is_fenced_by_any_snapshot(catalog, current):
    land(current, slice_of([change("c", thing(1), 1)]))
    zombie = opened(CurrentTable(catalog, "silver.things", TOPIC))
    assert current.table is not None
    current.table.append(current.table.scan().to_arrow().slice(0, 0))
    with pytest.raises(FencedError, match="position"):
        land(zombie, slice_of([change("u", thing(1), 2)], 1))


def test_a_batch_that_leaves_a_hole_is_refused(bronze):
    land(bronze, slice_of([None]))
    with pytest.raises(TerminalError, match="starts at 5"):
        land(bronze, slice_of([None], 5))


def test_an_old_offset_is_cut_off(bronze):
    land(bronze, slice_of([None, None]))
    part = slice_of([change("c", thing(1), 1), None, change("c", thing(3), 3)], 0, bad=[1]).after(2)
    assert (part.start, len(part), part.rows.tolist(), part.bad.tolist()) == (2, 1, [0], [])
    land(bronze, part)
    assert rows_of(bronze, "_offset") == [(0,), (1,), (2,)]


def test_another_topic_under_the_same_name_halts(catalog, bronze):
    land(bronze, slice_of([None]))
    with pytest.raises(IdentityError, match="adopt"):
        AppendTable(catalog, "bronze.things", TOPIC).open(source(topic_id="other"))


def test_lost_records_are_recorded_and_halt(catalog, bronze):
    land(bronze, slice_of([None]))
    table = AppendTable(catalog, "bronze.things", TOPIC)
    for _ in range(2):
        with pytest.raises(OffsetGapError, match=r"1\.\.7 are gone"):
            table.open(source(begin=7))
    assert table.properties[f"headrace.gap.{TOPIC}.0"] == "1-7:open"
    with pytest.raises(IdentityError, match="the log ends at 0"):
        table.open(source(end=0))


def test_a_table_that_starts_late_says_so(catalog):
    table = opened(AppendTable(catalog, "bronze.things", TOPIC), begin=5)
    land(table, slice_of([None], 5))
    assert table.properties[f"headrace.gap.{TOPIC}.0"] == "0-5:before"


def test_the_sweep_removes_orphans_only_and_only_old_ones(tmp_path, bronze):
    for i in range(30):
        land(bronze, slice_of([None], i))
    assert bronze._committer is not None
    assert bronze.table is not None
    assert expire(bronze._committer) == 10
    stray = tmp_path / "warehouse" / "bronze" / "things" / "data" / "stray.parquet"
    stray.write_bytes(b"x")
    assert orphans(bronze.table, min_age=60) == []
    found = {Path(file.path).name for file in orphans(bronze.table, min_age=0)}
    assert "stray.parquet" in found
    assert sum(name.startswith("snap-") for name in found) == 10
    sweeper = Sweeper(min_age=0, grace=0)
    assert sweeper.sweep(bronze.table) == len(found)
    assert not stray.exists()
    assert len(rows_of(bronze, "_offset")) == 30


def test_a_store_that_names_files_otherwise_is_not_swept(bronze):
    land(bronze, slice_of([None]))
    with (
        patch("sinks.iceberg.sweep._referenced", lambda _: {"/elsewhere/data/a.parquet"}),
        pytest.raises(TerminalError, match="under the name"),
    ):
        orphans(bronze.table, min_age=0)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("crash", [False, True])
def test_any_failing_call_leaves_exactly_one_outcome(tmp_path, after, crash):
    """The N-th I/O call of a commit fails, for N = 1, 2, 3, ... until one passes untouched."""
    first = [change("c", thing(i), i + 1) for i in range(3)]
    second = [change("u", thing(0, "new"), 10), change("d", thing(1), 11), change("c", thing(7), 12)]
    happened = 0
    for n in range(1, 200):
        folder = tmp_path / str(n)
        folder.mkdir()
        catalog = catalog_in(folder)
        table = opened(CurrentTable(catalog, "silver.things", TOPIC))
        land(table, slice_of(first))
        with faults(n, after=after) as plan:
            prepared = table.prepare([slice_of(second, 3)])
            try:
                table.commit(prepared)
            except UnavailableError:
                if not crash:
                    table.commit(prepared)
        if crash:
            table = CurrentTable(catalog, "silver.things", TOPIC)
            at = table.open(source())[0]
            assert at in (3, 6)
            if at == 3:
                land(table, slice_of(second, 3))
        assert rows_of(table, "id", "name") == [(0, "new"), (2, "x"), (7, "x")], f"call {n}"
        assert table.offsets == {0: 6}
        land(table, slice_of([change("u", thing(7, "end"), 20)], 6))
        assert rows_of(table, "id", "name") == [(0, "new"), (2, "x"), (7, "end")], f"call {n}"
        happened += plan.happened
        if not plan.happened:
            break
    assert happened == n - 1 >= 8


def test_row_type_is_what_the_tests_say():
    assert envelope_schema().field("after").type == ROW
