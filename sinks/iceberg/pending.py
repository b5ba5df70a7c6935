"""Changes of one slice that can be applied, before they are folded: what a floor or a baseline leaves of them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.keyindex import Keys
from schemas import envelope
from schemas.envelope import NOWHERE, Position
from sinks.iceberg.applicable import OWN, mask_of
from sinks.iceberg.places import COLUMNS, Places
from sinks.iceberg.slices import Reject, Slice, with_coordinates

Mask = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Changes:
    """Applicable changes of one slice: `rows` (after, with coordinates and places), what each leaves, and its key.

    `created` says which made a row. `before` has the rows before, of a table without a key, and `going` says which
    changes have one. `stale` are rows of an incremental snapshot that leave what is there (see `recent`).
    """

    slice: Slice
    rows: pa.RecordBatch
    present: Mask
    keys: Keys
    places: Places
    going: Mask
    created: Mask
    stale: Mask
    before: pa.RecordBatch | None = None


_Changes = TypeVar("_Changes", bound=Changes)


def placed(batch: pa.RecordBatch, part: Slice, rows: Int64, places: Places) -> pa.RecordBatch:
    """Rows of these records, with the table's own columns. Rows with such columns are refused; those of a truncation,
    which are all null, go without them."""
    batch = batch.select([name for name in batch.schema.names if name not in OWN])
    made = with_coordinates(batch, part, rows)
    return pa.RecordBatch.from_arrays([*made.columns, *places.columns()], schema=pa.schema([*made.schema, *COLUMNS]))


def snapshot_floor(batch: pa.RecordBatch, places: Places, keep: Mask) -> Position:
    """The floor that rows of a full snapshot are: all older rows were read again, or are gone."""
    rows = keep & mask_of(envelope.snapshot_mask(batch))
    if rows.any():
        rows &= ~mask_of(envelope.incremental_mask(batch))
    return places.take(rows).highest if rows.any() else NOWHERE


def without_obsolete(changes: Changes, baselines: Mapping[int, int]) -> Changes:
    """Rows that a baseline of their partition makes obsolete leave nothing."""
    before = baselines.get(changes.slice.partition, 0)
    if changes.slice.start >= before:
        return changes
    return replace(changes, present=changes.present & (changes.rows.column("_offset").to_numpy() >= before))


def standing(changes: Changes, floor: Position) -> Changes:
    """Without what a floor has taken."""
    below = changes.places.below(floor)
    return taken(changes, np.flatnonzero(~below)) if below.any() else changes


def behind(changes: Changes, offset: int) -> Changes:
    """Those after an offset."""
    return taken(changes, np.flatnonzero(changes.rows.column("_offset").to_numpy() > offset))


def taken(changes: _Changes, rows: Int64) -> _Changes:
    """These alone, ascending."""
    return replace(
        changes,
        rows=rows_of(changes.rows, rows),
        present=changes.present[rows],
        keys=changes.keys.take(rows),
        places=changes.places.take(rows),
        before=None if changes.before is None else rows_of(changes.before, rows),
        going=changes.going[rows],
        created=changes.created[rows],
        stale=changes.stale[rows],
    )


def refused(parts: list[Changes], rows: Int64, stage: str, rule: str, reason: str) -> list[Reject]:
    """Changes, numbered through all slices, that cannot be applied after all."""
    starts = np.cumsum([0, *(c.rows.num_rows for c in parts)])
    rejects = []
    for i, changes in enumerate(parts):
        mine = rows[(rows >= starts[i]) & (rows < starts[i + 1])] - starts[i]
        if len(mine):
            offsets = changes.rows.column("_offset").to_numpy()[mine]
            records = np.searchsorted(changes.slice.offsets, offsets)
            rejects.append(Reject(changes.slice, records, stage, rule, (reason,) * len(mine)))
    return rejects


def rows_of(batch: pa.RecordBatch, rows: Int64) -> pa.RecordBatch:
    """These rows, ascending; not copied when they are all."""
    return batch if len(rows) == batch.num_rows else batch.take(pa.array(rows))
