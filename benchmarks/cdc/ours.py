"""Headrace's sink on the accounts: the snapshot lands, then a backlog of changes, each in a process of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import psutil

from benchmarks import content, ours, tables
from benchmarks.cdc import reads
from benchmarks.cdc.accounts import AccountsTopic, expected
from benchmarks.cdc.figures import OURS, Merge
from benchmarks.system import PATIENCE, Run, finished
from benchmarks.tree import Tree
from schemas.names import table_name

# Rounds of a change in each partition, committed one by one, so that compaction gets its turns.
COMPACTION_ROUNDS = 5


@dataclass(frozen=True)
class Sink:
    run: Run
    topic: AccountsTopic

    @property
    def table(self) -> str:
        return table_name("silver", self.topic.name)

    def location(self) -> str | None:
        return tables.catalogued(ours.lake(self.run), self.table)

    def load(self) -> Merge:
        """The snapshot, into tables that are not there yet."""
        content.captured(self.run.folder)
        return replace(self._measured(self.topic.rows), load=True, note="the snapshot's rows, into empty tables")

    def merge(self, changes: int) -> Merge:
        """The backlog, into the loaded table."""
        self.topic.add_changes(changes)
        return self._measured(changes)

    def compact(self) -> None:
        """A few commits more, each with the table's upkeep."""
        more = {"HEADRACE_SINK__COMPACT_EVERY": "2", "HEADRACE_SINK__FRESHNESS_SECONDS": "0.2"}
        with self._started(more) as tree:
            for _ in range(COMPACTION_ROUNDS):
                self.topic.add_changes(self.run.partitions)
                tree.wait(self._landed, PATIENCE)

    def right(self) -> bool:
        return reads.holds(self.location(), expected(self.topic.rows, self.topic.changes))

    def _started(self, more: Mapping[str, str]) -> Tree:
        command = ours.process("sink", lambda _: None)(self.run)
        return Tree(command, {**ours.environment(self.run), **more})

    def _landed(self) -> bool:
        upto = replace(self.run, events=self.topic.rows + self.topic.changes)
        return finished(ours.CURRENT, upto)

    def _size(self) -> int:
        at = self.location()
        return reads.size(at.rpartition("/metadata/")[0]) if at else 0

    def _measured(self, changes: int) -> Merge:
        before, clock = self._size(), time.perf_counter()
        with self._started({}) as tree:
            tree.wait(lambda: '"event": "landing"' in tree.said(), PATIENCE)
            start, used = time.perf_counter() - clock, psutil.Process(tree.pid).cpu_times()
            # A table that is not there yet has no index.
            built = index_built(tree.said(), self.table)
            tree.wait(self._landed, PATIENCE)
            seconds = time.perf_counter() - clock
            tree.end()
        return Merge(
            OURS,
            self.topic.rows,
            changes,
            seconds,
            tree.cpu_seconds / changes * 1e6,
            tree.peak_mb,
            (self._size() - before) / changes,
            self.right(),
            start,
            used.user + used.system,
            built.get("seconds"),
            built["bytes"] / 2**20 if built else None,
            note="bronze and current state; bytes are the current state's",
        )


def index_built(said: str, table: str) -> dict[str, Any]:
    """What the sink has logged of the index that it built at its start; nothing when the table was not there."""
    for line in said.splitlines():
        if '"event": "index built"' in line:
            told: dict[str, Any] = json.loads(line)
            if told["table"] == table:
                return told
    return {}
