"""Where in the source's log each row of a table was written: what orders rows of different partitions.

Changes of one key are in one partition, in order. A truncation has no key: it is in any partition, and says nothing
about how far the others are. So rows keep the place of their change, and a table keeps its floor: the place of the
latest truncation. Nothing below the floor is live, whenever it arrives.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import ContractError
from schemas import envelope
from schemas.envelope import NOWHERE, Position

Int64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

COLUMNS = pa.schema([("_position", pa.int64()), ("_order", pa.int64())])


@dataclass(frozen=True, eq=False)
class Places:
    """The two numbers of n events' positions; -1 where they are not known."""

    high: Int64
    low: Int64

    @classmethod
    def unknown(cls, n: int) -> Places:
        return cls(np.full(n, -1), np.full(n, -1))

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> Places:
        """Of change events. A row read by a snapshot is at the log's end of that time, before any later change.

        Raises `ContractError` when the events do not say.
        """
        batch = envelope.placed(batch)
        high, low = envelope.positions(batch)
        read = envelope.snapshot_mask(batch).to_numpy(zero_copy_only=False)
        if read.any():
            high = np.where(read, envelope.reached(batch), high)
        return cls(high, low)

    @classmethod
    def told(cls, batch: pa.RecordBatch) -> tuple[Places, str]:
        """Of change events, also where some do not say: these have none, the others theirs. And what they lack, "" when
        all say. Where changes share a place, or none can have one, none has."""
        try:
            return cls.of(batch), ""
        except ContractError as e:
            lack = str(e)
        places, lacks = cls.unknown(batch.num_rows), envelope.unplaced(batch)
        read = envelope.snapshot_mask(batch).to_numpy(zero_copy_only=False)
        places.high[read] = envelope.reached(batch)[read]
        say = np.flatnonzero(~lacks & ~read)
        if lacks.any() and len(say):
            with suppress(ContractError):
                found = cls.of(batch.take(pa.array(say)))
                places.high[say], places.low[say] = found.high, found.low
        return places, lack

    def __len__(self) -> int:
        return len(self.high)

    def take(self, rows: Int64 | Mask) -> Places:
        return Places(self.high[rows], self.low[rows])

    def below(self, floor: Position) -> Mask:
        """Which are known to be before it."""
        before: Mask = (self.high < floor.high) | ((self.high == floor.high) & (self.low < floor.low))
        return before & (self.high >= 0)

    @property
    def lowest(self) -> Position:
        """Of those that are known; `NOWHERE` when none is."""
        known = self.high >= 0
        if not known.any():
            return NOWHERE
        first = self.high[known].min()
        return Position(int(first), int(self.low[self.high == first].min()))

    @property
    def highest(self) -> Position:
        return envelope.highest(self.high, self.low)

    def columns(self) -> list[pa.Array]:
        """The columns of `COLUMNS`, null where the place is not known."""
        unknown = self.high < 0
        return [pa.array(self.high, mask=unknown), pa.array(self.low, mask=unknown)]


def stand(rows: pa.Table, floor: Position) -> Mask:
    """Which stored rows a floor leaves. Rows without a place are older than any."""
    high, low = (pc.fill_null(rows.column(name), -1).to_numpy() for name in COLUMNS.names)
    mask: Mask = (high > floor.high) | ((high == floor.high) & (low >= floor.low))
    return mask
