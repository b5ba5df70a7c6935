"""What a chunk of events changes: the contributions of one source partition to one KPI, by window and group.

Pure: `contribute` takes events and what the partition has contributed so far (`Share`) and returns the full new values
with the progress they are as of; nothing is changed until the caller keeps the result.

Rules, each of which SQL over the lake can repeat:
- Events are those that `streams.kpi.events` lets through: no repeats, rows before taken away, rows after added.
- A partition's watermark is the highest event time seen, where a time ahead of the record's Kafka timestamp counts as
  that timestamp: one wrong clock can't close windows for the others. A row is late, and left out, when its window's end
  plus the lateness is not above the watermark of the rows before it. A window that is closed so stays closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import ContractError
from schemas.expressions import Expression, columns_of, compile_expression
from schemas.kpis import Kpi
from streams.kpi.events import Events, Progress, Segment, cut_segments, signed_images
from streams.kpi.partials import EMPTY, Ints, Mask, Partial, aggregate, check_size, check_type

Key = tuple[int | None, str]
"""(start of the window in microseconds since the epoch, group as canonical JSON)"""

_NEVER = -(2**62)


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


def used_columns(kpi: Kpi) -> tuple[str, ...]:
    """The columns of a row that a KPI needs."""
    named = (kpi.field, kpi.event_time, *kpi.dimensions, *columns_of(kpi.filter))
    return tuple(dict.fromkeys(name for name in named if name))


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
        segments: list[Segment] = rest.cached(("segments", place), lambda: list(cut_segments(rest, progress)))
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
        self, events: Events, segment: Segment, before: Progress, share: Share, changed: dict[Key, Partial]
    ) -> Progress:
        after = replace(
            segment.progress, watermark=before.watermark, late=before.late, untimed=before.untimed,
            ignored=before.ignored + segment.progress.ignored,
        )  # fmt: skip
        if not len(segment.rows):
            return after
        first = None if events.first is None else events.first[segment.rows]
        images, signs, at = events.cached(("images", id(segment)), lambda: signed_images(segment.events, first))
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
        self, events: Events, segment: Segment, images: pa.RecordBatch, at: Ints, mask: Mask, progress: Progress
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
        if pa.types.is_null(column.type):
            # No schema that was met has it, or had it in this chunk: nothing is measured, and rows count without it.
            kinds = {self.kpi.field: pa.int64(), self.kpi.event_time: pa.timestamp("us")}
            return pa.nulls(len(column), kinds.get(name, pa.string()))
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
