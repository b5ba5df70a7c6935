"""Stored versions of a history on which truncations and baselines have something to say (see `ends`): found, and ended.

Files are looked at by the few columns that say when a row ends; those of which no row changes stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyiceberg.table import FileScanTask, Table
from pyiceberg.table.snapshots import Operation

from headrace.keyindex import Keys, hash_keys
from sinks.iceberg.commit import Change
from sinks.iceberg.ends import Ends
from sinks.iceberg.filerows import column_batches, deleted_positions
from sinks.iceberg.history_rows import FROM, PLACED, TO, ends_of, micros, timed
from sinks.iceberg.places import COLUMNS
from sinks.iceberg.remake import bound, remade
from sinks.iceberg.shape import arrow_schema
from sinks.iceberg.versions import NEVER

Int64 = npt.NDArray[np.int64]


def all_closed(table: Table, task: FileScanTask) -> bool:
    nulls = task.file.null_value_counts or {}
    return nulls.get(table.schema().find_field(TO).field_id) == 0


def ended(table: Table, ends: Ends, done: Ends, properties: Mapping[str, str]) -> Change:
    """The change that ends what `ends` has beyond `done`. Open and closed versions are in files of their own after it.
    Raises `OSError`."""
    unplaced = ends.first_new(done)
    since = int(ends.times[unplaced:].min()) if unplaced < len(ends.truncates) else NEVER
    changed, mixed = [], []
    for task in table.scan().plan_files():
        # Of other partitions more may have been read: what a change from after a truncation has ended, ends earlier.
        if (all_closed(table, task) and _latest(table, task) <= since) or _above(table, task, ends, done):
            continue
        rows, _ = live_columns(table, task, PLACED)
        after = ends_of(rows, ends, unplaced)
        if (after != micros(rows.column(TO))).any():
            changed.append(task)
            if (after == NEVER).any():
                mixed.append(task)
    if not changed:
        return Change({}, properties, head=(table.metadata.current_snapshot_id,))

    def closed(rows: pa.Table) -> pa.Table:
        after = ends_of(rows, ends, unplaced)
        return timed(rows, micros(rows.column(FROM)), after).filter(pa.array(after != NEVER))

    def still_open(rows: pa.Table) -> pa.Table:
        return rows.filter(pa.array(ends_of(rows, ends, unplaced) == NEVER))

    change, rest = remade(table, changed, closed, properties), remade(table, mixed, still_open, {})
    return replace(change, data_files=[*change.data_files, *rest.data_files], operation=Operation.OVERWRITE)


def _latest(table: Table, task: FileScanTask) -> int:
    """No version in the file ends later, by its bounds; `NEVER` where they do not say."""
    latest = bound(task.file.upper_bounds, table.schema().find_field(TO).field_id)
    return NEVER if latest is None else latest


def _above(table: Table, task: FileScanTask, ends: Ends, done: Ends) -> bool:
    """Whether a file's bounds say that no truncation concerns it, and no baseline is new."""
    number = table.schema().find_field(COLUMNS.names[0]).field_id
    lowest = bound(task.file.lower_bounds, number)
    placed = (task.file.null_value_counts or {}).get(number) == 0
    highest = ends.truncates[-1][0].high if ends.truncates else -1
    return placed and lowest is not None and lowest > highest and ends.baselines == done.baselines


def reopened(table: Table, task: FileScanTask, key: Sequence[str], keys: Keys, done: Ends, since: int) -> Int64:
    """Positions of versions, of these keys among others, that a truncation has ended at `since` or later: a change that
    is read late ends them earlier. Raises `OSError`."""
    if _latest(table, task) < since:
        return np.empty(0, np.int64)
    rows, positions = live_columns(table, task, [*key, *PLACED])
    mine = hash_keys([rows.column(name) for name in key])
    at = np.flatnonzero(np.isin(mine.high, keys.high) & np.isin(mine.low, keys.low))
    rows, positions = rows.take(pa.array(at)), positions[at]
    before = timed(rows, micros(rows.column(FROM)), np.full(len(rows), NEVER))
    left = ends_of(before, replace(done, baselines={}), len(done.truncates))
    found: Int64 = positions[(left != NEVER) & (left == micros(rows.column(TO)))]
    return found


def live_columns(table: Table, task: FileScanTask, names: Sequence[str]) -> tuple[pa.Table, Int64]:
    """Columns of the rows of a file that no delete file removes, and their positions. Raises `OSError`."""
    schema = pa.schema([arrow_schema(table.schema()).field(name) for name in names])
    pieces = [rows.cast(schema) for rows in column_batches(table.io, task.file, table.schema(), names)]
    rows = pa.concat_tables([schema.empty_table(), *pieces])
    positions = np.delete(np.arange(len(rows)), deleted_positions(table.io, task))
    return rows.take(pa.array(positions)), positions
