"""What a table gets to land: a decoded chunk, and the records of it that could not be landed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.types import iceberg_arrow
from sinks.iceberg.shape import fit

Int64 = npt.NDArray[np.int64]

# Not `_partition`: Iceberg has reserved that name, and Spark reads no table with a column of it.
COORDINATES = pa.schema(
    [("_kafka_partition", pa.int32()), ("_offset", pa.int64()), ("_timestamp", pa.timestamp("us", "UTC"))]
)
KEY = pa.field("_key", pa.binary())
# The years 1 to 9999 in ms since the epoch, which is what readers of the lake agree on.
YEARS = (-62_135_596_800_000, 253_402_300_799_999)


@dataclass(frozen=True, eq=False)
class Slice:
    """Consecutive records of one partition, from offset `start` up to `next_offset`.

    `keys`, `values` (raw), `offsets`, `timestamps` (ms) have a row for every record. `batch` has a row for each record
    that decoded, `rows` says which records those are; `nulls` are tombstones, `bad` those that did not decode, with a
    reason each. `key_fields` are the names in the records' key, empty when they have none, None when it is not known;
    `key_named`: its schema is named as the source's connector names it; `key_unlike`: fields of it that are of another
    type in the rows. `schema` is the writer's schema of the values, where all have the same. `baseline`: the offset
    that such a record among these, or among others of their chunk, says (schemas/baseline.py), 0 for none;
    `baseline_time`: when the last such record was written (ms), where it is among these.
    """

    topic: str
    partition: int
    start: int
    next_offset: int
    keys: pa.BinaryArray
    values: pa.BinaryArray
    offsets: Int64
    timestamps: Int64
    batch: pa.RecordBatch
    rows: Int64
    nulls: Int64
    bad: Int64
    reasons: tuple[str, ...]
    key_fields: tuple[str, ...] | None = None
    key_named: bool = False
    key_unlike: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None
    baseline: int = 0
    baseline_time: int = 0

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def nbytes(self) -> int:
        return int(self.batch.nbytes + self.values.nbytes + self.keys.nbytes + 16 * len(self))

    def after(self, offset: int) -> Slice:
        """The part from `offset` on; the whole when it starts there."""
        if offset <= self.start:
            return self
        cut = int(np.searchsorted(self.offsets, offset))
        rows, nulls, bad = (int(np.searchsorted(a, cut)) for a in (self.rows, self.nulls, self.bad))
        return replace(
            self,
            start=min(offset, self.next_offset),
            keys=self.keys.slice(cut),
            values=self.values.slice(cut),
            offsets=self.offsets[cut:],
            timestamps=self.timestamps[cut:],
            batch=self.batch.slice(rows),
            rows=self.rows[rows:] - cut,
            nulls=self.nulls[nulls:] - cut,
            bad=self.bad[bad:] - cut,
            reasons=self.reasons[bad:],
        )

    def coordinates(self, rows: Int64) -> list[pa.Array]:
        """The columns of `COORDINATES` for these records."""
        return [
            pa.array(np.full(len(rows), self.partition, np.int32)),
            pa.array(self.offsets[rows]),
            kafka_time(self.timestamps[rows]),
        ]


def kafka_time(millis: Int64) -> pa.Array:
    """Timestamps of records (ms), which producers set to what they like, as a column: what is beyond the years 1 to
    9999 is the nearer end."""
    return pa.array(np.clip(millis, *YEARS) * 1000).cast(COORDINATES.field("_timestamp").type)


@dataclass(frozen=True, eq=False)
class Reject:
    """Records that a table cannot take: rows of a slice in offset order, the rule that they break, a reason each."""

    slice: Slice
    rows: Int64
    stage: str
    rule: str
    reasons: tuple[str, ...]
    contract: str | None = None


def nonempty(rejects: Sequence[Reject]) -> list[Reject]:
    """Those that have records: of a slice that is refused, a truncation alone leaves none."""
    return [reject for reject in rejects if len(reject.rows)]


def with_coordinates(batch: pa.RecordBatch, slice_: Slice, rows: Int64, *, key: bool = False) -> pa.RecordBatch:
    """`batch`, whose rows are records `rows` of the slice, with their coordinates (and key) as further columns.

    Types are those that Iceberg has. Raises `ContractError` naming the field for one that it can't say.
    """
    columns = [*batch.columns, *slice_.coordinates(rows)]
    fields = [*iceberg_arrow(batch.schema), *COORDINATES]
    if key:
        columns.append(slice_.keys if len(rows) == len(slice_) else slice_.keys.take(pa.array(rows)))
        fields.append(KEY)
    cast = [fit(c, f.type) for c, f in zip(columns, fields, strict=True)]
    return pa.RecordBatch.from_arrays(cast, schema=pa.schema([f.with_nullable(True) for f in fields]))


def received(slice_: Slice) -> pa.RecordBatch:
    """Everything that decoded, tombstones as rows of nulls, in offset order with coordinates and key."""
    if not len(slice_.nulls):
        return with_coordinates(slice_.batch, slice_, slice_.rows, key=True)
    records = np.concatenate([slice_.rows, slice_.nulls])
    order = np.argsort(records, kind="stable")
    source = pa.array(order, mask=order >= len(slice_.rows))
    return with_coordinates(slice_.batch.take(source), slice_, records[order], key=True)
