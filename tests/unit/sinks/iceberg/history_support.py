"""Histories and their events."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from sinks.iceberg.history import HistoryTable
from tests.unit.sinks.iceberg.support import (
    ROW,
    SOURCE,
    TOPIC,
    change,
    envelope_schema,
    land,
    rows_of,
    slice_of,
    source,
)

COLUMNS = ("id", "name", "valid_from", "valid_to")


def at(time: int | None) -> datetime | None:
    return None if time is None else datetime.fromtimestamp(time, UTC)


def timed(row: pa.DataType = ROW) -> pa.Schema:
    placed = pa.struct([*SOURCE, ("ts_us", pa.int64())])
    return pa.schema([f.with_type(placed) if f.name == "source" else f for f in envelope_schema(row)])


def event(op: str, number: int, name: str | None, time: int, lsn: int | None = None, **more: Any) -> dict[str, Any]:
    """A change at a time in seconds; its place in the log is the same number unless told."""
    row = {"id": number, "name": name, "n": 0, **more}
    made = change(op, None if op == "t" else row, time if lsn is None else lsn)
    made["source"]["ts_us"] = time * 1_000_000
    return made


def opened(catalog: Any, partitions: int = 1, **more: Any) -> HistoryTable:
    table = HistoryTable(catalog, "silver.things_history", TOPIC, of="silver.things", **more)
    table.open(source(partitions))
    return table


def seen(table: HistoryTable) -> list[tuple[Any, ...]]:
    """Versions by key and time, times in seconds."""
    rows = rows_of(table, "_offset", *COLUMNS, "_op")
    found = [(r[1], r[2], *(None if t is None else int(t.timestamp()) for t in r[3:5]), r[5], r[0]) for r in rows]
    return [r[:5] for r in sorted(found, key=lambda r: (r[0], r[2], r[5]))]


def landed(table: HistoryTable, *events: dict[str, Any], schema: pa.Schema | None = None) -> Any:
    return land(table, slice_of(events, table.offsets.get(0, 0), schema=schema or timed()))
