"""What is chosen for a column, and that every reader gets back what was written with it."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.table import Table

from headrace.lake import open_duckdb
from sinks.iceberg.catalog import create_table
from sinks.iceberg.encodings import SAMPLE, writer_options
from sinks.iceberg.metadata_cache import transaction
from sinks.iceberg.parquet import BLOOM_FILTER, ROW_GROUP, FileWriter
from tests.unit.sinks.iceberg.support import catalog_in, envelope_schema, lake

N = ROW_GROUP + 3 * SAMPLE


def columns() -> pa.Table:
    """Two row groups of each kind of column, nulls and extremes included."""
    random = np.random.default_rng(3)
    some = random.random(N) < 0.1

    def with_nulls(values: object, kind: pa.DataType | None = None) -> pa.Array:
        return pa.array(values, kind, mask=some)

    inner = pa.StructArray.from_arrays(
        [with_nulls([f"inner {i}" for i in range(N)]), pa.array(np.arange(N) % 5)], names=["unique", "few"]
    )
    specials = np.array([np.nan, np.inf, -np.inf, -0.0])
    return pa.table(
        {
            "id": pa.array(np.arange(N)),
            "same": pa.array(["postgresql"]).take(pa.array(np.zeros(N, np.int64))),
            "few": with_nulls([f"state {i % 7}" for i in range(N)]),
            "unique": with_nulls([f'["{i}","{i + 5}"]' for i in range(N)]),
            "blob": with_nulls([b"\0" * (i % 9) + bytes([i % 256]) for i in range(N)], pa.binary()),
            "rounded": with_nulls(np.round(random.normal(5, 4, N), 1)),
            "random": pa.array(np.where(some, specials[np.arange(N) % 4], random.random(N))),
            "single": with_nulls(random.random(N).astype(np.float32)),
            "extreme": with_nulls(np.where(some, np.iinfo(np.int64).min, np.iinfo(np.int64).max - np.arange(N))),
            "price": with_nulls([Decimal(i - 5) / 100 for i in range(N)], pa.decimal128(12, 2)),
            "at": pa.array(np.arange(N) * 1000).cast(pa.timestamp("us", "UTC")),
            "flag": pa.array(some),
            "nothing": pa.nulls(N, pa.string()),
            "inner": inner,
        }
    )


def appended(table: Table, rows: pa.Table) -> Table:
    writer = FileWriter(table.schema(), table.spec(), table.properties, table.io, table.location_provider())
    staged = transaction(table)
    with staged.update_snapshot().fast_append() as append:
        for written in writer.write(rows):
            append.append_data_file(written.file)
    return staged.commit_transaction()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encodings")
    rows = columns()
    asked = {f"{BLOOM_FILTER}{name}": "true" for name in ("id", "unique", "inner.unique")}
    asked["write.metadata.metrics.column.unique"] = "none"
    return folder, rows, appended(create_table(catalog_in(folder), "d.t", rows.schema, properties=asked), rows)


def data_file(table: Table) -> pq.FileMetaData:
    (task,) = table.scan().plan_files()
    return pq.read_metadata(task.file.file_path.removeprefix("file://"))


def test_readers_get_back_what_was_written(written):
    folder, rows, table = written
    read = table.scan().to_arrow().sort_by("id").cast(rows.schema)
    with open_duckdb(lake(folder)) as connection:
        from_duckdb = connection.execute(f"FROM iceberg_scan('{table.metadata_location}') ORDER BY id").to_arrow_table()
        there = next(text for text in rows.column("unique").to_pylist() if text is not None)
        lookup = f'SELECT "unique" FROM iceberg_scan(\'{table.metadata_location}\') WHERE "unique" = $text'
        assert connection.execute(lookup, {"text": there}).fetchall() == [(there,)]
    for found in (read, from_duckdb.cast(rows.schema)):
        for name in rows.schema.names:
            ours, theirs = rows.column(name).combine_chunks(), found.column(name).combine_chunks()
            if name == "random":  # NaN is not equal to itself
                assert np.array_equal(ours.to_numpy(), theirs.to_numpy(), equal_nan=True)
            else:
                assert ours.equals(theirs), name


def test_encodings_go_by_type_and_by_what_repeats(written):
    _, _, table = written
    group = data_file(table).row_group(1)
    found = {c.path_in_schema: c for c in (group.column(i) for i in range(group.num_columns))}
    dictionary = {name for name, c in found.items() if "RLE_DICTIONARY" in c.encodings}
    assert dictionary - {"nothing"} == {"same", "few", "blob", "rounded"}
    assert all("DELTA_BYTE_ARRAY" in found[name].encodings for name in ("unique", "inner.unique"))
    assert all("DELTA_BINARY_PACKED" in found[n].encodings for n in ("id", "extreme", "price", "at", "inner.few"))
    assert all("BYTE_STREAM_SPLIT" in found[name].encodings for name in ("random", "single"))
    assert {name for name, c in found.items() if not c.is_stats_set} == {"unique"}
    assert {found[name].compression for name in ("id", "random")} == {"SNAPPY"}


def test_bounds_are_kept_of_what_is_looked_up(written):
    _, _, table = written
    (task,) = table.scan().plan_files()
    ids = {name: table.schema().find_field(name).field_id for name in ("id", "unique", "at", "rounded")}
    assert {name for name, number in ids.items() if number in task.file.lower_bounds} == {"id", "at", "rounded"}


def test_change_events_have_no_bounds_of_constants(tmp_path: Path):
    table = create_table(catalog_in(tmp_path), "d.t", envelope_schema())
    without = {name.rpartition("column.")[2] for name, mode in table.properties.items() if mode == "none"}
    assert without == {
        *("before.id", "before.name", "before.n"),
        *("source.schema", "source.table", "source.sequence", "source.snapshot", "transaction.id"),
    }


def test_an_empty_or_tiny_table_has_options_too():
    schema = pa.schema([("a", pa.string()), ("m", pa.map_(pa.string(), pa.float64())), ("s", pa.struct([]))])
    for rows in (schema.empty_table(), pa.Table.from_pylist([{"a": "x", "m": [("k", 1.0)]}], schema=schema)):
        assert writer_options(rows, [], ["gone"])["bloom_filter_options"] is None


def test_a_key_with_a_boolean_is_written_without_a_filter_for_it(tmp_path):
    table = pa.table({"id": [1, 2], "flag": [True, False]})
    options = writer_options(table, (), ["id", "flag"])
    assert set(options["bloom_filter_options"]) == {"id"}
    pq.write_table(table, tmp_path / "a.parquet", **options)
