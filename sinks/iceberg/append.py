"""Append-only tables: bronze (a topic as received) and silver (a derived topic, without its replays)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
from pyiceberg.table.snapshots import Operation

from headrace.errors import ContractError, FencedError
from headrace.logs import get_logger
from schemas.codec import rule_of
from schemas.coordinates import drop_replays
from sinks.iceberg import progress
from sinks.iceberg.commit import Change, TableCommitter, trouble
from sinks.iceberg.compact import choose, paths_of
from sinks.iceberg.evolve import Evolution
from sinks.iceberg.owned import OwnedTable, Prepared
from sinks.iceberg.rewrite import rewrite
from sinks.iceberg.slices import Reject, Slice, received, with_coordinates

STAGE = "bronze"

log = get_logger("iceberg")


def undecodable(part: Slice) -> list[Reject]:
    """The records of a slice that did not decode, by rule."""
    by_rule: dict[str, list[int]] = {}
    for i, reason in enumerate(part.reasons):
        by_rule.setdefault(rule_of(reason), []).append(i)
    return [
        Reject(part, part.bad[rows], STAGE, rule, tuple(part.reasons[i] for i in rows))
        for rule, rows in by_rule.items()
    ]


class AppendTable(OwnedTable):
    """Every record that decodes becomes a row, tombstones included."""

    def prepare(self, slices: Sequence[Slice]) -> Prepared:
        prepared = self._fit_slices([(part, received(part)) for part in slices], STAGE)
        prepared.rejects += [reject for part in slices for reject in undecodable(part)]
        return prepared

    def _plan(self, prepared: Prepared, base: Change, evolution: Evolution, rows: pa.Table) -> Change:
        files = [written.file for written in self._writer(evolution).write(rows)]
        return replace(base, data_files=files, columns=evolution.columns, schema=evolution.schema)

    def _compact(self, committer: TableCommitter) -> None:
        with trouble(self.name):
            table = committer.table
            groups = choose(list(table.scan().plan_files()), target=self._target(table))
            if not groups:
                return
            files = [new.file for group in groups if (new := rewrite(table, group))]
        tasks = [task for group in groups for task in group]
        change = Change(
            {},
            {},
            files,
            removed=paths_of(tasks),
            operation=Operation.REPLACE,
            head=(table.metadata.current_snapshot_id,),
        )
        try:
            committer.commit(change)
            log.info("compacted", table=self.name, files=len(tasks), into=len(files))
        except FencedError as e:
            # Rows can be appended all the same; the rewrite was of files that are no longer all there.
            log.info("compaction given up", table=self.name, reason=e.what)
            committer.reload()


class DerivedTable(AppendTable):
    """Rows of a derived topic: a row whose source coordinates are not above the lane's highest is a replay."""

    def prepare(self, slices: Sequence[Slice]) -> Prepared:
        marks: dict[int, dict[str, int]] = {}
        parts, rejects, dropped = [], [], 0
        for part in slices:
            rejects += undecodable(part)
            known = marks.get(part.partition)
            if known is None:
                known = progress.source_watermarks(self.properties, self.topic, part.partition)
            batch = with_coordinates(part.batch, part, part.rows)
            if batch.num_rows:
                try:
                    keep, marks[part.partition] = drop_replays(part.batch, known)
                except ContractError as e:
                    rejects.append(Reject(part, part.rows, STAGE, "coordinates", (str(e),) * batch.num_rows))
                    keep = pa.repeat(False, batch.num_rows)
                else:
                    dropped += len(keep) - keep.true_count
                batch = batch if keep.true_count == len(keep) else batch.filter(keep)
            parts.append((part, batch))
        prepared = self._fit_slices(parts, STAGE)
        prepared.dropped = dropped
        prepared.rejects += rejects
        prepared.state |= {
            progress.source_property(self.topic, partition, lane): str(mark)
            for partition, lanes in marks.items()
            for lane, mark in lanes.items()
        }
        return prepared
