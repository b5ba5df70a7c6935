"""What every reader of the lake reads of its tables, as plain rows: pyiceberg, DuckDB, Polars and Spark.

Polars and Spark are asked in both of their ways: Polars with its own Parquet reader and through pyiceberg, Spark row by
row, as the tables tell it to, and with Iceberg's vectorised reader. Spark has an environment of its own, made on first
use in the cache folder of the stack's jars.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.table import Table

from benchmarks.peers import environment, spark
from headrace.config import LakeSettings
from headrace.lake import add_view, open_duckdb

JOB = Path(__file__).with_name("spark_job.py")
SPARK: dict[str, dict[str, str]] = {"row by row": {}, "vectorised": {"vectorization-enabled": "true"}}
POLARS: tuple[Literal["native", "pyiceberg"], ...] = ("native", "pyiceberg")
SECONDS = 300


def read_by_all(lake: LakeSettings, tables: Mapping[str, Table], work: Path) -> dict[str, dict[str, list[Any]]]:
    """Rows by table and reader."""
    found = {name: {"pyiceberg": rows(table.scan().to_arrow())} for name, table in tables.items()}
    with open_duckdb(lake) as connection:
        for name, table in tables.items():
            add_view(connection, name, f"FROM iceberg_scan('{table.metadata_location}')")
            found[name]["DuckDB"] = rows(connection.execute(f"SELECT * FROM {name}").to_arrow_table())
            for way in POLARS:
                frame = pl.scan_iceberg(table.metadata_location, reader_override=way).collect()
                found[name][f"Polars, {way}"] = rows(frame.to_arrow())
    for read, table in _read_by_spark(tables, work).items():
        name, _, way = read.rpartition(".")
        found[name][f"Spark, {way}"] = rows(table)
    return found


def rows(table: pa.Table) -> list[Any]:
    """Rows as tuples in an order of their own, times as numbers."""
    columns = []
    for name in sorted(table.schema.names):
        column = table.column(name)
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.int64())
        columns.append(column.to_pylist())
    return sorted(zip(*columns, strict=True), key=repr)


def _read_by_spark(tables: Mapping[str, Table], work: Path) -> dict[str, pa.Table]:
    """Rows by table and way, a dot between them."""
    python = environment.venv("spark")
    home = work / "java"
    launcher = home / "bin" / "java"
    launcher.parent.mkdir(parents=True)
    launcher.write_text(spark.JAVA.format(java=environment.java(python)))
    launcher.chmod(0o755)
    asked = {
        "jars": [str(jar) for jar in environment.jars("spark")],
        "tables": {name: _named_for_spark(table.metadata_location) for name, table in tables.items()},
        "ways": SPARK,
        "out": str(work / "out"),
    }
    environ = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SPARK_HOME")}
    environ |= {"JAVA_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1"}
    command = [str(python), "-P", str(JOB), json.dumps(asked)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {folder.name: pq.read_table(folder) for folder in (work / "out").iterdir()}


def _named_for_spark(location: str) -> str:
    """The folder of the table whose metadata is at `location`, with names by which Spark finds it without a catalog."""
    metadata = Path(location.removeprefix("file://"))
    (metadata.parent / "v1.metadata.json").write_bytes(metadata.read_bytes())
    (metadata.parent / "version-hint.text").write_text("1")
    return str(metadata.parent.parent)
