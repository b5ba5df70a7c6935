"""Where in the source's log each row of a table was written: what orders rows of different partitions.

Changes of one key are in one partition, in order. A truncation has no key: it is in any partition, and says nothing
about how far the others are. So rows keep the place of their change, and a table keeps its floor: the place of the
latest truncation. Nothing below the floor is live, whenever it arrives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas import envelope
from schemas.envelope import NOWHERE, Position

Int64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

COLUMNS = pa.schema([("_position", pa.int64()), ("_order", pa.int64())])


@dataclass(frozen=True, eq=False)
class Places:
    """(lsn, order) of n events; -1 where it is not known."""

    lsn: Int64
    order: Int64

    @classmethod
    def unknown(cls, n: int) -> Places:
        return cls(np.full(n, -1), np.full(n, -1))

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> Places:
        """Of change events. A row read by a snapshot is at the log's end of that time, before any later change.

        Raises `ContractError` when the events do not say.
        """
        batch = envelope.placed(batch)
        lsn, order = envelope.positions(batch)
        read = envelope.snapshot_mask(batch).to_numpy(zero_copy_only=False)
        source = batch.column("source")
        if read.any() and "lsn" in {field.name for field in source.type}:
            own = pc.fill_null(pc.struct_field(source, "lsn").cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
            lsn = np.where(read, own, lsn)
        return cls(lsn, order)

    def __len__(self) -> int:
        return len(self.lsn)

    def take(self, rows: Int64 | Mask) -> Places:
        return Places(self.lsn[rows], self.order[rows])

    def below(self, floor: Position) -> Mask:
        """Which are known to be before it."""
        before: Mask = (self.lsn < floor.lsn) | ((self.lsn == floor.lsn) & (self.order < floor.order))
        return before & (self.lsn >= 0)

    @property
    def lowest(self) -> Position:
        """Of those that are known; `NOWHERE` when none is."""
        known = self.lsn >= 0
        if not known.any():
            return NOWHERE
        first = self.lsn[known].min()
        return Position(int(first), int(self.order[self.lsn == first].min()))

    @property
    def highest(self) -> Position:
        return envelope.highest(self.lsn, self.order)

    def columns(self) -> list[pa.Array]:
        """The columns of `COLUMNS`, null where the place is not known."""
        unknown = self.lsn < 0
        return [pa.array(self.lsn, mask=unknown), pa.array(self.order, mask=unknown)]


def stand(rows: pa.Table, floor: Position) -> Mask:
    """Which stored rows a floor leaves. Rows without a place are older than any."""
    lsn, order = (pc.fill_null(rows.column(name), -1).to_numpy() for name in COLUMNS.names)
    mask: Mask = (lsn > floor.lsn) | ((lsn == floor.lsn) & (order >= floor.order))
    return mask
