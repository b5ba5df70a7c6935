"""Chunks and contexts without Kafka."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.kafka.columns import Chunk
from streams.agent import COORDINATE, StepContext
from streams.lookup import Lookup, LookupTable

CHANGE = {"lsn": pa.int64(), "sequence": pa.string(), "schema": pa.string(), "table": pa.string(), "ts_ms": pa.int64()}


def make_chunk(
    values: Sequence[bytes | None], *, topic: str = "src", partition: int = 2, first: int = 100, age: float = 0.0
) -> Chunk:
    n = len(values)
    now = int((time.time() - age) * 1000)
    return Chunk(
        topic,
        partition,
        pa.array([b"k%d" % i for i in range(n)], pa.binary()),
        pa.array(values, pa.binary()),
        np.arange(first, first + n, dtype=np.int64),
        np.full(n, now, np.int64),
        first + n,
    )


def make_context(rows: int, lookups: Mapping[str, LookupTable] | None = None, age: float = 0.0) -> StepContext:
    chunk = make_chunk([b"v%d" % i for i in range(rows)], age=age)
    return StepContext("a", chunk, chunk.offsets, lookups or {})


def make_batch(columns: Mapping[str, Any], first: int = 100) -> pa.RecordBatch:
    """A batch as a step gets it from `make_context`."""
    batch = pa.RecordBatch.from_pydict(dict(columns))
    return batch.append_column(COORDINATE, pa.array(np.arange(first, first + len(batch), dtype=np.int64)))


def changes(
    rows: Sequence[tuple[str, Mapping[str, Any] | None, Mapping[str, Any] | None, int]],
    shape: pa.Schema,
    table: str = "public.devices",
) -> pa.RecordBatch:
    """Change events as Debezium's decode: (op, before, after, lsn) each; lsn also is the order in its transaction."""
    source = [
        {"lsn": lsn, "sequence": f'["{lsn}","{lsn}"]', "schema": table.split(".")[0], "table": table.split(".")[1],
         "ts_ms": 1} for _, _, _, lsn in rows
    ]  # fmt: skip
    row = pa.struct(list(shape))
    return pa.RecordBatch.from_pydict(
        {
            "before": pa.array([before for _, before, _, _ in rows], row),
            "after": pa.array([after for _, _, after, _ in rows], row),
            "source": pa.array(source, pa.struct(list(CHANGE.items()))),
            "op": pa.array([op for op, _, _, _ in rows], pa.string()),
            "transaction": pa.array(
                [{"total_order": lsn} for _, _, _, lsn in rows], pa.struct([("total_order", pa.int64())])
            ),
        }
    )


DEVICE = pa.schema([("id", pa.string()), ("site", pa.string()), ("limit", pa.float64())])


def device_table(rows: Sequence[Mapping[str, Any]]) -> LookupTable:
    table = LookupTable(Lookup("devices", "shop.public.devices", "id", ("site", "limit")))
    table.apply(0, changes([("c", None, row, i + 1) for i, row in enumerate(rows)], DEVICE))
    return table
