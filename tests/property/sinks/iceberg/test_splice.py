"""Parquet files joined by their row groups have the rows, statistics and Bloom filters of the files."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.manifest import DataFile

from sinks.iceberg import footer, splice
from sinks.iceberg.encodings import writer_options

KINDS: list[tuple[pa.DataType, Any]] = [
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.float64(), st.floats(allow_nan=False)),
    (pa.string(), st.text(max_size=8)),
    (pa.bool_(), st.booleans()),
    (pa.binary(), st.binary(max_size=300)),
    (pa.list_(pa.int32()), st.lists(st.integers(0, 9), max_size=3)),
    (pa.struct([("a", pa.string())]), st.fixed_dictionaries({"a": st.text(max_size=3)})),
]


@st.composite
def files(draw: st.DrawFn) -> list[pa.Table]:
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=20))
    schema = pa.schema([pa.field(f"c{i}", kind) for i, (kind, _) in enumerate(kinds)])
    made = []
    for _ in range(draw(st.integers(1, 4))):
        size = draw(st.integers(1, 30))
        columns = [draw(st.lists(st.none() | values, min_size=size, max_size=size)) for _, values in kinds]
        made.append(pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema))
    return made


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """What is joined has a name of its own each time: DuckDB remembers files by their names."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def write(path: Path, table: pa.Table, **more: Any) -> DataFile:
    options = writer_options(table, (), [n for n in table.column_names if not pa.types.is_nested(table.field(n).type)])
    with pq.ParquetWriter(path, table.schema, store_schema=False, **options | more) as out:
        out.write_table(table, row_group_size=7)
    return DataFile.from_args(file_path=str(path), file_size_in_bytes=path.stat().st_size)


def joined(path: Path, written: list[DataFile]) -> tuple[pq.FileMetaData, int] | None:
    return splice.splice(PyArrowFileIO(), written, str(path))


def new_path(folder: Path) -> Path:
    return folder / f"{uuid.uuid4()}.parquet"


@pytest.fixture(autouse=True)
def however_small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splice, "SMALLEST_ROWS", 1)
        yield


@given(tables=files(), short_tail=st.booleans())
@settings(deadline=None)
def test_what_is_joined_reads_as_the_files_one_after_the_other(
    folder: Path, tables: list[pa.Table], short_tail: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if short_tail:
            patch.setattr(splice, "_TAIL", 8)
        written = [write(folder / f"{i}.parquet", table) for i, table in enumerate(tables)]
        path = new_path(folder)
        made = joined(path, written)
    assert made is not None
    metadata, size = made
    assert size == path.stat().st_size
    assert metadata.num_rows == sum(map(len, tables))
    assert metadata.equals(pq.read_metadata(path))
    expected = pa.concat_tables(tables)
    assert pq.read_table(path).equals(expected)
    groups = [pq.read_metadata(file.file_path).row_group(g) for file in written for g in range(_groups(file))]
    for at, group in enumerate(groups):
        for c in range(group.num_columns):
            mine = metadata.row_group(at).column(c)
            assert mine.statistics == group.column(c).statistics
            assert mine.total_compressed_size == group.column(c).total_compressed_size
    names = ", ".join(expected.column_names)
    assert duckdb.sql(f"SELECT {names} FROM '{path}'").arrow().read_all().to_pylist() == expected.to_pylist()
    assert pl.read_parquet(path).rows() == pl.from_arrow(expected).rows()  # type: ignore[union-attr]


def _groups(file: DataFile) -> int:
    groups: int = pq.read_metadata(file.file_path).num_row_groups
    return groups


@given(tables=files())
@settings(deadline=None)
def test_a_footer_that_is_read_and_written_is_the_same(folder: Path, tables: list[pa.Table]) -> None:
    file = write(folder / "one.parquet", tables[0])
    data = (folder / "one.parquet").read_bytes()
    parsed = footer.parse(data, len(data))
    assert footer.joined([parsed]) == data[parsed.body :]
    assert (parsed.rows, parsed.row_groups) == (len(tables[0]), _groups(file))


def test_bloom_filters_move_with_their_row_groups(folder: Path) -> None:
    tables = [pa.table({"id": [f"{file}-{i}" for i in range(20)]}) for file in range(3)]
    path = new_path(folder)
    assert joined(path, [write(folder / f"{i}.parquet", table) for i, table in enumerate(tables)])
    found = f"parquet_bloom_probe('{path}', 'id', ?)"
    probe = f"SELECT count(*) FILTER (bloom_filter_excludes), count(*) FROM {found}"
    for key in ("0-3", "1-9", "2-19"):
        excluded, groups = duckdb.execute(probe, [key]).fetchall()[0]
        assert groups == 9
        assert 6 <= excluded <= 8, "the row group that has it is not excluded, most others are"


def test_what_cannot_be_moved_or_is_worth_decoding_is_not_joined(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"a": list(range(20)), "b": ["x"] * 20})
    plain = write(folder / "0.parquet", table)
    path = new_path(folder)
    assert joined(path, [plain, plain]) is not None
    indexed = write(folder / "1.parquet", table, write_page_index=True)
    wider = write(folder / "2.parquet", table.append_column("c", pa.nulls(20, pa.int32())))
    for other in (indexed, wider):
        path.unlink(missing_ok=True)
        assert joined(path, [plain, other]) is None
        assert not path.exists()
    monkeypatch.setattr(splice, "SMALLEST_ROWS", 7)
    assert joined(path, [plain, plain]) is None, "20 rows in 3 groups"
    monkeypatch.setattr(splice, "SMALLEST_BYTES", 1)
    assert joined(path, [plain, plain]) is not None


def test_a_file_that_is_no_parquet_or_shorter_than_it_should_be_is_an_error(folder: Path) -> None:
    table = pa.table({"a": list(range(20))})
    file = write(folder / "0.parquet", table)
    with pytest.raises(ValueError, match="not a Parquet file"):
        footer.length(b"nothing at all")
    data = Path(file.file_path).read_bytes()
    with pytest.raises(ValueError, match="missing"):
        footer.parse(data[-16:], len(data))
