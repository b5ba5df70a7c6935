"""Rows of a table without a key, found by all their values: which of equal ones is of no matter.

Every commit with such a change reads the table until all its rows are found.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from headrace.keyindex import hash_keys
from sinks.iceberg.filerows import deleted_positions, live_rows
from sinks.iceberg.shape import fit_rows

Int64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Name = tuple[int, int]

_NONE = np.empty(0, np.int64)


def row_names(rows: pa.RecordBatch | pa.Table, columns: pa.Schema) -> list[Name]:
    """A name for each row, equal where these columns are; one that the rows lack is null in them."""
    if not len(columns) or not rows.num_rows:
        return [(0, 0)] * rows.num_rows
    keys = hash_keys([_flat(column) for column in fit_rows(rows, columns).columns])
    return list(zip(keys.high.tolist(), keys.low.tolist(), strict=True))


@dataclass
class Batch:
    """Rows to be written, in order: `alive` says which are. `dead` are rows of the table that go, by file."""

    alive: Mask
    dead: dict[str, tuple[DataFile, Int64]] = field(default_factory=dict)

    def apply(self, start: int, going: Mask, before: list[Name], present: Mask, after: list[Name], table: Table | None,
              columns: pa.Schema) -> Int64:  # fmt: skip
        """Apply changes in their order: what goes cancels an equal row of the batch, or else one of the table.

        `after` names the rows of the batch until the last of these changes, the first of which is row `start`. All are
        named by `columns`, which the table may not have yet. Returns the changes that were not applied: the row that
        they change is not there. Raises `OSError`.
        """
        waiting: dict[Name, list[int]] = {}
        for row in np.flatnonzero(self.alive[:start]).tolist():
            waiting.setdefault(after[row], []).append(row)
        wanted: dict[Name, list[int]] = {}
        for number in range(len(going)):
            if going[number]:
                equal = waiting.get(before[number])
                if equal:
                    self.alive[equal.pop()] = False
                else:
                    wanted.setdefault(before[number], []).append(number)
            if present[number]:
                waiting.setdefault(after[start + number], []).append(start + number)
        if not wanted:
            return np.empty(0, np.int64)
        left = Counter({name: len(numbers) for name, numbers in wanted.items()})
        if table is not None:
            self._find(table, left, columns)
        missing = np.array(sorted(n for name, count in left.items() if count for n in wanted[name][-count:]), np.int64)
        self.alive[start + missing] = False
        return missing

    def _find(self, table: Table, wanted: Counter[Name], columns: pa.Schema) -> None:
        for task in table.scan().plan_files():
            if not wanted.total():
                return
            path = task.file.file_path
            before = self.dead.get(path, (None, _NONE))[1]
            taken = set(before.tolist())
            stored = np.setdiff1d(np.arange(task.file.record_count), deleted_positions(table.io, task))
            names = (name for piece in live_rows(table, task) for name in row_names(piece, columns))
            hits = []
            for position, name in zip(stored.tolist(), names, strict=True):
                if wanted[name] > 0 and position not in taken:
                    wanted[name] -= 1
                    hits.append(position)
            if hits:
                self.dead[path] = (task.file, np.concatenate([before, np.array(hits, np.int64)]))


def _flat(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_nested(column.type):
        return pa.chunked_array([pa.array([json.dumps(v, default=repr) for v in column.to_pylist()], pa.string())])
    return column
