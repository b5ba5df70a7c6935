"""Reading a table with DuckDB: how long it takes, and whether the rows are right."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import duckdb
from pyiceberg.table import StaticTable

from benchmarks.cdc.accounts import Totals
from benchmarks.cdc.figures import Read
from benchmarks.tables import local
from headrace.config import LakeSettings
from headrace.lake import open_duckdb
from sinks.iceberg.operate import table_state

TIMES = 3
COUNT = "SELECT count(*), sum(abalance) FROM iceberg_scan($at)"
GROUP = "SELECT bid, count(*), avg(abalance), max(filler) FROM iceberg_scan($at) GROUP BY bid"


def read(system: str, state: str, at: str) -> Read:
    """The table whose metadata is `at`. Each query once to warm up the files, then `TIMES` times."""
    connection = open_duckdb(LakeSettings())
    try:
        count, group = (_median(connection, sql, at) for sql in (COUNT, GROUP))
    finally:
        connection.close()
    found = table_state(StaticTable.from_metadata(at))
    return Read(system, state, count, group, found.files, found.delete_files, found.dead_rows, found.bytes / 2**20)


def _median(connection: duckdb.DuckDBPyConnection, sql: str, at: str) -> float:
    took = []
    for _ in range(1 + TIMES):
        clock = time.perf_counter()
        connection.execute(sql, {"at": at}).fetchall()
        took.append(time.perf_counter() - clock)
    return statistics.median(took[1:])


def totals(connection: duckdb.DuckDBPyConnection, relation: str) -> tuple[Any, ...] | None:
    """What `Totals` says of a relation of DuckDB."""
    found: tuple[Any, ...] | None = connection.execute(f"SELECT {Totals.SQL} FROM {relation}").fetchone()
    return found


def holds(at: str | None, expected: Totals) -> bool:
    """Whether the table whose metadata is `at` is as expected."""
    if at is None:
        return False
    connection = open_duckdb(LakeSettings())
    try:
        return totals(connection, f"iceberg_scan('{at}')") == expected.values
    finally:
        connection.close()


def size(folder: str | Path) -> int:
    """Bytes of all files under a folder, at a path or a file: location."""
    return sum(path.stat().st_size for path in Path(local(str(folder))).rglob("*") if path.is_file())
