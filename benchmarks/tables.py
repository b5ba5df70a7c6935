"""Looking at the Iceberg table that a system has written, from its metadata file alone, whatever catalog names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
from pyiceberg.table import StaticTable

from headrace.config import LakeSettings
from headrace.lake import open_duckdb, query, table_locations


def local(uri: str) -> str:
    """The path of a file:, file:// or plain location."""
    return urlsplit(uri).path


def properties(location: str | None) -> dict[str, str]:
    """The table's properties; none without a table."""
    found: dict[str, str] = {} if location is None else json.loads(Path(local(location)).read_text())["properties"]
    return found


def total_records(location: str | None) -> int:
    """Rows in the current snapshot as its summary says, before deletes; 0 without a table or a snapshot."""
    if location is None:
        return 0
    metadata = json.loads(Path(local(location)).read_text())
    current = metadata.get("current-snapshot-id")
    for snapshot in metadata.get("snapshots", []):
        if snapshot["snapshot-id"] == current:
            return int(snapshot["summary"]["total-records"])
    return 0


def data_files(location: str) -> list[str]:
    """Paths of the data files of the current snapshot."""
    table = StaticTable.from_metadata(location)
    return [local(task.file.file_path) for task in table.scan().plan_files()]


def holds_each_once(location: str | None, events: int, distinct: str) -> bool:
    """Whether an append-only table has exactly `events` rows and as many distinct values of `distinct`."""
    if location is None:
        return False
    connection = open_duckdb(LakeSettings())
    try:
        files = data_files(location)
        counted = f"SELECT count(*), count(DISTINCT {distinct}) FROM read_parquet($files)"
        return connection.execute(counted, {"files": files}).fetchone() == (events, events) if files else False
    finally:
        connection.close()


def column(path: str, name: str) -> Any:
    """One column of a data file, as an Arrow array."""
    return pq.read_table(path, columns=[name]).column(name)


def catalogued(lake: LakeSettings, table: str) -> str | None:
    """Where a catalog has a table's current metadata; None while it has none."""
    return table_locations(lake).get(table)


def one_row(lake: LakeSettings, sql: str) -> tuple[Any, ...] | None:
    row: tuple[Any, ...] | None = query(lake, sql).fetchone()
    return row
