"""`python -m benchmarks.peers.spark_read`: Spark reads tables that the sink has written, and the rows are compared.

Current state and history, with and without partitions, after updates, moves between partitions, deletes and compaction.
Each is read as the table says (Iceberg's vectorised reader off) and with that reader on. pyiceberg and DuckDB read the
same rows beside it. Exits 1 when any of them differ.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.index import changes_of
from benchmarks.peers import environment, spark
from headrace.config import LakeSettings
from headrace.lake import add_view, open_duckdb
from headrace.logs import configure_logs
from schemas.contracts import PartitionField, parse_contract
from sinks.iceberg.catalog import open_catalog
from sinks.iceberg.current import CurrentTable
from sinks.iceberg.history import HistoryTable
from sinks.iceberg.keyed import KeyedTable
from sinks.iceberg.owned import Source

JOB = Path(__file__).with_name("spark_read_job.py")
TOPIC = "bench.public.accounts"
ROUNDS = 8
SECONDS = 600


def rows_of(numbers: Any, round_: int) -> pa.StructArray:
    """Rows with a column of every kind that is written in its own way; `region` changes with the round."""
    n = len(numbers)
    random = np.random.default_rng(round_)
    cents = random.integers(-(10**9), 10**9, n).tolist()
    columns = {
        "id": pa.array(numbers),
        "region": pa.array([f"r{(number + round_) % 3}" for number in numbers.tolist()]),
        "note": pa.array([None if number % 7 == 0 else f"note {number} {round_}" for number in numbers.tolist()]),
        "small": pa.array((numbers % 1000).astype(np.int32)),
        "ratio": pa.array(random.random(n)),
        "amount": pa.array([Decimal(value).scaleb(-2) for value in cents], pa.decimal128(12, 2)),
        "large": pa.array([Decimal(value) * 10**18 for value in cents], pa.decimal128(38, 4)),
        "active": pa.array(numbers % 2 == 0),
        "day": pa.array(random.integers(0, 20_000, n).astype(np.int32)).cast(pa.date32()),
        "changed_at": pa.array(random.integers(0, 1 << 50, n)).cast(pa.timestamp("us", "UTC")),
        "local_at": pa.array(random.integers(0, 1 << 50, n)).cast(pa.timestamp("us")),
        "raw": pa.array([bytes([number % 256]) * (number % 5) for number in numbers.tolist()], pa.binary()),
        "tags": pa.array([list(range(number % 4)) or None for number in numbers.tolist()], pa.list_(pa.int32())),
    }
    return pa.StructArray.from_arrays(list(columns.values()), list(columns))


def tables_in(lake: LakeSettings, keys: int) -> list[KeyedTable]:
    """Current states and histories after rounds of changes."""
    catalog = open_catalog(lake)
    made: list[KeyedTable] = []
    for suffix, partition in (("", ()), ("_by_region", (PartitionField("region", "identity"),))):
        contract = _contract(f"silver.accounts{suffix}", partition)
        options: dict[str, Any] = {"contract": contract, "partitioned": bool(partition), "compact_every": 3}
        name = f"silver.accounts{suffix}"
        made.append(CurrentTable(catalog, name, TOPIC, **options))
        made.append(HistoryTable(catalog, f"{name}_history", TOPIC, of=name, **options))
    random = np.random.default_rng(1)
    start = lsn = 0
    for table in made:
        table.open(Source("bench", "bench", {0: 0}, {0: 1 << 60}))
    for round_ in range(ROUNDS):
        numbers = np.arange(keys) if round_ == 0 else np.unique(random.integers(0, keys, keys // 4))
        op = "r" if round_ == 0 else "d" if round_ == ROUNDS // 2 else "u"
        part = changes_of(rows_of(numbers, round_), op, start, lsn, ("id",))
        start, lsn = part.next_offset, lsn + len(numbers)
        for table in made:
            prepared = table.prepare([part])
            if prepared.rejects:
                raise RuntimeError(f"rows were refused: {prepared.rejects[0].reasons[0]}")
            table.commit(prepared)
            table.care()
    return made


def _contract(table: str, partition: tuple[PartitionField, ...]) -> Any:
    storage = {"table": table, "mode": "current", "partition": [part.column for part in partition]}
    raw = {"type": "record", "name": "Account", "owner": "bench", "topic": TOPIC, "key": ["id"], "fields": []}
    contract, problems = parse_contract(raw | {"storage": storage}, Path("account.avsc"))
    if contract is None:
        raise problems[0].error()
    return contract


def named_for_spark(location: str) -> str:
    """The folder of the table whose metadata is at `location`, with names by which Spark finds it without a catalog."""
    metadata = Path(location.removeprefix("file://"))
    (metadata.parent / "v1.metadata.json").write_bytes(metadata.read_bytes())
    (metadata.parent / "version-hint.text").write_text("1")
    return str(metadata.parent.parent)


def read_by_spark(folders: dict[str, str], work: Path) -> dict[str, list[Any]]:
    """Rows of each table by name and mode."""
    python = environment.venv("spark")
    home = work / "java"
    launcher = home / "bin" / "java"
    launcher.parent.mkdir(parents=True)
    launcher.write_text(spark.JAVA.format(java=environment.java(python)))
    launcher.chmod(0o755)
    asked = {"jars": [str(jar) for jar in environment.jars("spark")], "tables": folders, "out": str(work / "out")}
    environ = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SPARK_HOME")}
    environ |= {"JAVA_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1"}
    command = [str(python), "-P", str(JOB), json.dumps(asked)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"Spark failed: {done.stderr[-2000:]}")
    failed: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    for name, reason in failed.items():
        print(f"{name}: Spark cannot read it: {reason}")
    found = list((work / "out").glob("*"))
    return {folder.name: rows(pq.read_table(folder)) for folder in found if folder.name not in failed}


def rows(table: pa.Table) -> list[Any]:
    """Rows as tuples in an order of their own, times in UTC."""
    columns = []
    for name in sorted(table.schema.names):
        column = table.column(name)
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.int64())
        columns.append([bytes(v) if isinstance(v, bytearray) else v for v in column.to_pylist()])
    return sorted(zip(*columns, strict=True), key=repr)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.spark_read", description=__doc__)
    parser.add_argument("--keys", type=int, default=5000)
    asked = parser.parse_args(arguments)
    configure_logs("benchmark", "WARNING")
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        lake = LakeSettings(uri=f"sqlite:///{work}/catalog.db", warehouse=f"file://{work}/warehouse")
        tables = [table.table for table in tables_in(lake, asked.keys)]
        places = {".".join(table.name()): table for table in tables if table is not None}
        by_spark = read_by_spark({n: named_for_spark(t.metadata_location) for n, t in places.items()}, work)
        for name, table in places.items():
            expected = rows(table.scan().to_arrow())
            with open_duckdb(lake) as connection:
                add_view(connection, name, f"FROM iceberg_scan('{table.metadata_location}')")
                by_duckdb = rows(connection.execute(f"SELECT * FROM {name}").to_arrow_table())
            found = {"duckdb": by_duckdb} | {
                mode: by_spark.get(f"{name}.{mode}") for mode in ("as the table says", "vectorised")
            }
            for reader, mine in found.items():
                same = mine == expected
                wrong += not same and reader != "vectorised"
                print(f"{name}: {len(expected)} rows, {reader}: {'equal' if same else 'NOT EQUAL'}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
