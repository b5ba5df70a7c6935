"""Every version that a row of a captured table has had, and when it was valid (slowly changing dimension, type 2).

A row's version is valid from the commit of the change that made it (`valid_from`) until that of the next one
(`valid_to`, excluded; null while it lasts). A change ends the open version of its key: that row dies by a position
delete and is written again with its end, beside the new version. Closed versions live in files of their own, which
only what a truncation ends can touch (see `ends`). Repeats are dropped by position, progress is committed with the
rows, and rows are refused, as in the current-state table, which is what the open versions are: one of each key.

What a commit costs: the open versions that it ends are read, and Parquet gives them by row groups. Changes all over a
large table read most of its open rows; changes of recent rows few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.catalog import Catalog
from pyiceberg.table import FileScanTask

from headrace.asof import HISTORY_OF
from schemas import envelope
from sinks.iceberg import progress
from sinks.iceberg.applicable import full_identity, mask_of, row_columns, writes
from sinks.iceberg.build import KeyColumns
from sinks.iceberg.commit import trouble
from sinks.iceberg.current import CurrentTable
from sinks.iceberg.ending import all_closed, ended, reopened
from sinks.iceberg.ends import Ends
from sinks.iceberg.filerows import rows_at
from sinks.iceberg.follow import absent_filled
from sinks.iceberg.history_rows import (
    FROM,
    OP,
    TIME,
    TO,
    Events,
    Log,
    confirmed,
    filled,
    micros,
    places_of,
    timed,
    untimed,
)
from sinks.iceberg.keyed import Merging, at_once
from sinks.iceberg.livefiles import LiveFiles
from sinks.iceberg.locations import distinct, file_of, locate, position_of
from sinks.iceberg.marks import Mark
from sinks.iceberg.owned import Prepared, Source
from sinks.iceberg.pending import placed, refused
from sinks.iceberg.places import Places
from sinks.iceberg.recent import Recent
from sinks.iceberg.shape import fit_rows
from sinks.iceberg.slices import Reject, Slice, kafka_time, nonempty
from sinks.iceberg.versions import NEVER, versions

Mask = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]

EVENTS = pa.array(["c", "r", "u", "d", "t"])
# Columns that a version has beside those of the current state.
VERSION = frozenset([FROM, TO, OP])
UNTIMED = "the change does not say when it was committed (source.ts_ms), or not in the years 1 to 9999"
UNPLACED = "a truncation without its place in the log: set provide.transaction.metadata=true in the connector"


@dataclass(eq=False)
class Closing(Merging):
    """Open versions as `batches`, ended ones as `closed`."""

    landed: bool = False


class HistoryTable(CurrentTable):
    """All versions of the rows of a captured table. `of` names the table with its current state."""

    stage = "history"

    def __init__(self, catalog: Catalog, name: str, topic: str, *, of: str, **more: Any) -> None:
        super().__init__(catalog, name, topic, **more)
        self._of = of

    def table_properties(self) -> dict[str, str]:
        return super().table_properties() | {HISTORY_OF: self._of}

    @property
    def key_columns(self) -> KeyColumns:
        return KeyColumns(self.key, unless=TO)

    def _indexed(self, files: LiveFiles) -> dict[int, FileScanTask]:
        return {number: task for number, task in files.by_number.items() if not self._apart(task)}

    def _apart(self, task: FileScanTask) -> bool:
        return all_closed(self._existing, task)

    def open(self, source: Source) -> dict[int, int]:
        offsets = super().open(source)
        self._finish_remaking()
        return offsets

    def commit(self, prepared: Prepared) -> None:
        assert isinstance(prepared, Closing)
        if not prepared.landed:
            super().commit(prepared)
            prepared.landed = True
        self._finish_remaking()

    def _finish_remaking(self) -> None:
        """Also end what truncations and baselines end of the rows that are there: said in the commit that has their
        records, done in one of its own, and again until a property says that it is."""
        super()._finish_remaking()
        wanted, done = (self.properties.get(p(self.topic)) for p in (progress.ends_property, progress.ended_property))
        if wanted is not None and wanted != done:
            state = {progress.ended_property(self.topic): wanted}
            self._remake(lambda: ended(self._existing, Ends.parse(wanted), Ends.parse(done), state))

    def prepare(self, slices: Sequence[Slice]) -> Prepared:
        """As the current state does, but that each change counts, and a truncate is one of them."""
        self._finish_remaking()
        self._follow(slices)
        rejects: list[Reject] = []
        marks: dict[int, Mark] = {}
        parts: list[Events] = []
        dropped, recent = 0, self._recent
        for part in slices:
            if not part.batch.num_rows:
                continue
            keep = self._applicable(part, rejects)
            if not envelope.is_envelope(part.batch.schema):
                continue
            places = self._places(part, keep, marks, rejects)
            lost = keep & (places.high < 0) & mask_of(pc.equal(envelope.operations(part.batch), "t"))
            self._refuse(part, [("position", lost, UNPLACED)], keep, rejects)
            fresh = self._fresh(part, places, keep, marks, rejects)
            dropped += int((keep & ~fresh).sum())
            if not (keep & fresh).any():
                continue
            recent, events = self._events(part, keep & fresh, places, recent)
            parts += events
        done = Ends.parse(self.properties.get(progress.ends_property(self.topic)))
        ends = done
        for c in parts:
            # Whatever becomes of the rows beside it: a truncation has none, and no columns that could be refused.
            ends = ends.with_truncates(*c.truncations)
        parts = [c.without_truncations for c in parts]
        fitted = self._fit_slices([(c.slice, c.rows) for c in parts], self.stage)
        refused_ = {id(reject.slice) for reject in fitted.rejects}
        parts = [c for c in parts if id(c.slice) not in refused_]
        parts = [replace(c, rows=rows) for c, rows in zip(parts, fitted.batches, strict=True)]
        ends = ends.with_baselines(
            (p.partition, p.baseline, kafka_time(np.array([p.baseline_time]))[0].value)
            for p in slices
            if p.baseline_time
        )
        merging = self._ended(parts, fitted, rejects, ends, done, recent)
        merging.slices, merging.dropped, merging.state = slices, dropped, self._state(marks)
        if ends != done:
            merging.state[progress.ends_property(self.topic)] = str(ends)
        return merging

    def _applicable(self, part: Slice, rejects: list[Reject]) -> Mask:
        keep = super()._applicable(part, rejects)
        if not envelope.is_envelope(part.batch.schema):
            return keep
        changes = mask_of(pc.is_in(envelope.operations(part.batch), EVENTS))
        rules = [("time", changes & untimed(part.batch), UNTIMED)]
        taken = sorted(VERSION & row_columns(part))
        if taken:
            rules.append(("columns", changes, f"the row has {', '.join(taken)}, which a history has of its own"))
        self._refuse(part, rules, keep, rejects)
        return keep

    def counted(self, rows: pa.Table) -> Mask:
        return mask_of(pc.is_null(rows.column(TO)))

    def _events(self, part: Slice, keep: Mask, places: Places, recent: Recent) -> tuple[Recent, list[Events]]:
        op = envelope.operations(part.batch)
        rows = np.flatnonzero(keep & mask_of(pc.is_in(op, EVENTS)))
        batch, places = part.batch.take(pa.array(rows)), places.take(rows)
        op = envelope.operations(batch)
        present = writes(op)
        after = envelope.row_batch(batch, "after")
        if VERSION & set(after.schema.names):
            return recent, []
        own = {FROM: envelope.commit_micros(batch).cast(TIME), TO: pa.nulls(len(rows), TIME), OP: op}
        fields = [*after.schema, *(pa.field(name, column.type) for name, column in own.items())]
        after = pa.RecordBatch.from_arrays([*after.columns, *own.values()], schema=pa.schema(fields))
        after = placed(after, part, part.rows[rows], places)
        after = absent_filled(after, self._added)
        going = mask_of(envelope.has_row(batch, "before"))
        created = mask_of(pc.equal(op, "c"))
        truncates = mask_of(pc.equal(op, "t"))
        keys = self._keys(batch, present)
        recent, stale = self._judged(part, batch, keys, recent)
        return recent, [Events(part, after, present, keys, places, going, created, stale, None, truncates)]

    def _ended(
        self, parts: list[Events], fitted: Prepared, rejects: list[Reject], ends: Ends, done: Ends, recent: Recent
    ) -> Closing:
        """All changes of the batch as versions. Those that the table has of their keys end by changes in the same
        commit, the others, by what `ends` has beyond `done`, in the next."""
        merging = Closing(fitted.slices, fitted.columns, [], nonempty(fitted.rejects) + rejects, recent=recent)
        if not sum(len(c.present) for c in parts):
            return merging
        log = Log.of(parts, fitted.columns, ends)
        if not self.key:
            end = np.maximum(log.times, ends.left(log.sequence.epochs))
            merging.batches = timed(log.rows, log.times, end).filter(pa.array(log.present)).to_batches()
            return merging
        locations, stored = np.empty(0, np.int64), log.rows.schema.empty_table()
        if self.table is not None:
            with trouble(self.name):
                locations = self._locations(log, ends, done)
                stored = fit_rows(self._stored(locations), fitted.columns) if len(locations) else stored
        # Of one key and epoch in their order.
        order = np.argsort(stored.column("_offset").to_numpy(), kind="stable")
        stored, locations = stored.take(pa.array(order)), locations[order]
        keys = self.key_columns.keys(stored)
        log = log.behind(stored, keys, ends.epochs(places_of(stored), ends.first_new(done)))
        log, unknown, merging.stale = filled(log)
        merging.recent = recent.without(log.keys.take(unknown))
        reason = f"an unchanged large value was not sent and is not known here; {full_identity(self.topic)}"
        merging.rejects += refused(list(parts), log.rows_of_batch[unknown], self.stage, "value", reason)
        log = confirmed(log.kept(~unknown))
        begin, end = versions(log.sequence, log.times, log.present, ends.left(log.sequence.epochs))
        before = micros(stored.column(TO))
        old = np.flatnonzero(log.origins >= 0)
        same = old[end[old] == before[log.origins[old]]]
        dying = np.ones(len(stored), np.bool_)
        dying[log.origins[same]] = False
        write = log.present.copy()
        write[same] = False
        fresh = timed(log.rows, begin, end)
        open_ = np.flatnonzero(write & (end == NEVER))
        merging.batches = fresh.take(pa.array(open_)).to_batches()
        merging.keys = log.keys.take(open_)
        merging.touched = keys.take(np.flatnonzero(dying & (before == NEVER)))
        merging.dying = locations[dying & (before != NEVER)]
        merging.closed = fresh.filter(pa.array(write & (end != NEVER))).to_batches()
        return merging

    def _locations(self, log: Log, ends: Ends, done: Ends) -> Int64:
        """Where the versions of the keys that change are: open ones, and those that a truncation has ended which is
        later than one of the changes."""
        found = [self._index.locations(log.keys)]
        passed = int(ends.epochs(done.last, 0)[0]) if done.truncates else 0
        late = np.flatnonzero(log.sequence.epochs < passed)
        if len(late):
            keys, since = log.keys.take(late), int(ends.times[:passed].min())
            for number, task in self._files.by_number.items():
                found.append(locate(number, reopened(self._existing, task, self.key, keys, done, since)))
        locations = distinct(np.concatenate(found))
        return locations[locations >= 0]

    def _stored(self, locations: Int64) -> pa.Table:
        """The rows there."""
        numbers, starts = np.unique(file_of(locations), return_index=True)
        groups = zip(numbers.tolist(), np.split(position_of(locations), starts[1:]), strict=False)
        table = self._existing

        def read(group: tuple[int, Int64]) -> pa.Table:
            return rows_at(table, self._files[group[0]].file, group[1])

        return pa.concat_tables(at_once(read, groups))
