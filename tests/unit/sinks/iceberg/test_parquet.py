"""Data files as other readers see them, and partition values against pyiceberg's own transforms."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.manifest import DataFile
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import assign_fresh_schema_ids
from pyiceberg.table import FileScanTask
from pyiceberg.transforms import (
    BucketTransform,
    DayTransform,
    HourTransform,
    IdentityTransform,
    MonthTransform,
    TruncateTransform,
    YearTransform,
)
from pyiceberg.types import DateType, LongType, StringType, TimestamptzType

from headrace.lake import open_duckdb
from sinks.iceberg import splice
from sinks.iceberg.filerows import deleted_positions
from sinks.iceberg.metadata_cache import transaction
from sinks.iceberg.parquet import FileWriter, transformed
from tests.unit.sinks.iceberg.support import catalog_in, lake

UTC = dt.UTC
TIMES = [dt.datetime(1969, 12, 31, 23, 59, tzinfo=UTC), dt.datetime(2026, 2, 28, 5, tzinfo=UTC), None]


@pytest.mark.parametrize("transform", [YearTransform(), MonthTransform(), DayTransform(), HourTransform()])
def test_times_are_transformed_as_pyiceberg_does(transform):
    column = pa.array(TIMES, pa.timestamp("us", "UTC"))
    micros = [None if t is None else int(t.timestamp() * 10**6) for t in TIMES]
    expected = [transform.transform(TimestamptzType())(m) for m in micros]
    assert transformed(column, transform, TimestamptzType()).to_pylist() == expected


def test_other_transforms():
    dates = pa.array([dt.date(1969, 12, 31), dt.date(2026, 1, 2)])
    assert transformed(dates, DayTransform(), DateType()).to_pylist() == [-1, 20455]
    words = pa.array(["iceberg", None, "ice"])
    assert transformed(words, TruncateTransform(width=3), StringType()).to_pylist() == ["ice", None, "ice"]
    bucket = BucketTransform(num_buckets=16)
    expected = [bucket.transform(LongType())(v) for v in (34, 35)]
    assert transformed(pa.array([34, 35]), bucket, LongType()).to_pylist() == expected
    assert transformed(words, IdentityTransform(), StringType()).equals(words)


ROW = pa.struct(
    [
        ("id", pa.int64()),
        ("name", pa.string()),
        ("amount", pa.decimal128(12, 2)),
        ("large", pa.decimal128(30, 4)),
        ("ratio", pa.float32()),
        ("tags", pa.list_(pa.string())),
        ("time", pa.time64("us")),
        ("data", pa.binary()),
        ("flag", pa.bool_()),
    ]
)


def row(i: int) -> dict[str, object]:
    return {
        "id": i - 500,
        "name": f"name {i}",
        "amount": Decimal(i) / 100 - 3,
        "large": Decimal(i) * -(10**20),
        "ratio": i / 4,
        "tags": [f"t{i % 3}"] * (i % 3),
        "time": dt.time(1, 2, i % 60),
        "data": bytes([i % 256]),
        "flag": i % 2 == 0,
    }


def test_every_reader_sees_the_rows_of_every_type(tmp_path: Path):
    """In DuckDB and in pyiceberg, values of nested columns included, over two partitions."""
    schema = pa.schema([("before", ROW), ("after", ROW), ("day", pa.date32()), ("kind", pa.string())])
    n = 700
    rows = [
        {
            "before": None if i % 3 == 0 else row(i),
            "after": row(i + 1),
            "day": dt.date(2026, 1, 1 + i % 2),
            "kind": "ab"[i % 2],
        }
        for i in range(n)
    ]
    catalog = catalog_in(tmp_path)
    catalog.create_namespace("d")
    ids = assign_fresh_schema_ids(catalog._convert_schema_if_needed(schema))
    day = PartitionField(ids.find_field("day").field_id, 1000, DayTransform(), "day_day")
    table = catalog.create_table("d.t", ids, partition_spec=PartitionSpec(day))
    writer = FileWriter(table.schema(), table.spec(), table.properties, table.io, table.location_provider())
    written = writer.write(pa.Table.from_pylist(rows, schema=schema))
    assert [len(w.rows) for w in written] == [350, 350]
    assert sorted(np.concatenate([w.rows for w in written]).tolist()) == list(range(n))
    staged = transaction(table)
    with staged.update_snapshot().fast_append() as append:
        for w in written:
            append.append_data_file(w.file)
    table = staged.commit_transaction()

    def ordered(found: list[dict[str, object]]) -> list[dict[str, object]]:
        return sorted(found, key=lambda r: r["after"]["id"])

    assert ordered(table.scan().to_arrow().to_pylist()) == rows
    assert table.scan("day = '2026-01-01' and kind = 'a'").to_arrow().num_rows == 350
    with open_duckdb(lake(tmp_path)) as connection:
        found = connection.execute(f"FROM iceberg_scan('{table.metadata_location}')").to_arrow_table()
    assert ordered(found.to_pylist()) == rows


@pytest.mark.parametrize(
    ("name", "transform"),
    [("day", DayTransform()), ("day", IdentityTransform()), ("kind", IdentityTransform()), ("id", BucketTransform(4)),
     ("amount", IdentityTransform()), ("at", HourTransform())],
)  # fmt: skip
def test_a_joined_file_stays_in_its_partition(tmp_path: Path, name: str, transform, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(splice, "SMALLEST_ROWS", 1)
    schema = pa.schema(
        [("id", pa.int64()), ("day", pa.date32()), ("kind", pa.string()), ("amount", pa.decimal128(9, 2)),
         ("at", pa.timestamp("us", "UTC"))]
    )  # fmt: skip
    catalog = catalog_in(tmp_path)
    catalog.create_namespace("d")
    ids = assign_fresh_schema_ids(catalog._convert_schema_if_needed(schema))
    field = PartitionField(ids.find_field(name).field_id, 1000, transform, "part")
    table = catalog.create_table("d.t", ids, partition_spec=PartitionSpec(field))
    writer = FileWriter.of(table, table.schema())
    some = {"id": 7, "day": dt.date(2026, 1, 2), "kind": "a/b", "amount": Decimal("1.50"), "at": TIMES[1]}
    for row in (some, dict.fromkeys(some)):
        files = [writer.write(pa.Table.from_pylist([row], schema=schema))[0].file for _ in range(3)]
        joined = writer.splice(files)
        assert joined is not None
        assert joined.partition == files[0].partition
        assert Path(joined.file_path).parent == Path(files[0].file_path).parent
        assert (joined.record_count, joined.spec_id) == (3, files[0].spec_id)
        assert (joined.lower_bounds, joined.upper_bounds) == (files[0].lower_bounds, files[0].upper_bounds)
        staged = transaction(table)
        with staged.update_snapshot().fast_append() as append:
            append.append_data_file(joined)
        table = staged.commit_transaction()
    rows = table.scan().to_arrow().to_pylist()
    assert sorted(rows, key=repr) == sorted([some] * 3 + [dict.fromkeys(some)] * 3, key=repr)


@pytest.mark.parametrize("bounded", [True, False])
def test_positions_are_those_of_the_file_itself(tmp_path: Path, bounded: bool):
    """Of a delete file of ours, and of one of another writer that names several data files."""
    catalog = catalog_in(tmp_path)
    catalog.create_namespace("d")
    table = catalog.create_table("d.t", pa.schema([("id", pa.int64())]))
    writer = FileWriter.of(table, table.schema())
    files = [writer.write(pa.table({"id": range(5)}))[0].file for _ in range(2)]
    deletes = writer.write_deletes(files[0], np.array([3, 1]))
    if not bounded:
        paths = [files[0].file_path, files[1].file_path, files[0].file_path]
        pq.write_table(pa.table({"file_path": paths, "pos": [1, 2, 3]}), deletes.file_path.removeprefix("file://"))
        deletes = DataFile.from_args(file_path=deletes.file_path)
    task = FileScanTask(files[0], delete_files={deletes})
    assert deleted_positions(table.io, task).tolist() == [1, 3]
    other = deleted_positions(table.io, FileScanTask(files[1], delete_files={deletes})).tolist()
    assert other == ([] if bounded else [2])
