"""What an operator can see of a table and decide about it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from headrace.errors import TerminalError
from sinks.iceberg import progress
from sinks.iceberg.catalog import find_table
from sinks.iceberg.commit import Change, TableCommitter, trouble
from sinks.iceberg.compact import dead_rows

SMALL_FILE_BYTES = 1 << 20


@dataclass(frozen=True)
class TableState:
    """A table in numbers. `rows` are live ones; `dead_rows` wait for compaction."""

    table: str
    rows: int
    dead_rows: int
    files: int
    small_files: int
    delete_files: int
    bytes: int
    snapshots: int
    committed_seconds_ago: float | None
    topics: dict[str, Any]


def table_names(catalog: Catalog) -> list[str]:
    """Every table of the catalog. Raises `UnavailableError`."""
    with trouble("catalog"):
        return sorted(
            ".".join(name) for namespace in catalog.list_namespaces() for name in catalog.list_tables(namespace)
        )


def existing_table(catalog: Catalog, name: str) -> Table:
    """Raises `TerminalError` when there is no such table, `UnavailableError`."""
    table = find_table(catalog, name)
    if table is None:
        raise TerminalError("no such table", where=name, hint="headrace table list")
    return table


def table_state(table: Table) -> TableState:
    """Raises `UnavailableError`."""
    name = ".".join(table.name())
    with trouble(name):
        tasks = list(table.scan().plan_files())
    snapshot = table.current_snapshot()
    dead = sum(dead_rows(task) for task in tasks)
    return TableState(
        table=name,
        rows=sum(task.file.record_count for task in tasks) - dead,
        dead_rows=dead,
        files=len(tasks),
        small_files=sum(task.file.file_size_in_bytes < SMALL_FILE_BYTES for task in tasks),
        delete_files=len({file.file_path for task in tasks for file in task.delete_files}),
        bytes=sum(task.file.file_size_in_bytes for task in tasks),
        snapshots=len(table.metadata.snapshots),
        committed_seconds_ago=round(time.time() - snapshot.timestamp_ms / 1000, 1) if snapshot else None,
        topics={
            topic: {
                "identity": table.properties[progress.identity_property(topic)],
                "offsets": progress.stored_offsets(table.properties, topic),
                "gaps": progress.gaps(table.properties, topic),
            }
            for topic in progress.topics(table.properties)
        },
    )


def adopt(table: Table) -> list[str]:
    """Forget where the table was in its topics, so that it starts over at their beginning. Returns those topics.

    Its rows stay: for a topic that was recreated or moved to another cluster. Raises `FencedError` when a sink commits
    to the table at the same time, `UnavailableError`.
    """
    topics = progress.topics(table.properties)
    names = [name for topic in topics for name in progress.progress_properties(table.properties, topic)]
    expected = {name: table.properties.get(name) for name in names}
    TableCommitter(table).commit(Change(expected, {}, forgotten=frozenset(names)))
    return topics


def accept_gaps(table: Table) -> list[str]:
    """Go on behind every open gap, which stays recorded as accepted. Returns them as text. Raises as `adopt`."""
    expected: dict[str, str | None] = {}
    after: dict[str, str] = {}
    found = []
    for topic in progress.topics(table.properties):
        for partition, gaps in progress.gaps(table.properties, topic).items():
            for gap in gaps:
                span, _, state = gap.partition(":")
                if state != "open":
                    continue
                first, _, end = span.partition("-")
                offset, name = progress.offset_property(topic, partition), progress.gap_property(topic, partition)
                expected |= {offset: first, name: table.properties[name]}
                after |= {offset: end, name: table.properties[name].replace(gap, f"{span}:accepted")}
                found.append(f"{topic}-{partition} {span}")
    if found:
        TableCommitter(table).commit(Change(expected, after))
    return found
