"""The current state of a database table, folded from its change events as they arrive.

Each batch is folded to its last change per key, and lands as new rows, position deletes of the rows they replace, the
topic's offsets and the highest log position, in one snapshot. A change whose position is not above the partition's
highest is a repeat of Connect's and is dropped; rows of a snapshot are upserts. A changed key arrives as a delete and a
create. A truncate removes everything before it; a baseline removes, of its partition, every row whose newest event is
older than the snapshot that it ends (schemas/baseline.py). Without a key a table only grows, but for these two; its
updates and deletes cannot be applied and go to the quarantine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.table import Table

from headrace.errors import ContractError
from headrace.keyindex import Keys, hash_keys
from schemas import envelope
from schemas.envelope import NOWHERE, Position
from sinks.iceberg import progress
from sinks.iceberg.changes import Folded, fold, join
from sinks.iceberg.commit import trouble
from sinks.iceberg.keyed import KeyedTable, Merging
from sinks.iceberg.obsolete import obsolete_keys, obsolete_positions
from sinks.iceberg.owned import Prepared
from sinks.iceberg.slices import Reject, Slice, with_coordinates
from sinks.iceberg.toast import fill_unavailable, with_placeholders
from sinks.iceberg.upsert import take_rows

Mask = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]

STAGE = "current"


@dataclass(frozen=True, eq=False)
class Changes:
    """Applicable changes of one slice: `rows` (after, with coordinates), what each leaves, and its key."""

    slice: Slice
    rows: pa.RecordBatch
    present: Mask
    keys: Keys


class CurrentTable(KeyedTable):
    """Current state by the key of the topic's records, which the first records (or the table's property) tell."""

    _key_known = False

    def _opened(self, table: Table) -> None:
        stored = table.properties.get(progress.KEY)
        if stored is not None:
            self._learn(tuple(filter(None, stored.split(","))))
        super()._opened(table)

    def _learn(self, key: tuple[str, ...]) -> None:
        self.key, self._key_known = key, True

    def prepare(self, slices: Sequence[Slice]) -> Prepared:
        rejects: list[Reject] = []
        marks: dict[int, Position] = {}
        parts: list[Changes] = []
        dropped, truncate = 0, False
        baselines = {part.partition: part.baseline for part in slices if part.baseline}
        for part in slices:
            if not part.batch.num_rows:
                continue
            keep = np.ones(part.batch.num_rows, np.bool_)
            for rule, mask, reason in self._unfit(part):
                mask &= keep
                if mask.any():
                    keep &= ~mask
                    rejects.append(Reject(part, part.rows[mask], STAGE, rule, (reason,) * int(mask.sum())))
            fresh = self._fresh(part, keep, marks, rejects)
            dropped += int((keep & ~fresh).sum())
            for changes in self._changes(part, keep & fresh):
                if changes is None:
                    truncate, parts = True, []
                else:
                    parts.append(changes)
        fitted = self._fit_slices([(c.slice, c.rows) for c in parts], STAGE)
        refused = {id(reject.slice) for reject in fitted.rejects}
        parts = [without_obsolete(c, baselines) for c in parts if id(c.slice) not in refused]
        merging = self._merge(parts, truncate, fitted, rejects)
        merging.slices, merging.dropped = slices, dropped
        self._remove_obsolete(merging, baselines)
        merging.state = {
            progress.position_property(self.topic, partition): str(mark)
            for partition, mark in marks.items()
            if mark != NOWHERE
        }
        return merging

    def _unfit(self, part: Slice) -> Iterator[tuple[str, Mask, str]]:
        """Rules that keep records from being applied: name, mask over the batch's rows, reason. Later ones may rely on
        earlier ones."""
        batch = part.batch
        everything = np.ones(batch.num_rows, np.bool_)
        if not envelope.is_envelope(batch.schema):
            yield "envelope", everything, "the record is not a change event"
            return
        op = envelope.operations(batch)
        table = ".".join(self.topic.split(".")[-2:])
        yield "source table", _mask(pc.invert(envelope.is_of(batch, table))), f"the change is not of {table}"
        yield "op", ~_mask(pc.is_in(op, pa.array(["c", "r", "u", "d", "t", "m"]))), "no such operation"
        writes, deletes = _writes(op), _mask(pc.equal(op, "d"))
        lacks = ~_mask(envelope.has_row(batch, "after"))
        yield "after", writes & lacks, "the change has no row after it"
        if not (writes | deletes).any():
            return
        if part.key_fields is None:
            yield "key", writes | deletes, "the record's key is not a record with named fields"
            return
        if not self._key_known:
            self._learn(part.key_fields)
        if part.key_fields != self.key:
            have, want = (", ".join(key) or "none" for key in (part.key_fields, self.key))
            yield "key", writes | deletes, f"the record's key is ({have}), the table's ({want})"
            return
        if not self.key:
            yield "key", deletes | _mask(pc.equal(op, "u")), "an update or delete of a table without a key"
            return
        missing = set(self.key) - {f.name for f in batch.schema.field("after").type}
        if missing:
            yield "key", writes | deletes, f"the row has no {', '.join(sorted(missing))}"
            return
        bare = ~_mask(envelope.has_row(batch, "before"))
        yield "before", deletes & bare, "the delete does not say what it deletes; set REPLICA IDENTITY"
        for name in self.key:
            after, before = (_child(batch, side, name) for side in ("after", "before"))
            null = np.where(deletes, _mask(pc.is_null(before)), _mask(pc.is_null(after)))
            yield "key", (writes | deletes) & null, f"{name} is null"

    def _fresh(self, part: Slice, keep: Mask, marks: dict[int, Position], rejects: list[Reject]) -> Mask:
        """Which rows are no repeats; moves the partition's mark. Without positions all are fresh for a keyed table,
        which converges all the same, and none for one without a key."""
        fresh = np.ones(part.batch.num_rows, np.bool_)
        if not keep.any():
            return fresh
        if part.partition not in marks:
            stored = self.properties.get(progress.position_property(self.topic, part.partition))
            marks[part.partition] = Position.parse(stored) if stored else NOWHERE
        mark = marks[part.partition]
        rows = np.flatnonzero(keep)
        try:
            lsn, order = envelope.positions(_rows_of(envelope.placed(part.batch), rows))
        except ContractError as e:
            if not self.key:
                rejects.append(Reject(part, part.rows[keep], STAGE, "position", (str(e),) * len(rows)))
                keep[:] = False
            return fresh
        fresh[rows] = envelope.after_position(lsn, order, mark)
        marks[part.partition] = envelope.highest(lsn, order, mark)
        return fresh

    def _changes(self, part: Slice, keep: Mask) -> Iterator[Changes | None]:
        """The kept changes (maybe none: then only the columns count); before them None when they follow a truncate."""
        if not envelope.is_envelope(part.batch.schema):
            return
        op = envelope.operations(part.batch)
        truncates = np.flatnonzero(_mask(pc.equal(op, "t")) & keep)
        if len(truncates):
            yield None
            keep = keep & (np.arange(len(keep)) > truncates[-1])
        present = _writes(op)
        rows = np.flatnonzero(keep & (present | _mask(pc.equal(op, "d"))))
        batch = _rows_of(part.batch, rows)
        present = present[rows]
        after = with_coordinates(envelope.row_batch(batch, "after"), part, part.rows[rows])
        yield Changes(part, after, present, self._keys(batch, present))

    def _keys(self, batch: pa.RecordBatch, present: Mask) -> Keys:
        if not self.key or not batch.num_rows:
            nothing = np.zeros(batch.num_rows, np.uint64)
            return Keys(nothing, nothing)
        if present.all():
            return hash_keys([_child(batch, "after", name) for name in self.key])
        side = pa.array(present)
        return hash_keys([pc.if_else(side, _child(batch, "after", n), _child(batch, "before", n)) for n in self.key])

    def _merge(self, parts: list[Changes], truncate: bool, fitted: Prepared, rejects: list[Reject]) -> Merging:
        keys = join([c.keys for c in parts])
        present = np.concatenate([np.empty(0, np.bool_), *(c.present for c in parts)])
        if self.key:
            folded = fold(keys, present)
        else:
            nothing = join([])
            folded = Folded(np.flatnonzero(present), nothing, nothing)
        batches = [c.rows for c in parts]
        rows = take_rows(batches, folded.write)
        if self.key and (names := with_placeholders(rows)):
            with trouble(self.name):
                filled, unresolved = fill_unavailable(self, names, batches, keys, present, folded.write, fitted.columns)
            rejects += self._unavailable(parts, folded.write[unresolved])
            kept = np.flatnonzero(~unresolved)
            folded = Folded(folded.write[kept], folded.keys.take(kept), folded.touched)
            rows = filled.take(pa.array(kept)).to_batches()
        return Merging(
            fitted.slices,
            fitted.columns,
            rows,
            fitted.rejects + rejects,
            keys=folded.keys,
            touched=folded.touched,
            truncate=truncate and self.table is not None,
        )

    def _remove_obsolete(self, merging: Merging, baselines: Mapping[int, int]) -> None:
        """Add the committed rows that baselines make obsolete."""
        if not baselines or self.table is None or merging.truncate:
            return
        with trouble(self.name):
            if self.key:
                merging.touched = join([merging.touched, obsolete_keys(self, baselines)])
            else:
                merging.dead = list(obsolete_positions(self.table, baselines))

    def _unavailable(self, parts: list[Changes], rows: Int64) -> list[Reject]:
        """Changes that lack a value which neither the batch nor the table has."""
        reason = "an unchanged large value was not sent and is not known here; set REPLICA IDENTITY FULL"
        starts = np.cumsum([0, *(c.rows.num_rows for c in parts)])
        rejects = []
        for i, changes in enumerate(parts):
            mine = rows[(rows >= starts[i]) & (rows < starts[i + 1])] - starts[i]
            if len(mine):
                offsets = changes.rows.column("_offset").to_numpy()[mine]
                records = np.searchsorted(changes.slice.offsets, offsets)
                rejects.append(Reject(changes.slice, records, STAGE, "value", (reason,) * len(mine)))
        return rejects


def without_obsolete(changes: Changes, baselines: Mapping[int, int]) -> Changes:
    """Rows that a baseline of their partition makes obsolete leave nothing."""
    before = baselines.get(changes.slice.partition, 0)
    if changes.slice.start >= before:
        return changes
    return replace(changes, present=changes.present & (changes.rows.column("_offset").to_numpy() >= before))


def _mask(array: Any) -> Mask:
    out: Mask = pc.fill_null(array, False).to_numpy(zero_copy_only=False)
    return out


def _rows_of(batch: pa.RecordBatch, rows: Int64) -> pa.RecordBatch:
    """These rows, ascending; not copied when they are all."""
    return batch if len(rows) == batch.num_rows else batch.take(pa.array(rows))


def _writes(op: pa.StringArray) -> Mask:
    return _mask(pc.is_in(op, pa.array(["c", "r", "u"])))


def _child(batch: pa.RecordBatch, side: str, name: str) -> pa.Array:
    return pc.struct_field(batch.column(side), name)
