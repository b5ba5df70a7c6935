"""Every version that a row of a captured table has had, and when it was valid (slowly changing dimension, type 2).

A row's version is valid from the commit of the change that made it (`valid_from`) until that of the next one
(`valid_to`, excluded; null while it lasts). A change ends the open version of its key: that row dies by a position
delete and is written again with its end, beside the new version. Closed versions live in files of their own, which no
later change touches. Repeats are dropped by position, progress is committed with the rows, and rows are refused, as in
the current-state table, which is what the open versions are: one of each key.

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
from pyiceberg.manifest import DataFile
from pyiceberg.table import FileScanTask

from headrace.asof import HISTORY_OF
from schemas import envelope
from schemas.envelope import Position
from sinks.iceberg.applicable import full_identity, mask_of, writes
from sinks.iceberg.build import KeyColumns
from sinks.iceberg.commit import trouble
from sinks.iceberg.compact import paths_of
from sinks.iceberg.current import CurrentTable, refused
from sinks.iceberg.follow import absent_filled
from sinks.iceberg.history_rows import FROM, OP, OWN, TIME, TO, Events, Log, ended, filled, timed, unchanged
from sinks.iceberg.keyed import Merging, at_once
from sinks.iceberg.livefiles import LiveFiles
from sinks.iceberg.locations import file_of, position_of
from sinks.iceberg.owned import Prepared
from sinks.iceberg.parquet import FileWriter
from sinks.iceberg.places import COLUMNS, Places
from sinks.iceberg.rewrite import live_rows, rows_at
from sinks.iceberg.shape import fit_rows
from sinks.iceberg.slices import Reject, Slice, with_coordinates
from sinks.iceberg.versions import BEFORE_ALL, NEVER, NONE, versions

Mask = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]

EVENTS = pa.array(["c", "r", "u", "d", "t"])


@dataclass(eq=False)
class Closing(Merging):
    """Open versions as `batches`, ended ones as `closed`; with a truncate, its time: all that are open end then."""

    truncated: int = 0


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
        return {number: task for number, task in files.by_number.items() if not self._all_closed(task)}

    def _apart(self, task: FileScanTask) -> bool:
        return self._all_closed(task)

    def _all_closed(self, task: FileScanTask) -> bool:
        nulls = task.file.null_value_counts or {}
        return nulls.get(self._existing.schema().find_field(TO).field_id) == 0

    def prepare(self, slices: Sequence[Slice]) -> Prepared:
        """As the current state does, but that each change counts, and a truncate is one of them."""
        self._finish_remaking()
        self._follow(slices)
        rejects: list[Reject] = []
        marks: dict[int, Position] = {}
        parts: list[Events] = []
        dropped = 0
        for part in slices:
            if not part.batch.num_rows:
                continue
            keep = self._applicable(part, rejects)
            if not envelope.is_envelope(part.batch.schema):
                continue
            places = self._places(part, keep, rejects)
            fresh = self._fresh(part, places, keep, marks)
            dropped += int((keep & ~fresh).sum())
            parts += self._events(part, keep & fresh, places)
        fitted = self._fit_slices([(c.slice, c.rows) for c in parts], self.stage)
        lost = {id(reject.slice) for reject in fitted.rejects}
        parts = [c for c in parts if id(c.slice) not in lost]
        parts = [replace(c, rows=rows) for c, rows in zip(parts, fitted.batches, strict=True)]
        merging = self._ended(parts, fitted, rejects)
        merging.slices, merging.dropped, merging.state = slices, dropped, self._state(marks)
        return merging

    def _applicable(self, part: Slice, rejects: list[Reject]) -> Mask:
        keep = super()._applicable(part, rejects)
        if not envelope.is_envelope(part.batch.schema):
            return keep
        changes = mask_of(pc.is_in(envelope.operations(part.batch), EVENTS))
        untimed = mask_of(pc.is_null(envelope.commit_micros(part.batch)))
        rules = [("time", changes & untimed, "the change does not say when it was committed (source.ts_ms)")]
        taken = sorted(set(OWN) & {f.name for f in part.batch.schema.field("after").type})
        if taken:
            rules.append(("columns", changes, f"the row has {', '.join(taken)}, which a history has of its own"))
        for rule, mask, reason in rules:
            mask &= keep
            if mask.any():
                keep &= ~mask
                rejects.append(Reject(part, part.rows[mask], self.stage, rule, (reason,) * int(mask.sum())))
        return keep

    def counted(self, rows: pa.Table) -> Mask:
        return mask_of(pc.is_null(rows.column(TO)))

    def _events(self, part: Slice, keep: Mask, places: Places) -> list[Events]:
        op = envelope.operations(part.batch)
        rows = np.flatnonzero(keep & mask_of(pc.is_in(op, EVENTS)))
        batch, places = part.batch.take(pa.array(rows)), places.take(rows)
        op = envelope.operations(batch)
        present = writes(op)
        after = envelope.row_batch(batch, "after")
        if set(OWN) & set(after.schema.names):
            return []
        own = {FROM: envelope.commit_micros(batch).cast(TIME), TO: pa.nulls(len(rows), TIME), OP: op}
        fields = [*after.schema, *(pa.field(name, column.type) for name, column in own.items())]
        after = pa.RecordBatch.from_arrays([*after.columns, *own.values()], schema=pa.schema(fields))
        after = with_coordinates(after, part, part.rows[rows])
        after = pa.RecordBatch.from_arrays(
            [*after.columns, *places.columns()], schema=pa.schema([*after.schema, *COLUMNS])
        )
        after = absent_filled(after, places, self._added)
        going = mask_of(envelope.has_row(batch, "before"))
        created = mask_of(pc.equal(op, "c"))
        truncates = mask_of(pc.equal(op, "t"))
        return [Events(part, after, present, self._keys(batch, present), places, going, created, None, truncates)]

    def _ended(self, parts: list[Events], fitted: Prepared, rejects: list[Reject]) -> Closing:
        """All changes of the batch as versions; truncates are among the changes."""
        merging = Closing(fitted.slices, fitted.columns, [], fitted.rejects + rejects)
        if not sum(len(c.present) for c in parts):
            return merging
        log = Log.of(parts, fitted.columns)
        if not self.key:
            self._keyless(merging, log)
            return merging
        with trouble(self.name):
            stored, at = self._stored(log)
        rows, unknown = filled(log, fit_rows(stored, fitted.columns), at)
        reason = f"an unchanged large value was not sent and is not known here; {full_identity(self.topic)}"
        merging.rejects += refused(list(parts), log.rows_of_batch[unknown], self.stage, "value", reason)
        keep = ~unknown & ~unchanged(log, rows, stored, at)
        log, rows, at = log.kept(keep, rows), rows.filter(pa.array(keep)), at[keep]
        since = np.full(len(at), BEFORE_ALL)
        begins = stored.column(FROM).cast(pa.int64()).to_numpy()
        since[at >= 0] = begins[at[at >= 0]]
        # A key's versions refer to what the table has, whichever of its changes comes first.
        made = versions(log.sequence, log.times, log.present, log.truncates, since)
        fresh = timed(rows.take(pa.array(made.write)), made.begin, made.end)
        open_ = np.flatnonzero(made.end == NEVER)
        ended = np.flatnonzero(made.closing)
        old = timed(fit_rows(stored.take(pa.array(at[ended])), fitted.columns), since[ended], made.ends[ended])
        closed = pa.concat_tables([old, fresh.filter(pa.array(made.end != NEVER))])
        merging.batches = fresh.take(pa.array(open_)).to_batches()
        merging.keys = log.keys.take(made.write[open_])
        merging.touched = log.keys.take(ended)
        merging.closed = closed.to_batches()
        self._note_truncate(merging, log)
        return merging

    def _keyless(self, merging: Closing, log: Log) -> None:
        """Every row that comes is a version; it ends when the table is emptied."""
        left = np.concatenate((log.truncates, [NEVER]))[log.sequence.epochs]
        write = np.flatnonzero(log.present)
        rows = timed(log.rows.take(pa.array(write)), log.times[write], np.maximum(left, log.times)[write])
        merging.batches = rows.to_batches()
        self._note_truncate(merging, log)

    def _note_truncate(self, merging: Closing, log: Log) -> None:
        if len(log.truncates) and self.table is not None:
            merging.truncate, merging.truncated = True, int(log.truncates[0])

    def _stored(self, log: Log) -> tuple[pa.Table, Int64]:
        """The open rows that the table has of the keys that change before any truncate; and, for each change, which of
        them is its key's (`NONE` where it has none, and behind a truncate)."""
        at = np.full(len(log.times), NONE)
        if self.table is None:
            return log.rows.schema.empty_table(), at
        early = np.flatnonzero(log.sequence.epochs == 0)
        locations = self._index.locations(log.keys.take(early))
        wanted, place = np.unique(locations, return_inverse=True)
        absent = int((wanted < 0).sum())
        at[early] = np.where(locations < 0, NONE, place - absent)
        wanted = wanted[absent:]
        numbers, starts = np.unique(file_of(wanted), return_index=True)
        groups = zip(numbers.tolist(), np.split(position_of(wanted), starts[1:]), strict=False)
        table = self._existing

        def read(group: tuple[int, Int64]) -> pa.Table:
            return rows_at(table, self._files[group[0]].file, group[1])

        found = at_once(read, groups) if len(wanted) else []
        return pa.concat_tables(found) if found else log.rows.schema.empty_table(), at

    def _empty(self, prepared: Merging, writer: FileWriter) -> tuple[frozenset[str], list[DataFile]]:
        """Files with open versions are written again with all of them ended, but for those that end otherwise."""
        assert isinstance(prepared, Closing)
        table = self._existing
        files = self._files if self.key else LiveFiles(table.scan().plan_files())
        dying = self._index.locations(prepared.touched) if self.key else np.empty(0, np.int64)
        dying = dying[dying >= 0]
        chosen = self._indexed(files)
        made = []
        for number, task in chosen.items():
            pieces = live_rows(table, task, position_of(dying[file_of(dying) == number]))
            first = next(pieces, None)
            if first is None:
                continue
            partition = replace(writer, spec=table.specs()[task.file.spec_id])
            first = ended(first, prepared.truncated, writer.arrow)
            with partition.open(first) as out:
                out.write(first)
                for rows in pieces:
                    out.write(ended(rows, prepared.truncated, writer.arrow))
            made.append(out.file)
        return paths_of(list(chosen.values())), made
