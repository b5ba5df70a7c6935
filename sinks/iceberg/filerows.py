"""Rows as data files have them: the live ones, those at some positions, some columns of all of them.

Columns are found by their field ids, and what is read is in the table's present schema.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.io import FileIO
from pyiceberg.io.pyarrow import _to_requested_schema, pyarrow_to_schema
from pyiceberg.manifest import DataFile
from pyiceberg.schema import Schema, prune_columns
from pyiceberg.table import FileScanTask, Table
from pyiceberg.types import ListType, MapType

from sinks.iceberg.encodings import ROW_GROUP
from sinks.iceberg.locations import distinct
from sinks.iceberg.parquet import DELETE_PATH_ID
from sinks.iceberg.shape import arrow_schema, field_id, fit_rows

Int64 = npt.NDArray[np.int64]

# Rows in memory at a time: with all columns, and with a few.
STEP, PIECE = ROW_GROUP // 2, 1 << 15


def live_rows(table: Table, task: FileScanTask, dead: Int64 | None = None) -> Iterator[pa.Table]:
    """The rows of a file that are not deleted, in the table's present schema, some at a time; without those at the
    positions `dead` either."""
    schema = table.schema()
    arrow = arrow_schema(schema)
    gone = deleted_positions(table.io, task)
    dead = distinct(gone if dead is None else np.concatenate([gone, dead]))
    with table.io.new_input(task.file.file_path).open() as stream, pq.ParquetFile(stream) as parquet:
        have = _known_columns(parquet, schema)
        position = 0
        for batch in parquet.iter_batches(STEP, columns=[field.name for field in have.fields]):
            start, end = np.searchsorted(dead, [position, position + batch.num_rows])
            alive = np.ones(batch.num_rows, np.bool_)
            alive[dead[start:end] - position] = False
            position += batch.num_rows
            if start < end:
                batch = batch.filter(pa.array(alive))
            if batch.num_rows:
                yield fit_rows(_to_requested_schema(schema, have, batch, allow_timestamp_tz_mismatch=True), arrow)


def column_batches(io: FileIO, file: DataFile, schema: Schema, names: Sequence[str]) -> Iterator[pa.Table]:
    """Columns of a data file by the field ids that the table's schema gives to `names`, `PIECE` rows at a time; deleted
    rows too. A column that the file, or the table, lacks is null. Raises `OSError`."""
    ids = {field.name: field.field_id for field in schema.fields}
    with io.new_input(file.file_path).open() as stream, pq.ParquetFile(stream) as parquet:
        by_id: Mapping[int | None, str] = {field_id(f): f.name for f in parquet.schema_arrow}
        have = {name: by_id.get(ids[name]) if name in ids else None for name in names}
        present = [column for column in have.values() if column is not None]
        for batch in parquet.iter_batches(PIECE, columns=present):
            columns = [pa.nulls(batch.num_rows) if at is None else batch.column(at) for at in have.values()]
            yield pa.table(columns, names=list(have))


def rows_at(table: Table, file: DataFile, positions: Int64) -> pa.Table:
    """Rows of a file at these positions, ascending, in the table's present schema. Only row groups that have some are
    read, but those whole. Raises `OSError`."""
    schema = table.schema()
    arrow = arrow_schema(schema)
    found = [arrow.empty_table()]
    with table.io.new_input(file.file_path).open() as stream, pq.ParquetFile(stream) as parquet:
        have = _known_columns(parquet, schema)
        names = [field.name for field in have.fields]
        end = 0
        for group in range(parquet.num_row_groups):
            start, end = end, end + parquet.metadata.row_group(group).num_rows
            mine = positions[np.searchsorted(positions, start) : np.searchsorted(positions, end)] - start
            if len(mine):
                for batch in parquet.read_row_group(group, columns=names).take(mine).combine_chunks().to_batches():
                    rows = _to_requested_schema(schema, have, batch, allow_timestamp_tz_mismatch=True)
                    found.append(fit_rows(rows, arrow))
    return pa.concat_tables(found)


def deleted_positions(io: FileIO, task: FileScanTask) -> Int64:
    """Positions of the task's file that its delete files remove, not in order, maybe repeated."""
    found = [np.empty(0, np.int64)]
    path = task.file.file_path
    for file in task.delete_files:
        with io.new_input(file.file_path).open() as stream, pq.ParquetFile(stream) as parquet:
            # Paths are long, and those of a file that is known to have one need not be read.
            if _paths(file) == {path.encode()}:
                rows = parquet.read(["pos"], use_threads=False)
            else:
                rows = parquet.read(["file_path", "pos"], use_threads=False)
                rows = rows.filter(pc.equal(rows.column("file_path"), path))
        found.append(rows.column("pos").to_numpy())
    positions: Int64 = np.concatenate(found)
    return positions


def _paths(deletes: DataFile) -> set[bytes | None]:
    """The first and the last path that a delete file names, as far as that is known."""
    return {(bounds or {}).get(DELETE_PATH_ID) for bounds in (deletes.lower_bounds, deletes.upper_bounds)}


def _known_columns(parquet: pq.ParquetFile, schema: Schema) -> Schema:
    """The columns of a file that the table still has, as the file has them."""
    # Lists and maps are found by what is in them: the library refuses their own ids.
    ids = {number for number in schema.field_ids if not isinstance(schema.find_type(number), ListType | MapType)}
    return prune_columns(pyarrow_to_schema(parquet.schema_arrow), ids, select_full_types=False)
