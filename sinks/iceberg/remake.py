"""A table's live rows made anew, for what concerns all of them at once: a truncation, a default, another key.

One snapshot: files that do not change stay, others are replaced, a row group in memory at a time. It costs what reading
and writing the table costs, and happens once for each such change of the source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import pyarrow as pa
from pyiceberg.conversions import from_bytes
from pyiceberg.manifest import DataFile
from pyiceberg.table import FileScanTask, Table
from pyiceberg.table.snapshots import Operation
from pyiceberg.types import LongType

from schemas.envelope import Position
from sinks.iceberg.commit import Change
from sinks.iceberg.compact import paths_of
from sinks.iceberg.evolve import evolved
from sinks.iceberg.filerows import live_rows
from sinks.iceberg.parquet import FileWriter
from sinks.iceberg.places import COLUMNS, stand
from sinks.iceberg.shape import arrow_schema, fit_rows

Rows = Callable[[pa.Table], pa.Table]


def remade(
    table: Table,
    tasks: Iterable[FileScanTask],
    rows: Rows,
    properties: Mapping[str, str],
    *,
    columns: pa.Schema | None = None,
) -> Change:
    """The change that replaces files of the table by what `rows` makes of their live rows, called on pieces in order,
    under a schema that has `columns` too. Writes the new files. Raises `OSError`."""
    evolution = evolved(table, arrow_schema(table.schema()) if columns is None else columns)
    writer = FileWriter.of(table, evolution.schema)
    replaced = list(tasks)
    made = [file for task in replaced if (file := _remade(table, task, writer, rows))]
    return Change(
        {},
        properties,
        made,
        removed=paths_of(replaced),
        operation=Operation.OVERWRITE if made else Operation.DELETE,
        head=(table.metadata.current_snapshot_id,),
        columns=evolution.columns,
        schema=evolution.schema,
    )


def _remade(table: Table, task: FileScanTask, writer: FileWriter, rows: Rows) -> DataFile | None:
    """Rows keep their order, partition and partition spec."""
    writer = replace(writer, spec=table.specs()[task.file.spec_id])
    made = (fit_rows(rows(piece), writer.arrow) for piece in live_rows(table, task))
    pieces = (piece for piece in made if len(piece))
    first = next(pieces, None)
    if first is None:
        return None
    with writer.open(first) as out:
        out.write(first)
        for piece in pieces:
            out.write(piece)
    return out.file


def raised(table: Table, floor: Position, properties: Mapping[str, str]) -> Change:
    """The change that leaves only rows at or above a floor. Files that are above or below it as a whole, by their
    bounds, are not read. Raises `OSError`."""
    name = COLUMNS.names[0]
    number = table.schema().find_field(name).field_id if name in table.schema().column_names else None
    below, mixed = [], []
    for task in table.scan().plan_files():
        nulls = (task.file.null_value_counts or {}).get(number, 1) if number else task.file.record_count
        low, high = (bound(bounds, number) for bounds in (task.file.lower_bounds, task.file.upper_bounds))
        if nulls == task.file.record_count or (high is not None and high < floor.high):
            below.append(task)
        elif nulls or low is None or low <= floor.high:
            mixed.append(task)
    change = remade(table, mixed, lambda rows: rows.filter(pa.array(stand(rows, floor))), properties)
    return replace(change, removed=change.removed | paths_of(below))


def bound(bounds: Mapping[int, bytes] | None, number: int | None) -> int | None:
    """Of a column of integers, or of times as such."""
    found = (bounds or {}).get(number) if number else None
    return None if found is None else int(from_bytes(LongType(), found))
