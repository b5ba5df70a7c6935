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
from pyiceberg.manifest import DataFile
from pyiceberg.table import FileScanTask, Table

from sinks.iceberg.encodings import ROW_GROUP
from sinks.iceberg.filerows import column_batches, live_rows
from sinks.iceberg.parquet import FileWriter
from sinks.iceberg.shape import arrow_schema

Int64 = npt.NDArray[np.int64]

# Columns in memory that become one row group at most.
GROUP_BYTES = 24 << 20


@dataclass(frozen=True)
class Rewritten:
    """A new file, and the columns that were asked for of its rows, in their order."""

    file: DataFile
    kept: pa.Table


def rewrite(table: Table, tasks: Sequence[FileScanTask], keep: Sequence[str] = ()) -> Rewritten | None:
    """The live rows of `tasks`, files of one partition, in one file; None when no row lives. Raises `OSError`.

    Files whose rows all live are joined without decoding them where that does (`splice`). A table with a sort order has
    all of these rows in memory for a while: they are sorted anew.
    """
    writer = replace(FileWriter.of(table, table.schema()), spec=table.specs()[tasks[0].file.spec_id])
    if not writer.order.fields and not any(task.delete_files for task in tasks):
        files = [task.file for task in tasks]
        if spliced := writer.splice(files):
            return Rewritten(spliced, _columns(table, files, keep))
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


def _columns(table: Table, files: Sequence[DataFile], names: Sequence[str]) -> pa.Table:
    """All rows of files, by these columns of theirs."""
    wanted = arrow_schema(table.schema()).field
    found = [pa.schema([wanted(name) for name in names]).empty_table()]
    for file in files if names else ():
        for rows in column_batches(table.io, file, table.schema(), names):
            found.append(rows.cast(found[0].schema))
    return pa.concat_tables(found)


def _sorted(writer: FileWriter, pieces: list[pa.Table], keep: Sequence[str]) -> Rewritten | None:
    if not pieces:
        return None
    rows = pa.concat_tables(pieces)
    (written,) = writer.write(rows)
    return Rewritten(written.file, rows.select(keep).take(written.rows))


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
