"""The tables that a plan names, as their writers hold them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pyiceberg.catalog import Catalog

from headrace.config import SinkSettings
from sinks.iceberg import progress
from sinks.iceberg.append import AppendTable, DerivedTable
from sinks.iceberg.budget import IndexBudget
from sinks.iceberg.catalog import find_table
from sinks.iceberg.current import CurrentTable
from sinks.iceberg.flow import TableFlow
from sinks.iceberg.history import HistoryTable
from sinks.iceberg.owned import OwnedTable
from sinks.iceberg.plan import Kind, Landing
from sinks.iceberg.upsert import UpsertTable

_KINDS: Mapping[Kind, type[OwnedTable]] = {
    "bronze": AppendTable,
    "derived": DerivedTable,
    "upsert": UpsertTable,
    "current": CurrentTable,
    "history": HistoryTable,
}


def table_flow(catalog: Catalog, topic: str, at: Landing, sink: SinkSettings, budget: IndexBudget) -> TableFlow:
    """The flow of a topic into one of its tables. What needs an index of keys takes it from the budget."""
    options: dict[str, Any] = {
        "contract": at.contract,
        "partitioned": at.partitioned,
        "compact_every": sink.compact_every,
        "file_bytes": sink.file_bytes,
        "retyped": sink.retyped,
        "keep_seconds": sink.keep_snapshots_seconds,
    }
    if at.kind in ("current", "upsert", "history"):
        options["budget"] = budget
    if at.kind == "history":
        options["of"] = at.of
    table = _KINDS[at.kind](catalog, at.table, topic, **options)
    stated = at.contract.freshness if at.contract else None
    return TableFlow(table, min(stated or sink.freshness_seconds, sink.freshness_seconds), sink.max_rows)


def holder(catalog: Catalog, table: str, topics: Sequence[str], flowing: Collection[str]) -> str:
    """Which of several topics a table is of: the one that flows, or that it has been fed from, else the first."""
    if held := [topic for topic in topics if topic in flowing]:
        return held[0]
    found = find_table(catalog, table)
    fed = progress.topics(found.properties) if found is not None else []
    return next((topic for topic in topics if topic in fed), topics[0])
