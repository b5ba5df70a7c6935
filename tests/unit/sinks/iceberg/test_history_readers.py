"""Histories that are partitioned, compacted and read by others. On a catalog in SQLite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from schemas.contracts import load_contract
from sinks.iceberg.current import CurrentTable
from tests.unit.sinks.iceberg.history_support import COLUMNS, event, opened, timed
from tests.unit.sinks.iceberg.support import (
    ROW,
    TOPIC,
    catalog_in,
    duckdb_rows,
    land,
    rows_of,
    slice_of,
    source,
)


def moving(folder: Path) -> Any:
    """A contract by whose partitions a row moves when its name changes."""
    path = folder / "thing.avsc"
    storage = {"table": "silver.things", "history": "silver.things_history", "partition": ["name"]}
    fields = [{"name": "id", "type": "long"}, {"name": "name", "type": "string"}]
    record = {"type": "record", "name": "Thing", "owner": "somebody", "topic": TOPIC, "key": ["id"]}
    path.write_text(json.dumps(record | {"envelope": "debezium", "storage": storage, "fields": fields}))
    return load_contract(path)


@pytest.mark.parametrize("partitioned", [False, True])
def test_readers_agree_on_both_tables_after_moves_deletes_and_compaction(tmp_path, monkeypatch, partitioned):
    """pyiceberg, DuckDB and Polars read the same rows; those of the model; the open versions are the current state."""
    # Polars warns unless it is told who plans its scans.
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")
    catalog = catalog_in(tmp_path)
    options: dict[str, Any] = {"compact_every": 3, "contract": moving(tmp_path), "partitioned": partitioned}
    history = opened(catalog, **options)
    current = CurrentTable(catalog, "silver.things", TOPIC, **options)
    current.open(source())
    model: dict[int, str] = {}
    time = 0
    for round_ in range(8):
        events = []
        for number in range(12):
            time += 1
            if number == round_ and number in model:
                events.append(event("d", number, model.pop(number), time))
            elif (number + round_) % 3 or number not in model:
                model[number] = "abc"[(number * round_) % 3]
                events.append(event("u" if round_ else "r", number, model[number], time))
        for table in (history, current):
            land(table, slice_of(events, table.offsets.get(0, 0), schema=timed()))
            table.care()
        assert rows_of(current, "id", "name") == sorted(model.items(), key=repr)
        assert [row[:2] for row in rows_of(history, *COLUMNS) if row[3] is None] == sorted(model.items(), key=repr)
    for table, columns in ((history, COLUMNS), (current, ("id", "name"))):
        rows = rows_of(table, *columns)
        assert duckdb_rows(tmp_path, table, *columns) == rows
        assert table.table is not None
        location = catalog.load_table(table.table.name()).metadata_location
        assert sorted(pl.scan_iceberg(location).select(columns).collect().rows(), key=repr) == rows
        again = type(table)(catalog, table.name, TOPIC, **({"of": ""} if table is history else {}))
        again.open(source())
        assert len(again.index) == len(table.index) == len(model)
    open_files = [task for task in history.table.scan().plan_files() if not history._apart(task)]
    closed = sum(task.file.record_count for task in history.table.scan().plan_files() if history._apart(task))
    assert closed == len([row for row in rows_of(history, *COLUMNS) if row[3] is not None])
    assert open_files


def test_lists_and_maps_survive_compaction(tmp_path):
    """Files with nested columns can be rewritten."""
    nested = pa.struct([*ROW, ("tags", pa.list_(pa.int32())), ("more", pa.map_(pa.string(), pa.int64()))])
    table = CurrentTable(catalog_in(tmp_path), "silver.things", TOPIC, compact_every=2)
    table.open(source())
    for n in range(6):
        row = event("c", n, "a", n + 1, tags=[n, None], more=[("k", n)])
        land(table, slice_of([row], n, schema=timed(nested)))
        table.care()
    assert len(list(table.table.scan().plan_files())) < 4
    assert rows_of(table, "id", "tags", "more") == [(n, [n, None], [("k", n)]) for n in range(6)]
