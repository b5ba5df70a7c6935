"""The current state of a database table, folded from its change events as they arrive.

Each batch is folded to its last change per key, and lands as new rows, position deletes of the rows they replace, the
topic's offsets and the highest log position, in one snapshot. A change whose position is not above the partition's
highest is a repeat of Connect's and is dropped (see `marks`); rows of a snapshot are upserts, but those that an
incremental one read of a key that was changed a moment before (see `recent`). A changed key value arrives as a delete
and a create. A truncation raises the table's floor (see `places`). A baseline removes, of its partition, every row
whose newest event is older than the snapshot that it ends (schemas/baseline.py). When the source's columns or key
change, the rows that are there are made anew first, in a snapshot of their own (see `follow`).

A table without a key grows. Its updates and deletes find their row by all its values, which needs an order: a topic of
one partition. A row read by a full snapshot replaces everything older than that snapshot.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.table import Table

from headrace import metrics
from headrace.keyindex import Keys, hash_keys
from schemas import envelope
from schemas.envelope import NOWHERE, Position
from sinks.iceberg import progress, wholerows
from sinks.iceberg.applicable import child, full_identity, lost, mask_of, unfit, writes
from sinks.iceberg.changes import fold, join
from sinks.iceberg.commit import Change, trouble
from sinks.iceberg.evolve import set_aside
from sinks.iceberg.follow import (
    Added,
    NewKey,
    absent_filled,
    added_columns,
    added_properties,
    backfilled,
    defaults,
    new_columns,
    new_key,
    rekeyed,
    repeated,
    says_key,
    staged,
)
from sinks.iceberg.keyed import KeyedTable, Merging
from sinks.iceberg.marks import LOG_RULE, OTHER_LOG, Mark
from sinks.iceberg.obsolete import obsolete_keys, obsolete_positions
from sinks.iceberg.owned import Prepared, Source
from sinks.iceberg.pending import Changes, behind, placed, refused, rows_of, snapshot_floor, standing, without_obsolete
from sinks.iceberg.places import Places
from sinks.iceberg.recent import Recent, among
from sinks.iceberg.remake import raised
from sinks.iceberg.shape import fit_rows
from sinks.iceberg.slices import Reject, Slice, nonempty
from sinks.iceberg.toast import Moves, fill_unavailable, with_placeholders
from sinks.iceberg.upsert import take_rows

Mask = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]

# Whether rows have another key alone is looked up in the whole table: for no more than this share of the time.
ASKING = 0.05


class CurrentTable(KeyedTable):
    """Current state by the key of the topic's records, which the first records (or the table's property) tell."""

    # What its rejects name as the place that refused them.
    stage = "current"
    _key_known = False
    _key_since = NOWHERE
    _ask_again = 0.0
    _partitions = 1
    _remaking: Change | None = None
    _remade = False
    _recent = Recent()

    def open(self, source: Source) -> dict[int, int]:
        self._partitions = len(source.begin)
        return super().open(source)

    def admit(self, partition: int, begin: int) -> int:
        self._partitions = max(self._partitions, partition + 1)
        return super().admit(partition, begin)

    def _opened(self, table: Table) -> None:
        stored = table.properties.get(progress.KEY)
        if stored is not None:
            self._learn(tuple(filter(None, stored.split(","))))
        since = table.properties.get(progress.key_since_property(self.topic))
        self._key_since = Position.parse(since) if since else NOWHERE
        self._added = added_columns(table.properties)
        super()._opened(table)

    _added: Added = {}  # noqa: RUF012  (replaced, never changed in place)

    @property
    def _fixed(self) -> Sequence[str]:
        return self.key

    def table_properties(self) -> dict[str, str]:
        """A table may be made before its key is known: by a truncate alone, whose record has none."""
        return (super().table_properties() if self._key_known else {}) | added_properties(self._added)

    def _learn(self, key: tuple[str, ...]) -> None:
        if key != self.key:
            self._recent = Recent()
        self.key, self._key_known = key, True

    @property
    def floor(self) -> Position:
        """Nothing below it is live."""
        stored = self.properties.get(progress.floor_property(self.topic))
        return Position.parse(stored) if stored else NOWHERE

    def stages(self, slices: Sequence[Slice]) -> list[list[Slice]]:
        return staged(slices, self._marks(slices), self.key if self._key_known else None)

    def prepare(self, slices: Sequence[Slice]) -> Prepared:
        self._finish_remaking()
        self._follow(slices)
        rejects: list[Reject] = []
        marks: dict[int, Mark] = {}
        parts: list[Changes] = []
        dropped, emptied, floor, recent = 0, False, self.floor, self._recent
        baselines: dict[int, int] = {}
        for part in slices:
            if part.baseline:
                baselines[part.partition] = max(part.baseline, baselines.get(part.partition, 0))
        for part in slices:
            if not part.batch.num_rows:
                continue
            keep = self._applicable(part, rejects)
            if not envelope.is_envelope(part.batch.schema):
                continue
            places = self._places(part, keep, marks, rejects)
            fresh = self._fresh(part, places, keep, marks, rejects)
            dropped += int((keep & ~fresh).sum())
            if not (keep & fresh).any():
                # Columns of rejects are not the table's.
                continue
            keep &= fresh
            recent, changes = self._changes(part, keep, places, recent)
            truncates = np.flatnonzero(mask_of(pc.equal(envelope.operations(part.batch), "t")) & keep)
            if len(truncates):
                floor = max(floor, places.take(truncates).highest)
                if (places.high[truncates] < 0).any():
                    emptied, parts = True, []
                keep &= np.arange(len(keep)) > truncates[-1]
                changes = behind(changes, int(part.offsets[part.rows[truncates[-1]]]))
            if not self.key:
                floor = max(floor, snapshot_floor(part.batch, places, keep))
            parts.append(changes)
        if floor > self.floor and self.table is not None:
            self._remake(lambda: raised(self._existing, floor, {progress.floor_property(self.topic): str(floor)}))
        parts = [standing(changes, floor) for changes in parts]
        fitted = self._fit_slices([(c.slice, c.rows) for c in parts], self.stage)
        unfitting = {id(reject.slice) for reject in fitted.rejects}
        parts = [c for c in parts if id(c.slice) not in unfitting]
        parts = [replace(c, rows=rows) for c, rows in zip(parts, fitted.batches, strict=True)]
        parts = [without_obsolete(c, baselines) for c in parts]
        merging = self._merge(parts, fitted, rejects, recent)
        merging.slices, merging.dropped = slices, dropped
        merging.truncate = emptied and self.table is not None
        merging.state = self._state(marks)
        self._remove_obsolete(merging, baselines)
        if floor != NOWHERE:
            merging.state[progress.floor_property(self.topic)] = str(floor)
        return merging

    def _state(self, marks: Mapping[int, Mark]) -> dict[str, str]:
        """What is to be remembered beside the offsets."""
        state: dict[str, str] = {}
        for partition, mark in marks.items():
            state |= mark.properties(self.topic, partition)
        if self._key_known and self.table is not None and progress.KEY not in self.properties:
            state |= self.table_properties()
        return state

    def _applicable(self, part: Slice, rejects: list[Reject]) -> Mask:
        """The rows that can be applied; the others become rejects, with the first rule that they break. Repeats, which
        may have another key now, stay among them: they are dropped later."""
        if not self._key_known and part.key_fields is not None and says_key(part):
            self._learn(part.key_fields)
            if self.table is not None:
                super()._opened(self._existing)
        keep = np.ones(part.batch.num_rows, np.bool_)
        judged = keep.copy()
        if part.key_fields != self.key and envelope.is_envelope(part.batch.schema):
            judged = ~repeated(part, self._mark(part.partition).position)
        rules = unfit(part, self.key, whole_rows=self._partitions == 1)
        self._refuse(part, ((rule, mask & judged, reason) for rule, mask, reason in rules), keep, rejects)
        return keep

    def _refuse(self, part: Slice, rules: Iterable[tuple[str, Mask, str]], keep: Mask, rejects: list[Reject]) -> None:
        for rule, mask, reason in rules:
            mask = mask & keep
            if mask.any():
                keep &= ~mask
                rejects.append(Reject(part, part.rows[mask], self.stage, rule, (reason,) * int(mask.sum())))

    def _places(self, part: Slice, keep: Mask, marks: Mapping[int, Mark], rejects: list[Reject]) -> Places:
        """Where the kept rows are in the log. Changes that do not say become rejects where they would be `lost`."""
        places, rows = Places.unknown(len(keep)), np.flatnonzero(keep)
        known, lack = Places.told(rows_of(envelope.placed(part.batch), rows))
        places.high[rows], places.low[rows] = known.high, known.low
        if lack:
            told = self._marks_of(range(self._partitions)) | {p: mark.position for p, mark in marks.items()}
            lacking = lost(part, places, told, keyed=bool(self.key))
            self._refuse(part, [("position", lacking, lack)], keep, rejects)
        return places

    def _fresh(self, part: Slice, places: Places, keep: Mask, marks: dict[int, Mark], rejects: list[Reject]) -> Mask:
        """Which rows are no repeats; moves the partition's mark. Rows of a snapshot, and those without a place, always
        are none. Those of another log become rejects."""
        rows = np.flatnonzero(keep & (places.high >= 0) & ~mask_of(envelope.snapshot_mask(part.batch)))
        mark = marks.get(part.partition) or self._mark(part.partition)
        fresh = np.ones(len(keep), np.bool_)
        times = envelope.source_time(part.batch)[rows]
        fresh[rows], other, marks[part.partition] = mark.judge(places.take(rows), times)
        if other.any():
            keep[rows[other]] = False
            rejects.append(Reject(part, part.rows[rows[other]], self.stage, LOG_RULE, (OTHER_LOG,) * int(other.sum())))
        return fresh

    def _marks(self, slices: Sequence[Slice]) -> dict[int, Position]:
        return self._marks_of(part.partition for part in slices)

    def _marks_of(self, partitions: Iterable[int]) -> dict[int, Position]:
        return {partition: self._mark(partition).position for partition in partitions}

    def _mark(self, partition: int) -> Mark:
        """Up to where changes of a partition have been applied."""
        return Mark.stored(self.properties, self.topic, partition)

    def _changes(self, part: Slice, keep: Mask, places: Places, recent: Recent) -> tuple[Recent, Changes]:
        """The kept changes (maybe none: then only the columns count), and what is known of keys after them."""
        op = envelope.operations(part.batch)
        present = writes(op)
        rows = np.flatnonzero(keep & (present | mask_of(pc.equal(op, "d"))))
        batch, present, places = rows_of(part.batch, rows), present[rows], places.take(rows)
        after = placed(envelope.row_batch(batch, "after"), part, part.rows[rows], places)
        after = absent_filled(after, self._added)
        before = None if self.key else envelope.row_batch(batch, "before")
        going = mask_of(envelope.has_row(batch, "before"))
        created = mask_of(pc.equal(envelope.operations(batch), "c"))
        keys = self._keys(batch, present)
        recent, stale = self._judged(part, batch, keys, recent)
        return recent, Changes(part, after, present, keys, places, going, created, stale, before)

    def _judged(self, part: Slice, batch: pa.RecordBatch, keys: Keys, recent: Recent) -> tuple[Recent, Mask]:
        """What is known of keys after a part of a slice, and which of its rows change nothing. Without a key a row that
        was read again is one more."""
        if not self.key:
            return recent, np.zeros(batch.num_rows, np.bool_)
        return recent.judged(part.partition, batch, keys, part.schema)

    def _keys(self, batch: pa.RecordBatch, present: Mask) -> Keys:
        if not self.key or not batch.num_rows:
            nothing = np.zeros(batch.num_rows, np.uint64)
            return Keys(nothing, nothing)
        if present.all():
            return hash_keys([child(batch, "after", name) for name in self.key])
        side = pa.array(present)
        return hash_keys([pc.if_else(side, child(batch, "after", n), child(batch, "before", n)) for n in self.key])

    def _merge(self, parts: list[Changes], fitted: Prepared, rejects: list[Reject], recent: Recent) -> Merging:
        rejects = nonempty(fitted.rejects) + rejects
        if not self.key:
            return self._settle(parts, fitted, rejects)
        keys = join([c.keys for c in parts])
        present = np.concatenate([np.empty(0, np.bool_), *(c.present for c in parts)])
        batches = [c.rows for c in parts]
        stale = np.concatenate([np.empty(0, np.bool_), *(c.stale for c in parts)])
        counts = ~stale
        while True:
            kept = np.flatnonzero(counts)
            folded = fold(keys.take(kept), present[kept])
            write = kept[folded.write]
            rows = take_rows(batches, write)
            names = with_placeholders(rows)
            if not names:
                break
            high, low = (np.concatenate([getattr(c.places, side) for c in parts]) for side in ("high", "low"))
            moves = Moves.of(high, low, np.concatenate([c.created for c in parts]), present)
            with trouble(self.name):
                filled, unknown = fill_unavailable(
                    self, names, batches, keys, present & counts, write, fitted.columns, moves
                )
            rows = filled.to_batches()
            if not unknown.any():
                break
            lost = keys.take(write[unknown])
            recent = recent.without(lost)
            again = stale & among(keys, lost)
            if again.any():
                # No change before these rows was applied: they say the value.
                stale &= ~again
                counts |= again
                continue
            # Without these, an earlier change of their key is the last.
            reason = f"an unchanged large value was not sent and is not known here; {full_identity(self.topic)}"
            rejects += refused(parts, write[unknown], self.stage, "value", reason)
            counts[write[unknown]] = False
        merging = Merging(fitted.slices, fitted.columns, rows, rejects, keys=folded.keys, touched=folded.touched)
        merging.recent, merging.stale = recent, int(stale.sum())
        return merging

    def _settle(self, parts: list[Changes], fitted: Prepared, rejects: list[Reject]) -> Merging:
        """Changes of a table without a key, in their order."""
        batches = [c.rows for c in parts]
        starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
        batch = wholerows.Batch(np.concatenate([np.empty(0, np.bool_), *(c.present for c in parts)]))
        for number, changes in enumerate(parts):
            going = changes.going
            if not going.any() or changes.before is None:
                continue
            before = set_aside(fitted.columns, changes.before)
            columns = pa.schema([fitted.columns.field(name) for name in before.schema.names])
            after = pa.concat_tables([fit_rows(rows, fitted.columns) for rows in batches[: number + 1]])
            start = int(starts[number])
            with trouble(self.name):
                missing = batch.apply(
                    start,
                    going,
                    wholerows.row_names(before, columns),
                    changes.present,
                    wholerows.row_names(after, columns),
                    self.table,
                    columns,
                )
            rejects += refused(
                parts, start + missing, self.stage, "before", "the row that it changes is not in the table"
            )
        rows = take_rows(batches, np.flatnonzero(batch.alive))
        return Merging(fitted.slices, fitted.columns, rows, rejects, dead=list(batch.dead.values()))

    def _remove_obsolete(self, merging: Merging, baselines: Mapping[int, int]) -> None:
        """Add the committed rows that baselines make obsolete."""
        if not baselines or self.table is None or merging.truncate:
            return
        with trouble(self.name):
            if self.key:
                merging.touched = join([merging.touched, obsolete_keys(self, baselines)])
            else:
                merging.dead = [*merging.dead, *obsolete_positions(self.table, baselines)]

    def counted(self, rows: pa.Table) -> Mask:
        """Which stored rows have a key of their own; a table has one of each key among them."""
        return np.ones(len(rows), np.bool_)

    def _applied(self, prepared: Prepared) -> None:
        super()._applied(prepared)
        assert isinstance(prepared, Merging)
        self._recent = prepared.recent

    def _follow(self, slices: Sequence[Slice]) -> None:
        """Bring the rows that are there under the source's present key and columns, before new ones come."""
        if self.table is None:
            self._added = defaults(slices)
            return
        new = new_key(slices, self.key, self._key_since, self._marks(slices)) if self._key_known else None
        if new is not None and new.read:
            # The source sends its rows again, and those without a value for the key go. Filled they would stay, under a
            # value that need not be theirs.
            self._rekey(new)
        added = new_columns(slices, self._existing.schema(), self._added)
        if added:
            metrics.SCHEMA_CHANGES.labels(self.name, "filled").inc(len(added))
            self._remake(lambda: backfilled(self._existing, added))
        if new is not None and not new.read and time.monotonic() >= self._ask_again:
            self._rekey(new)

    def _rekey(self, new: NewKey) -> None:
        started = time.monotonic()
        self._remake(lambda: rekeyed(self._existing, self.topic, new, counted=self.counted))
        if self.key != new.fields:
            self._ask_again = time.monotonic() + (time.monotonic() - started) / ASKING

    def _remake(self, change: Callable[[], Change | None]) -> None:
        """Commit a change of all rows, if any. After an `UnavailableError` it is committed before anything else."""
        with trouble(self.name):
            self._remaking = change()
        self._finish_remaking()

    def _finish_remaking(self) -> None:
        if self._remaking is not None and self._committer is not None:
            self._committer.commit(self._remaking)
            self._remade = True
        self._remaking = None
        if self._remade:
            # Reading may fail: what has been committed is not to be committed again then.
            self._opened(self._existing)
            self._remade = False
