"""The changes of a batch on their way to a history: filled up, compared with what was, given their times. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.keyindex import Keys
from schemas import envelope
from sinks.iceberg.applicable import mask_of
from sinks.iceberg.changes import join
from sinks.iceberg.ends import Ends
from sinks.iceberg.pending import Changes, taken
from sinks.iceberg.places import COLUMNS, Places
from sinks.iceberg.recent import among
from sinks.iceberg.shape import fit_rows
from sinks.iceberg.slices import COORDINATES, YEARS
from sinks.iceberg.toast import Moves
from sinks.iceberg.versions import NEVER, NONE, Sequence, sequence

Mask = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]

FROM, TO, OP = "valid_from", "valid_to", "_op"
TIME = pa.timestamp("us", "UTC")
# Columns that a history has beside those of the row.
OWN = (FROM, TO, OP, *COORDINATES.names, *COLUMNS.names)
# What says when a stored row ends.
PLACED = (*COORDINATES.names[:2], *COLUMNS.names, FROM, TO)


@dataclass(frozen=True, eq=False)
class Events(Changes):
    """`truncates[i]`: change i is a truncate."""

    truncates: Mask = field(default_factory=lambda: np.empty(0, np.bool_))

    @property
    def truncations(self) -> tuple[Places, Int64]:
        """The places and times of truncates."""
        return self.places.take(self.truncates), micros(self.rows.column(FROM))[self.truncates]

    @property
    def without_truncations(self) -> Events:
        if not self.truncates.any():
            return self
        rows = np.flatnonzero(~self.truncates)
        return replace(taken(self, rows), truncates=np.zeros(len(rows), np.bool_))


@dataclass(frozen=True)
class Log:
    """Rows of changes in the table's columns: first the versions that the table has of their keys.

    `origins` numbers those versions, `NONE` for changes; `rows_of_batch` numbers changes among all events; `stale` are
    rows of snapshots that change nothing.
    """

    rows: pa.Table
    keys: Keys
    times: Int64
    present: Mask
    origins: Int64
    rows_of_batch: Int64
    stale: Mask
    sequence: Sequence

    @classmethod
    def of(cls, parts: list[Events], columns: pa.Schema, ends: Ends) -> Log:
        """Of events without truncations, and all of those that rows end by."""
        keys = join([c.keys for c in parts])
        epochs = np.concatenate([ends.epochs(c.places, len(ends.truncates)) for c in parts])
        rows = pa.concat_tables([fit_rows(c.rows, columns) for c in parts])
        return cls(
            rows=rows,
            keys=keys,
            times=micros(rows.column(FROM)),
            present=np.concatenate([c.present for c in parts]),
            origins=np.full(len(keys), NONE),
            rows_of_batch=np.arange(len(keys)),
            stale=np.concatenate([c.stale for c in parts]),
            sequence=sequence(keys, epochs),
        )

    def behind(self, rows: pa.Table, keys: Keys, epochs: Int64) -> Log:
        """Behind versions that the table has."""
        n, keys = len(rows), join([keys, self.keys])
        return Log(
            rows=pa.concat_tables([fit_rows(rows, self.rows.schema), self.rows]),
            keys=keys,
            times=np.concatenate([micros(rows.column(FROM)), self.times]),
            present=np.concatenate([np.ones(n, np.bool_), self.present]),
            origins=np.concatenate([np.arange(n), self.origins]),
            rows_of_batch=np.concatenate([np.full(n, NONE), self.rows_of_batch]),
            stale=np.concatenate([np.zeros(n, np.bool_), self.stale]),
            sequence=sequence(keys, np.concatenate([epochs, self.sequence.epochs])),
        )

    def kept(self, keep: Mask) -> Log:
        """The same without some."""
        if keep.all():
            return self
        keys = self.keys.take(keep)
        return Log(
            rows=self.rows.filter(pa.array(keep)),
            keys=keys,
            times=self.times[keep],
            present=self.present[keep],
            origins=self.origins[keep],
            rows_of_batch=self.rows_of_batch[keep],
            stale=self.stale[keep],
            sequence=sequence(keys, self.sequence.epochs[keep]),
        )


def filled(log: Log) -> tuple[Log, Mask, int]:
    """With values that were not sent (TOAST) as they were before, without what is stale; which changes lack one that
    nobody knows; and how many rows were stale. Of a key with such a change none is."""
    found, unknown = _filled(log.kept(~log.stale))
    again = log.stale & among(log.keys, found.keys.take(unknown))
    if again.any():
        return filled(replace(log, stale=log.stale & ~again))
    return found, unknown, int(log.stale.sum())


def _filled(log: Log) -> tuple[Log, Mask]:
    rows, unknown = log.rows, np.zeros(len(log.times), np.bool_)
    moved = None
    for number in range(rows.num_columns):
        values = rows.column(number).combine_chunks()
        lacking = mask_of(envelope.unavailable_mask(values)) & log.present
        if not lacking.any():
            continue
        moved = _moved(log) if moved is None else moved
        source = np.where(lacking, _valued(log, lacking, np.where(lacking, moved, NONE)), np.arange(len(values)))
        values = values.take(pa.array(source, mask=source < 0))
        # What was null can't have stayed: a null is not large.
        unknown |= lacking & mask_of(pc.is_null(values))
        rows = rows.set_column(number, rows.schema.field(number), values)
    return replace(log, rows=rows), unknown


def _moved(log: Log) -> Int64:
    """For each create that a changed key has made, the delete that is its other half; else `NONE`."""
    places = places_of(log.rows)
    created = mask_of(pc.equal(log.rows.column(OP), "c")) & (log.origins < 0)
    moves = Moves.of(places.high, places.low, created, log.present)
    moved = np.full(len(created), NONE)
    moved[moves.create] = moves.delete
    return moved


def _valued(log: Log, lacking: Mask, moved: Int64) -> Int64:
    """For each row the last one up to it that has the value, of its key or the key that it had before; else `NONE`."""
    last = log.sequence.last_marked(log.present & (~lacking | (moved != NONE)))
    found = last.copy()
    while len(again := np.flatnonzero((found != NONE) & (moved[found] != NONE))):
        found[again] = last[moved[found[again]]]
    return found


def confirmed(log: Log) -> Log:
    """Rows of a snapshot that say what is known already take the place of the version that says it, which keeps its
    beginning and what made it: its newest event is the snapshot's."""
    before = log.sequence.previous()
    read = np.flatnonzero(mask_of(pc.equal(log.rows.column(OP), "r")) & (log.origins < 0) & (before >= 0))
    read = read[log.present[before[read]]]
    read = read[_same(log.rows.take(pa.array(read)), log.rows.take(pa.array(before[read])))]
    if not len(read):
        return log
    again, superseded = np.zeros((2, len(before)), np.bool_)
    again[read], superseded[before[read]] = True, True
    root = np.where(again, log.sequence.last_marked(~again), np.arange(len(before)))
    rows = log.rows
    for name in (FROM, OP):
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, rows.schema.field(at), rows.column(name).take(pa.array(root)))
    return replace(log, rows=rows, times=log.times[root]).kept(~superseded)


def _same(left: pa.Table, right: pa.Table) -> Mask:
    """Which rows are equal in all columns of the row itself; nulls and NaNs are equal to their like."""
    same = np.ones(len(left), np.bool_)
    for name in left.schema.names:
        if name in OWN:
            continue
        a, b = left.column(name).combine_chunks(), right.column(name).combine_chunks()
        if pa.types.is_nested(a.type):
            same &= np.array([x == y for x, y in zip(a.to_pylist(), b.to_pylist(), strict=True)], np.bool_)
            continue
        equal = pc.or_(pc.fill_null(pc.equal(a, b), False), pc.and_(pc.is_null(a), pc.is_null(b)))
        if pa.types.is_floating(a.type):
            equal = pc.or_(equal, pc.fill_null(pc.and_(pc.is_nan(a), pc.is_nan(b)), False))
        same &= mask_of(equal)
    return same


def timed(rows: pa.Table, begin: Int64, end: Int64) -> pa.Table:
    """The rows as valid from and until these times; `NEVER` is null."""
    for name, times in ((FROM, pa.array(begin)), (TO, pa.array(end, mask=end == NEVER))):
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, rows.schema.field(at), times.cast(TIME))
    return rows


def untimed(batch: pa.RecordBatch) -> Mask:
    """Which change events do not say when they were committed, or a time that readers of the lake cannot read."""
    times, millis = micros(envelope.commit_micros(batch)), envelope.source_time(batch)
    first, last = YEARS
    # Those in ms too: the others may come of them, multiplied beyond what a number holds.
    out: Mask = (times < first * 1000) | (times > last * 1000 + 999) | (millis < first) | (millis > last)
    return out


def micros(times: pa.Array | pa.ChunkedArray) -> Int64:
    """Times in µs since the epoch; null is `NEVER`."""
    found: Int64 = pc.fill_null(times.cast(pa.int64()), NEVER).to_numpy()
    return found


def places_of(rows: pa.Table) -> Places:
    """Where the changes that made stored rows are in the source's log."""
    return Places(*(pc.fill_null(rows.column(name), -1).to_numpy() for name in COLUMNS.names))


def ends_of(rows: pa.Table, ends: Ends, unplaced: int) -> Int64:
    """When stored rows end (see `Ends.of_rows`); they need the columns `PLACED` alone."""
    partitions, offsets = (rows.column(name).to_numpy() for name in COORDINATES.names[:2])
    begin, end = micros(rows.column(FROM)), micros(rows.column(TO))
    return ends.of_rows(places_of(rows), partitions, offsets, begin, end, unplaced)
