"""What a chunk of events changes: the contributions of one source partition to one KPI, by window and group.

Pure: `contribute` takes events and what the partition has contributed so far (`Share`) and returns the full new values
with the progress they are as of; nothing is changed until the caller keeps the result.

Rules, each of which SQL over the lake can repeat:
- Change events take their row before away and add their row after. A change whose position is not above the
  partition's highest is a repeat of Debezium's and ignored, and so is a derived record that repeats its coordinates.
- A row read by a full snapshot (`op` r) is part of a complete statement of the table. All rows of one snapshot carry
  the same (lsn, transaction id); the first row of a later snapshot takes back all that the partition has contributed to
  windows still open, and counting begins anew, so that a repeated snapshot counts no row twice, whatever was changed or
  deleted while nobody listened. Rows of an earlier snapshot are ignored, as are those of an incremental one, which
  repeats rows of a table that is already streamed. This needs two numbers a partition instead of a memory of all keys;
  its price: a partition that a new snapshot has no row for keeps what it had.
- Topics of change events are compacted. A KPI that begins on one later takes the first change it meets of a key for
  the key's whole past (`Events.first`), which gives the table's rows again.
- A partition's watermark is the highest event time seen, where a time ahead of the record's Kafka timestamp counts as
  that timestamp: one wrong clock can't close windows for the others. A row is late, and left out, when its window's end
  plus the lateness is not above the watermark of the rows before it. A window that is closed so stays closed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import ContractError
from schemas import coordinates, envelope
from schemas.expressions import Expression, compile_expression
from schemas.kpis import Kpi
from streams.kpi.partials import EMPTY, Ints, Mask, Partial, aggregate, check_size, check_type

Key = tuple[int | None, str]
"""(start of the window in microseconds since the epoch, group as canonical JSON)"""

_NEVER = -(2**62)
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


@dataclass
class Share:
    """What one partition has contributed to one KPI: values of windows still open, and how far it has read."""

    progress: Progress = field(default_factory=Progress)
    values: dict[Key, Partial] = field(default_factory=dict)

    def keep(self, kpi: Kpi, change: Change) -> None:
        self.progress = change.progress
        self.values.update(change.values)
        if kpi.window_us is not None:
            for key in [key for key in self.values if is_closed(kpi, key, change.progress.watermark)]:
                del self.values[key]


@dataclass(frozen=True)
class Change:
    """New values in full, as of `progress`."""

    progress: Progress
    values: Mapping[Key, Partial]


def is_closed(kpi: Kpi, key: Key, watermark: int | None) -> bool:
    """Whether no row can change this window any more."""
    start = key[0]
    if start is None or kpi.window_us is None or watermark is None:
        return False
    return start + kpi.window_us + kpi.lateness_us <= watermark


@dataclass(frozen=True)
class _Segment:
    """Events to apply in one go; `anew` when a later snapshot begins with them."""

    progress: Progress
    anew: bool
    rows: Ints
    events: pa.RecordBatch


@dataclass(frozen=True)
class Events:
    """Decoded events of one partition in offset order; `next` is the offset after all of them and what lies between.

    `first` marks changes of keys that the log, as far as it goes back, says nothing of before: compaction took what
    there was, so there is nothing to take away and no repeat to know them by. None when nothing was taken.
    """

    batch: pa.RecordBatch
    offsets: Ints
    timestamps: Ints
    next: int
    first: Mask | None = None
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
        first = None if self.first is None else self.first[start:stop]
        batch = self.batch.slice(start, stop - start)
        return Events(batch, self.offsets[start:stop], self.timestamps[start:stop], following, first)

    def cached(self, key: Any, make: Any) -> Any:
        """KPIs of one source are usually at the same place: what depends on the place alone is made once."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]


class Meter:
    """Computes one KPI; remembers its filter compiled for the schemas that it has met."""

    def __init__(self, kpi: Kpi) -> None:
        self.kpi = kpi
        self._filters: dict[pa.Schema, Expression] = {}

    def contribute(self, share: Share, events: Events) -> Change:
        """What `events` change, those before the share's progress left out.

        Raises `ContractError` when the events lack what the KPI needs.
        """
        progress = share.progress
        if events.next <= progress.next:
            return Change(progress, {})
        rest = events.since(progress.next)
        place = (progress.position, tuple(progress.lanes.items()), progress.snapshot)
        segments: list[_Segment] = rest.cached(("segments", place), lambda: list(_segments(rest, progress)))
        changed: dict[Key, Partial] = {}
        counted = progress
        for segment in segments:
            if segment.anew:
                for key in (*share.values, *changed):
                    if not is_closed(self.kpi, key, counted.watermark):
                        changed[key] = EMPTY
            counted = self._count(rest, segment, counted, share, changed)
        for partial in changed.values():
            check_size(self.kpi, partial)
        return Change(replace(counted, next=events.next), changed)

    def _count(
        self, events: Events, segment: _Segment, before: Progress, share: Share, changed: dict[Key, Partial]
    ) -> Progress:
        after = replace(
            segment.progress, watermark=before.watermark, late=before.late, untimed=before.untimed,
            ignored=before.ignored + segment.progress.ignored,
        )  # fmt: skip
        if not len(segment.rows):
            return after
        first = None if events.first is None else events.first[segment.rows]
        images, signs, at = events.cached(("images", id(segment)), lambda: _images(segment.events, first))
        mask = self._matches(images)
        starts: Ints | None = None
        if self.kpi.window_us is not None:
            starts, mask, after = self._windows(events, segment, images, at, mask, after)
        if not mask.all():
            kept = pa.array(mask)
            images, signs = images.filter(kept), signs[mask]
            starts = None if starts is None else starts[mask]
        if not len(signs):
            return after
        keys, codes = self._groups(images, starts)
        values = self._column(images, self.kpi.field) if self.kpi.field else None
        for key, partial in zip(keys, aggregate(self.kpi, values, signs, codes, len(keys)), strict=True):
            if self.kpi.retracts and not (partial.rows or partial.count or partial.total):
                continue
            known = changed.get(key)
            changed[key] = (share.values.get(key, EMPTY) if known is None else known).plus(partial)
        return after

    def _matches(self, images: pa.RecordBatch) -> Mask:
        if not self.kpi.filter:
            return np.ones(len(images), np.bool_)
        compiled = self._filters.get(images.schema)
        if compiled is None:
            try:
                compiled = self._filters[images.schema] = compile_expression(self.kpi.filter, images.schema)
            except ContractError as e:
                raise ContractError(e.what, where=f"kpi {self.kpi.name}: filter {e.where}".strip(), hint=e.hint) from e
        out: Mask = pc.fill_null(compiled(images), False).to_numpy(zero_copy_only=False)
        return out

    def _windows(
        self, events: Events, segment: _Segment, images: pa.RecordBatch, at: Ints, mask: Mask, progress: Progress
    ) -> tuple[Ints, Mask, Progress]:
        """(window start of each image, which of the masked ones count, progress with watermark and late rows)."""
        window, lateness = self.kpi.window_us or 1, self.kpi.lateness_us
        times, timed = _micros(self._column(images, self.kpi.event_time), self.kpi)
        bound = events.timestamps[segment.rows]
        bound = np.where(bound < 0, 2**62, bound * 1000)
        # Images of an event: the row after stands behind the row before, so that its time is the event's.
        seen = np.full(len(segment.rows), _NEVER, np.int64)
        seen[at[timed]] = times[timed]
        seen = np.minimum(seen, bound)
        carried = _NEVER if progress.watermark is None else progress.watermark
        running = np.maximum.accumulate(np.concatenate(([carried], seen)))
        starts = np.floor_divide(times, window) * window
        late = timed & (starts + window + lateness <= running[at])
        top = int(running[-1])
        progress = replace(
            progress,
            watermark=None if top == _NEVER else top,
            late=progress.late + len(np.unique(at[mask & late])),
            untimed=progress.untimed + len(np.unique(at[mask & ~timed])),
        )
        return starts, mask & timed & ~late, progress

    def _groups(self, images: pa.RecordBatch, starts: Ints | None) -> tuple[list[Key], Ints]:
        """The keys that occur, and for each image which of them is its."""
        codes: Ints = np.zeros(len(images), np.int64)
        first: Ints = np.zeros(1, np.int64)
        columns = [self._column(images, name) for name in self.kpi.dimensions]
        parts = [c.dictionary_encode(null_encoding="encode").indices.to_numpy() for c in columns]
        if starts is not None:
            parts.append(np.unique(starts, return_inverse=True)[1].reshape(-1))
        for part in parts:
            # Dense again after each part: the codes of many dimensions together would overflow.
            codes = codes * (int(part.max()) + 1) + part
            _, first, codes = np.unique(codes, return_index=True, return_inverse=True)
            codes = codes.reshape(-1)
        chosen = pa.array(first)
        labels = [c.take(chosen).to_pylist() for c in columns]
        groups = [group_text(dict(zip(self.kpi.dimensions, row, strict=True))) for row in zip(*labels, strict=True)]
        groups = groups or [group_text({})] * len(first)
        windows = [None] * len(first) if starts is None else starts[first].tolist()
        return list(zip(windows, groups, strict=True)), codes

    def _column(self, images: pa.RecordBatch, name: str) -> pa.Array:
        if name not in images.schema.names:
            raise ContractError(f"rows have no field {name}", where=f"kpi {self.kpi.name}", hint=self.kpi.source)
        column = images.column(name)
        if name == self.kpi.field and (why := check_type(self.kpi, column.type)):
            raise ContractError(why, where=f"kpi {self.kpi.name}: field {name}")
        return column


def group_text(group: Mapping[str, Any]) -> str:
    """Canonical JSON of a group: keys sorted, no spaces; what JSON has no type for as text."""
    return orjson.dumps(group, default=str, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS).decode()


def _micros(column: pa.Array, kpi: Kpi) -> tuple[Ints, Mask]:
    """(microseconds since the epoch with 0 for nulls, which are times)."""
    if not (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
        raise ContractError(f"is {column.type}, not a time", where=f"kpi {kpi.name}: event_time {kpi.event_time}")
    numbers = pc.fill_null(column.cast(pa.timestamp("us")).cast(pa.int64()), 0)
    return numbers.to_numpy(zero_copy_only=False), pc.is_valid(column).to_numpy(zero_copy_only=False)


def _images(batch: pa.RecordBatch, first: Mask | None) -> tuple[pa.RecordBatch, Ints, Ints]:
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


def _segments(events: Events, progress: Progress) -> Iterator[_Segment]:
    """Events that are no repeats, cut where a later snapshot begins."""
    batch = events.batch
    if not envelope.is_envelope(batch.schema):
        keep: npt.NDArray[np.bool_] = np.ones(len(events), np.bool_)
        if "source_offset" in batch.schema.names:
            kept, lanes = coordinates.drop_replays(batch, progress.lanes)
            keep, progress = kept.to_numpy(zero_copy_only=False), replace(progress, lanes=lanes)
        yield _segment(events, keep, replace(progress, ignored=0), anew=False)
        return
    lsn, order = envelope.positions(batch)
    keep = envelope.after_position(lsn, order, progress.position)
    if events.first is not None:
        keep = keep | events.first
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


def _segment(events: Events, keep: Mask, progress: Progress, *, anew: bool) -> _Segment:
    rows = np.flatnonzero(keep)
    chosen = events.batch if len(rows) == len(events) else events.batch.filter(pa.array(keep))
    return _Segment(progress, anew, rows, chosen)


def _snapshots(batch: pa.RecordBatch) -> tuple[Mask, Ints, Ints, Mask]:
    """(rows of full snapshots, their lsn, their transaction id, rows of other snapshots)."""
    read = envelope.snapshot_mask(batch).to_numpy(zero_copy_only=False)
    nothing: Ints = np.zeros(len(batch), np.int64)
    if not read.any():
        return read, nothing, nothing, read.copy()
    source = batch.column("source")
    names = {f.name for f in source.type}
    other = read.copy()
    if "snapshot" in names:
        kind = pc.struct_field(source, "snapshot").cast(pa.string())
        other &= pc.fill_null(pc.equal(kind, "incremental"), False).to_numpy(zero_copy_only=False)
    else:
        other[:] = False
    identity = [
        pc.fill_null(pc.struct_field(source, name).cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
        if name in names
        else nothing
        for name in ("lsn", "txId")
    ]
    return read & ~other, identity[0], identity[1], other
