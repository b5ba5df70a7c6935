"""The two streams that every hop is measured on: 75-byte device readings and 160-byte change events, fresh random rows.

Rows are random, since repeated ones let compression cheat.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

DEVICES = 100_000
CUSTOMERS = 50_000
START_MS = 1_790_000_000_000

READING: dict[str, Any] = {
    "type": "record",
    "name": "Reading",
    "namespace": "bench",
    "doc": "One reading.",
    "owner": "benchmarks",
    "topic": "bench.readings",
    "key": ["device_id"],
    "event_time": "measured_at",
    "freshness": "1s",
    "fields": [
        {"name": "device_id", "type": "string"},
        {"name": "measured_at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "temperature", "type": ["null", "double"], "default": None, "rules": ["between -60 90"]},
        {"name": "humidity", "type": ["null", "double"], "default": None, "rules": ["between 0 100"]},
        {"name": "battery", "type": ["null", "float"], "default": None},
        {"name": "firmware", "type": "string"},
        {"name": "lat", "type": "double"},
        {"name": "lon", "type": "double"},
        {"name": "status", "type": {"type": "enum", "name": "Status", "symbols": ["OK", "WARN", "ERROR", "OFFLINE"]}},
    ],
}
CLEAN: dict[str, Any] = {
    **READING,
    "name": "CleanReading",
    "topic": "bench.clean",
    "derived_from": ["bench.readings"],
    "storage": {"table": "silver.bench_clean"},
    "fields": [
        *({k: v for k, v in field.items() if k != "rules"} for field in READING["fields"][:-1]),
        {"name": "status", "type": "string"},
        {"name": "fahrenheit", "type": ["null", "double"], "default": None},
        {"name": "source_offset", "type": "long"},
    ],
}
ROW: dict[str, Any] = {
    "type": "record",
    "name": "Value",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "customer_id", "type": "long"},
        {"name": "status", "type": "string"},
        {"name": "amount", "type": {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}},
        {"name": "updated_at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    ],
}
ENVELOPE: dict[str, Any] = {
    "type": "record",
    "name": "Envelope",
    "namespace": "bench.public.orders",
    "fields": [
        {"name": "before", "type": ["null", ROW], "default": None},
        {"name": "after", "type": ["null", "Value"], "default": None},
        {
            "name": "source",
            "type": {
                "type": "record",
                "name": "Source",
                "namespace": "io.debezium.connector.postgresql",
                "fields": [
                    {"name": "version", "type": "string"},
                    {"name": "connector", "type": "string"},
                    {"name": "name", "type": "string"},
                    {"name": "ts_ms", "type": "long"},
                    {"name": "snapshot", "type": ["null", "string"], "default": None},
                    {"name": "db", "type": "string"},
                    {"name": "sequence", "type": ["null", "string"], "default": None},
                    {"name": "schema", "type": "string"},
                    {"name": "table", "type": "string"},
                    {"name": "txId", "type": ["null", "long"], "default": None},
                    {"name": "lsn", "type": ["null", "long"], "default": None},
                ],
            },
        },
        {
            "name": "transaction",
            "type": [
                "null",
                {
                    "type": "record",
                    "name": "block",
                    "namespace": "event",
                    "fields": [
                        {"name": "id", "type": "string"},
                        {"name": "total_order", "type": "long"},
                        {"name": "data_collection_order", "type": "long"},
                    ],
                },
            ],
            "default": None,
        },
        {"name": "op", "type": "string"},
        {"name": "ts_ms", "type": ["null", "long"], "default": None},
    ],
}
KEY: dict[str, Any] = {
    "type": "record",
    "name": "Key",
    "namespace": "bench.public.orders",
    "fields": [{"name": "id", "type": "long"}],
}
CONNECTOR = {
    "name": "bench",
    "config": {
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "topic.prefix": "bench",
        "provide.transaction.metadata": "true",
    },
}
AGENT = '''"""The agent that is measured: contract rules, then one derived column."""

import pyarrow as pa
import pyarrow.compute as pc

from streams.agent import Agent, StepContext


def fahrenheit(batch: pa.RecordBatch, ctx: StepContext) -> pa.RecordBatch:
    column = pc.add(pc.multiply(batch.column("temperature"), 1.8), 32.0)
    return batch.append_column("fahrenheit", column)


agent = Agent(name="bench", source="bench.readings", output="bench.clean", steps=[fahrenheit])
'''


def write_content(folder: Path, *, contracts: bool, connector: bool, agent: bool) -> None:
    """A content folder for the process that a hop measures."""
    for name, wanted, text in (
        ("schemas/contracts/reading.avsc", contracts, json.dumps(READING)),
        ("schemas/contracts/clean.avsc", agent, json.dumps(CLEAN)),
        ("connectors/debezium/bench.json", connector, json.dumps(CONNECTOR)),
        ("streams/agents/bench.py", agent, AGENT),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if wanted:
            path.write_text(text)


def readings(events: int, partition: int, batch: int = 100_000) -> Iterator[pa.RecordBatch]:
    random = np.random.default_rng(partition)
    devices = pa.array([f"dev-{i:06d}" for i in range(DEVICES)])
    firmware = pa.array([f"1.{i}.{j}" for i in range(4) for j in range(10)])
    status = pa.array(["OK", "WARN", "ERROR", "OFFLINE"])
    for start in range(0, events, batch):
        n = min(batch, events - start)
        at = (START_MS + np.arange(start, start + n) * 7) * 1000 + random.integers(0, 5000, n)

        def maybe(values: Any, share: float, n: int = n) -> pa.Array:
            return pa.array(values, mask=random.random(n) < share)

        yield pa.RecordBatch.from_pydict(
            {
                "device_id": devices.take(pa.array(random.integers(0, DEVICES, n))),
                "measured_at": pa.array(at).cast(pa.timestamp("us", "UTC")),
                "temperature": maybe(np.round(random.normal(5, 4, n), 2), 0.05),
                "humidity": maybe(np.round(random.random(n) * 100, 1), 0.1),
                "battery": maybe((random.random(n) * 100).astype(np.float32), 0.3),
                "firmware": firmware.take(pa.array(random.integers(0, 40, n))),
                "lat": pa.array(45 + random.random(n)),
                "lon": pa.array(4 + random.random(n)),
                "status": status.take(pa.array(random.choice(4, n, p=[0.9, 0.06, 0.03, 0.01]))),
            }
        )


def changes(events: int, partition: int, partitions: int, batch: int = 50_000) -> Iterator[dict[str, pa.Array]]:
    """Change events over a table whose keys of this partition are `partition`, `partition + partitions`, ...

    A tenth are inserts, the others update a row chosen at random among those inserted.
    """
    random = np.random.default_rng(1000 + partition)
    inserted = 0
    for start in range(0, events, batch):
        n = min(batch, events - start)
        insert = random.random(n) < 0.1
        if start == 0:
            insert[0] = True
        count = inserted + np.cumsum(insert)
        chosen = np.where(insert, count - 1, (random.random(n) * count).astype(np.int64))
        inserted = int(count[-1])
        ids = pa.array(chosen * partitions + partition)
        position = np.arange(start, start + n) + 1

        images = {
            "before": _row(random, ids, position, pa.array(insert)),
            "after": _row(random, ids, position, None),
        }
        yield {"ids": ids, "insert": pa.array(insert), "position": pa.array(position), **images}


def _row(random: np.random.Generator, ids: pa.Array, position: Any, missing: pa.Array | None) -> pa.StructArray:
    n = len(ids)
    statuses = pa.array(["new", "paid", "shipped", "delivered", "cancelled"])
    cents = pa.array(random.integers(100, 1_000_000, n)).cast(pa.decimal128(19, 0))
    columns = {
        "id": ids,
        "customer_id": pa.array(random.integers(0, CUSTOMERS, n)),
        "status": statuses.take(pa.array(random.integers(0, 5, n))),
        # The same integers read with two decimal places.
        "amount": pa.Array.from_buffers(pa.decimal128(12, 2), n, cents.buffers()),
        "updated_at": pa.array((START_MS * 1000) + position).cast(pa.timestamp("us", "UTC")),
    }
    return pa.StructArray.from_arrays(list(columns.values()), names=list(columns), mask=missing)


def envelope_batch(parts: dict[str, pa.Array]) -> pa.RecordBatch:
    n = len(parts["ids"])
    position = parts["position"]
    text = position.cast(pa.string())

    def same(value: str) -> pa.Array:
        return pa.array([value]).take(pa.array(np.zeros(n, np.int64)))

    sequence = pa.compute.binary_join_element_wise('["', text, '","', text, '"]', "")
    order = pa.array(np.ones(n, np.int64))
    source = {
        "version": same("3.6.1.Final"),
        "connector": same("postgresql"),
        "name": same("bench"),
        "ts_ms": pa.array(np.full(n, START_MS)),
        "snapshot": pa.nulls(n, pa.string()),
        "db": same("shop"),
        "sequence": sequence,
        "schema": same("public"),
        "table": same("orders"),
        "txId": position,
        "lsn": position,
    }
    transaction = {"id": text, "total_order": order, "data_collection_order": order}
    return pa.RecordBatch.from_pydict(
        {
            "before": parts["before"],
            "after": parts["after"],
            "source": pa.StructArray.from_arrays(list(source.values()), names=list(source)),
            "transaction": pa.StructArray.from_arrays(list(transaction.values()), names=list(transaction)),
            "op": pa.compute.if_else(parts["insert"], "c", "u"),
            "ts_ms": pa.array(np.full(n, START_MS)),
        }
    )
