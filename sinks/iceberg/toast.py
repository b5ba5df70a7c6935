"""Values that Debezium could not read because they did not change (TOAST): the row keeps the value that it had.

Postgres writes a large unchanged value to its log only under REPLICA IDENTITY FULL; otherwise the event carries a
placeholder. The value is that of the key's previous change in the batch, or of its live row in the table. A row whose
key changed comes as a delete and, next in the transaction, a create: its value is that of the key before, as long as
both are in one batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.keyindex import KeyIndex, Keys
from schemas.envelope import unavailable_mask
from sinks.iceberg.applicable import mask_of
from sinks.iceberg.keyed import KeyedTable
from sinks.iceberg.locations import distinct, file_of, position_of
from sinks.iceberg.shape import fit, fit_rows

Int64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def with_placeholders(batches: list[pa.RecordBatch]) -> list[str]:
    """Names of the columns in which some value is the placeholder."""
    found = {
        field.name
        for batch in batches
        for field, column in zip(batch.schema, batch.columns, strict=True)
        if pc.any(unavailable_mask(column)).as_py()
    }
    return sorted(found)


@dataclass(frozen=True, eq=False)
class Moves:
    """Creates that are the other half of a delete: `create` row numbers ascending, `delete` those of the deletes."""

    create: Int64
    delete: Int64

    @classmethod
    def of(cls, lsn: Int64, order: Int64, created: Mask, present: Mask) -> Moves:
        """`created[i]`: change i is a create; `present[i]`: it has a row. They follow each other in the log."""
        deletes = {place: row for row, place in _placed(lsn, order, ~present)}
        pairs = [
            (row, deletes[at, number - 1])
            for row, (at, number) in _placed(lsn, order, created)
            if at >= 0 and (at, number - 1) in deletes
        ]
        both = np.array(pairs, np.int64).reshape(-1, 2)
        return cls(both[:, 0], both[:, 1])


def fill_unavailable(
    table: KeyedTable,
    names: list[str],
    changes: list[pa.RecordBatch],
    keys: Keys,
    present: Mask,
    write: Int64,
    columns: pa.Schema,
    moves: Moves,
) -> tuple[pa.Table, Mask]:
    """Rows `write` of `changes` (numbered through all batches) with the placeholders in columns `names` replaced.

    Also says which of them have no value to keep: no row before, or one without the value, as when the column is new to
    the table or has another name in it. `present[i]`: change i has a row that counts. Raises `OSError`.
    """
    rows = pa.concat_tables([fit_rows(batch, columns) for batch in changes])
    result = rows.take(write)
    unresolved = np.zeros(len(write), np.bool_)
    for name in names:
        at = columns.get_field_index(name)
        values = rows.column(at)
        lacking = np.concatenate([mask_of(unavailable_mask(chunk)) for chunk in values.chunks])
        source = write.copy()
        wanted = np.flatnonzero(lacking[write])
        known = np.flatnonzero(present & ~lacking)
        source[wanted], owner = _earlier(keys, known, write[wanted], moves)
        unknown = source[wanted] < 0
        wanted, owner = wanted[unknown], owner[unknown]
        locations = table.live_locations(keys.take(owner))
        stored, order = _read(table, name, locations, columns.field(at).type)
        source[wanted] = np.where(locations < 0, -1, len(rows) + order)
        found = pa.array(source, mask=source < 0)
        column = pa.chunked_array([*values.chunks, *stored], columns.field(at).type).take(found)
        # What was null can't have stayed: a null is not large.
        unresolved |= lacking[write] & mask_of(pc.is_null(column))
        result = result.set_column(at, columns.field(at), column)
    return result, unresolved


def _earlier(keys: Keys, known: Int64, rows: Int64, moves: Moves) -> tuple[Int64, Int64]:
    """For each row the change of the batch that has its value, -1 for none; and a change with the key to look under."""
    index = KeyIndex(max(16, 2 * len(known)))
    index.put(keys.take(known), known)
    found, owner = index.locations(keys.take(rows)), rows.copy()
    if not len(moves.create):
        return found, owner
    names = list(zip(keys.high.tolist(), keys.low.tolist(), strict=True))
    moved: dict[tuple[int, int], list[int]] = {}
    for number, create in enumerate(moves.create.tolist()):
        moved.setdefault(names[create], []).append(number)
    valued: dict[tuple[int, int], list[int]] = {}
    for row in known.tolist():
        valued.setdefault(names[row], []).append(row)
    for i, row in enumerate(rows.tolist()):
        limit = row
        while True:
            value = max((v for v in valued.get(names[row], []) if v < limit), default=-1)
            move = max((m for m in moved.get(names[row], []) if moves.create[m] <= limit), default=-1)
            if move < 0 or value > moves.create[move]:
                break
            row = limit = int(moves.delete[move])
        found[i], owner[i] = value, row
    return found, owner


def _placed(lsn: Int64, order: Int64, chosen: Mask) -> list[tuple[int, tuple[int, int]]]:
    rows = np.flatnonzero(chosen)
    return list(zip(rows.tolist(), zip(lsn[rows].tolist(), order[rows].tolist(), strict=True), strict=True))


def _read(table: KeyedTable, name: str, locations: Int64, kind: pa.DataType) -> tuple[list[Any], Int64]:
    """Stored values at these locations as chunks, and for each location its place in them."""
    order = np.zeros(len(locations), np.int64)
    chunks: list[Any] = []
    count = 0
    for number in distinct(file_of(locations[locations >= 0])):
        here = np.flatnonzero((locations >= 0) & (file_of(locations) == number))
        column = table.read(int(number), name).take(pa.array(position_of(locations[here])))
        chunks += fit(column, kind).chunks
        order[here] = count + np.arange(len(here))
        count += len(here)
    return chunks, order
