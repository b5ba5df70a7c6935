"""Live rows of some files into one file, a row group in memory at a time.

A file of 64 MB holds a gigabyte of columns: what is rewritten is read and written in steps, so that compaction needs no
more memory than a commit does. Rows keep the partition, and the partition spec, of the files they come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

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
from sinks.iceberg.parquet import FileWriter
from sinks.iceberg.shape import arrow_schema, fit_rows

Int64 = npt.NDArray[np.int64]

# What is in memory at a time: rows that are read, and columns that become one row group.
STEP = ROW_GROUP // 2
GROUP_BYTES = 24 << 20


@dataclass(frozen=True)
class Rewritten:
    """A new file, and the columns that were asked for of its rows, in their order."""

    file: DataFile
    kept: pa.Table


def rewrite(table: Table, tasks: Sequence[FileScanTask], keep: Sequence[str] = ()) -> Rewritten | None:
    """The live rows of `tasks`, files of one partition, in one file; None when no row lives. Raises `OSError`.

    A table with a sort order has all of these rows in memory for a while: they are sorted anew.
    """
    writer = replace(FileWriter.of(table, table.schema()), spec=table.specs()[tasks[0].file.spec_id])
    pieces = _row_groups(table, tasks)
    if writer.order.fields:
        return _sorted(writer, list(pieces), keep)
    first = next(pieces, None)
    if first is None:
        return None
    kept = []
    with writer.open(first) as out:
        for rows in chain([first], pieces):
            out.write(rows)
            kept.append(rows.select(keep))
    return Rewritten(out.file, pa.concat_tables(kept))


def _sorted(writer: FileWriter, pieces: list[pa.Table], keep: Sequence[str]) -> Rewritten | None:
    if not pieces:
        return None
    rows = pa.concat_tables(pieces)
    (written,) = writer.write(rows)
    return Rewritten(written.file, rows.select(keep).take(written.rows))


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


def _known_columns(parquet: pq.ParquetFile, schema: Schema) -> Schema:
    """The columns of a file that the table still has, as the file has them."""
    # Lists and maps are found by what is in them: the library refuses their own ids.
    ids = {number for number in schema.field_ids if not isinstance(schema.find_type(number), ListType | MapType)}
    return prune_columns(pyarrow_to_schema(parquet.schema_arrow), ids, select_full_types=False)


def _row_groups(table: Table, tasks: Sequence[FileScanTask]) -> Iterator[pa.Table]:
    """Live rows of all tasks in pieces that are a row group each: of `ROW_GROUP` rows, fewer where rows are wide."""
    waiting: list[pa.Table] = []
    count = size = 0
    for task in tasks:
        for rows in live_rows(table, task):
            waiting.append(rows)
            count += len(rows)
            size += rows.nbytes
            if count >= ROW_GROUP or size >= GROUP_BYTES:
                yield pa.concat_tables(waiting)
                waiting, count, size = [], 0, 0
    if waiting:
        yield pa.concat_tables(waiting)


def deleted_positions(io: FileIO, task: FileScanTask) -> Int64:
    """Positions of the task's file that its delete files remove, not in order, maybe repeated."""
    found = [np.empty(0, np.int64)]
    for file in task.delete_files:
        with io.new_input(file.file_path).open() as stream:
            rows = pq.read_table(stream)
        mine = pc.equal(rows.column("file_path"), task.file.file_path)
        found.append(rows.filter(mine).column("pos").to_numpy())
    positions: Int64 = np.concatenate(found)
    return positions
