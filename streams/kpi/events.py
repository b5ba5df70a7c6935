"""Which events of a partition count, and with which sign.

- Change events take their row before away and add their row after. A change whose position is not above the
  partition's highest is a repeat of Debezium's and ignored, and so is a derived record that repeats its coordinates.
- A row read by a full snapshot (`op` r) is part of a complete statement of the table. All rows of one snapshot have
  one `envelope.snapshot_identity`; the first row of a later snapshot takes back all that the partition has added to
  windows still open, and counting begins anew, so that a repeated snapshot counts no row twice, whatever was changed or
  deleted while nobody listened. Rows of an earlier snapshot are ignored, as are those of an incremental one, which
  repeats rows of a table that is already streamed. This needs two numbers a partition instead of a memory of all keys;
  its price: a partition that a new snapshot has no row for keeps what it had.
- A topic of change events may be compacted. A KPI that begins on one later takes the first change it meets of a key
  for the key's whole past (`Events.first`), which gives the table's rows again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import ContractError
from schemas import coordinates, envelope
from streams.kpi.partials import Ints, Mask

NO_SNAPSHOT = (-1, -1)


@dataclass(frozen=True)
class Progress:
    """How far one KPI has read one partition. `next` is the first offset not applied, `watermark` in microseconds.

    `late`, `untimed`, `ignored` and `lost` count rows left out: too late, without an event time, of an incremental
    snapshot or a truncation, taken by retention. `topic` is the identity of the topic that the offsets belong to.
    """

    next: int = 0
    position: envelope.Position = envelope.NOWHERE
    lanes: Mapping[str, int] = field(default_factory=dict)
    snapshot: tuple[int, int] = NO_SNAPSHOT
    watermark: int | None = None
    late: int = 0
    untimed: int = 0
    ignored: int = 0
    lost: int = 0
    topic: str = ""

    def dump(self) -> dict[str, Any]:
        return {
            "next": self.next,
            "position": list(self.position),
            "lanes": dict(self.lanes),
            "snapshot": list(self.snapshot),
            "watermark": self.watermark,
            "skipped": [self.late, self.untimed, self.ignored, self.lost],
            "topic": self.topic,
        }

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> Progress:
        late, untimed, ignored, lost = data["skipped"]
        first, second = data["snapshot"]
        return cls(
            next=data["next"],
            position=envelope.Position(*data["position"]),
            lanes=data["lanes"],
            snapshot=(first, second),
            watermark=data["watermark"],
            late=late,
            untimed=untimed,
            ignored=ignored,
            lost=lost,
            topic=data["topic"],
        )


@dataclass(frozen=True)
class Segment:
    """Events to apply in one go; `anew` when a later snapshot begins with them."""

    progress: Progress
    anew: bool
    rows: Ints
    events: pa.RecordBatch


@dataclass(frozen=True)
class Events:
    """Decoded events of one partition in offset order; `next` is the offset after all of them and what lies between.

    `first` marks changes of keys that the log, as far as it goes back, says nothing of before: compaction took what
    there was, so there is nothing to take away. `fresh` marks those that are no repeats, where that is known better
    than by the partition's highest position. None when nothing was taken.
    """

    batch: pa.RecordBatch
    offsets: Ints
    timestamps: Ints
    next: int
    first: Mask | None = None
    fresh: Mask | None = None
    _cache: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.offsets)

    def halves(self) -> tuple[Events, Events]:
        """The same events in two pieces. Only for two events or more."""
        at = len(self) // 2
        return self._part(0, at, int(self.offsets[at])), self._part(at, len(self), self.next)

    def since(self, offset: int) -> Events:
        at = int(np.searchsorted(self.offsets, offset))
        if not at:
            return self
        rest: Events = self.cached(("since", at), lambda: self._part(at, len(self), self.next))
        return rest

    def _part(self, start: int, stop: int, following: int) -> Events:
        first, fresh = (None if mask is None else mask[start:stop] for mask in (self.first, self.fresh))
        batch = self.batch.slice(start, stop - start)
        return Events(batch, self.offsets[start:stop], self.timestamps[start:stop], following, first, fresh)

    def cached(self, key: Any, make: Any) -> Any:
        """KPIs of one source are usually at the same place: what depends on the place alone is made once."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]


def signed_images(batch: pa.RecordBatch, first: Mask | None) -> tuple[pa.RecordBatch, Ints, Ints]:
    """(rows, +1 counted or -1 taken back, index of the event of each), rows before ahead of rows after."""
    everything = np.arange(len(batch))
    if not envelope.is_envelope(batch.schema):
        return batch, np.ones(len(batch), np.int64), everything
    before, after = (envelope.has_row(batch, part).to_numpy(zero_copy_only=False) for part in ("before", "after"))
    operations = envelope.operations(batch)
    before &= pc.is_in(operations, value_set=pa.array(["u", "d"])).to_numpy(zero_copy_only=False)
    after &= pc.is_in(operations, value_set=pa.array(["c", "u", "r"])).to_numpy(zero_copy_only=False)
    changed = pc.is_in(operations, value_set=pa.array(["u", "d"])).to_numpy(zero_copy_only=False)
    if first is not None:
        before, changed = before & ~first, changed & ~first
    if (changed & ~before).any():
        raise ContractError(
            "a change does not carry the row as it was, so it cannot be taken back",
            where=str(envelope.table_of(batch)[int(np.argmax(changed & ~before))].as_py()),
            hint="ALTER TABLE ... REPLICA IDENTITY FULL, then take a new snapshot",
        )
    rows_after = envelope.row_batch(batch, "after").filter(pa.array(after))
    rows_before = envelope.row_batch(batch, "before").filter(pa.array(before))
    if rows_before.schema.names != rows_after.schema.names:
        raise ContractError("rows before and after differ in their fields", where="before, after")
    rows_before = rows_before.cast(rows_after.schema) if rows_before.schema != rows_after.schema else rows_before
    signs = np.concatenate([np.full(len(rows_before), -1), np.ones(len(rows_after), np.int64)])
    at = np.concatenate([everything[before], everything[after]])
    return pa.concat_batches([rows_before, rows_after]), signs, at


def cut_segments(events: Events, progress: Progress) -> Iterator[Segment]:
    """Events that are no repeats, cut where a later snapshot begins."""
    batch = events.batch
    if not envelope.is_envelope(batch.schema):
        keep: Mask = np.ones(len(events), np.bool_)
        if "source_offset" in batch.schema.names:
            kept, lanes = coordinates.drop_replays(batch, progress.lanes)
            keep, progress = kept.to_numpy(zero_copy_only=False), replace(progress, lanes=lanes)
        yield _segment(events, keep, replace(progress, ignored=0), anew=False)
        return
    lsn, order = envelope.positions(batch)
    keep = events.fresh if events.fresh is not None else envelope.after_position(lsn, order, progress.position)
    progress = replace(progress, position=envelope.highest(lsn, order, progress.position))
    full, first, second, other = _snapshots(batch)
    other |= pc.fill_null(pc.equal(envelope.operations(batch), "t"), False).to_numpy(zero_copy_only=False)
    (a, b), begin, anew = progress.snapshot, 0, False
    while True:
        later = full & ((first > a) | ((first == a) & (second > b)))
        later[:begin] = False
        end = int(np.argmax(later)) if later.any() else len(events)
        stale = full & ((first < a) | ((first == a) & (second < b)))
        mask = keep & ~other & ~stale
        mask[:begin] = mask[end:] = False
        yield _segment(events, mask, replace(progress, snapshot=(a, b), ignored=int(other[begin:end].sum())), anew=anew)
        if end == len(events):
            return
        a, b, begin, anew = int(first[end]), int(second[end]), end, True


def _segment(events: Events, keep: Mask, progress: Progress, *, anew: bool) -> Segment:
    rows = np.flatnonzero(keep)
    chosen = events.batch if len(rows) == len(events) else events.batch.filter(pa.array(keep))
    return Segment(progress, anew, rows, chosen)


def _snapshots(batch: pa.RecordBatch) -> tuple[Mask, Ints, Ints, Mask]:
    """(rows of full snapshots, the two numbers of their snapshot, rows of other snapshots)."""
    read = envelope.snapshot_mask(batch).to_numpy(zero_copy_only=False)
    nothing: Ints = np.zeros(len(batch), np.int64)
    if not read.any():
        return read, nothing, nothing, read.copy()
    other = envelope.incremental_mask(batch).to_numpy(zero_copy_only=False)
    return read & ~other, *envelope.snapshot_identity(batch), other
