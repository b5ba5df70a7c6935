"""The streams that every hop is measured on, fresh random rows: device readings (values of 68 bytes, records of 75) and
change events as Debezium writes them (values of 155 bytes).

Rows are random, since repeated ones let compression cheat; the same partition of the same length is the same rows each
time. No two readings of a topic have the same `measured_at`: it is what a system's rows are counted by.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

DEVICES = 100_000
CUSTOMERS = 50_000
START_MS = 1_790_000_000_000
# Of a partition: with two, what Debezium sends at its limit.
CHANGES_A_MS = 10


def readings(events: int, partition: int, partitions: int, batch: int = 100_000) -> Iterator[pa.RecordBatch]:
    """Readings of 100,000 devices, of one partition."""
    random = np.random.default_rng(partition)
    devices = device_ids()
    firmware = pa.array([f"1.{i}.{j}" for i in range(4) for j in range(10)])
    status = pa.array(["OK", "WARN", "ERROR", "OFFLINE"])
    for start in range(0, events, batch):
        n = min(batch, events - start)
        at = (START_MS + np.arange(start, start + n) * 7) * 1000 + random.integers(0, 5000, n)
        at += (partition - at) % partitions

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


def device_ids() -> pa.Array:
    return pa.array([f"dev-{i:06d}" for i in range(DEVICES)])


def order_events(parts: dict[str, pa.Array], table: str = "orders") -> pa.RecordBatch:
    """One batch of `changes` as change events of a table of orders."""
    op = pa.compute.if_else(parts["insert"], "c", "u")
    return change_events(table, parts["before"], parts["after"], op, parts["position"])


def device_events() -> pa.RecordBatch:
    """The table devices, as the change events of its 100,000 inserts."""
    random = np.random.default_rng(7)
    lowest = np.round(random.normal(-20, 5, DEVICES), 1)
    row = {
        "id": device_ids(),
        "customer_id": pa.array(random.integers(0, CUSTOMERS, DEVICES)),
        "site": pa.array([f"site {i:03d}" for i in range(500)]).take(pa.array(random.integers(0, 500, DEVICES))),
        "model": pa.array([f"CT-{i}" for i in range(20)]).take(pa.array(random.integers(0, 20, DEVICES))),
        "min_temperature": pa.array(lowest),
        "max_temperature": pa.array(lowest + 40.0),
    }
    after = pa.StructArray.from_arrays(list(row.values()), names=list(row))
    op = pa.array(["c"]).take(pa.array(np.zeros(DEVICES, np.int64)))
    return change_events("devices", pa.nulls(DEVICES, after.type), after, op, pa.array(np.arange(DEVICES) + 1))


def change_events(table: str, before: pa.Array, after: pa.Array, op: pa.Array, position: pa.Array) -> pa.RecordBatch:
    """Change events as Debezium writes them; `position` counts up by one a change of the partition."""
    n = len(after)
    text = position.cast(pa.string())

    def same(value: str) -> pa.Array:
        return pa.array([value]).take(pa.array(np.zeros(n, np.int64)))

    sequence = pa.compute.binary_join_element_wise('["', text, '","', text, '"]', "")
    order = pa.array(np.ones(n, np.int64))
    sent = pa.array(START_MS + position.to_numpy() // CHANGES_A_MS)
    source = {
        "version": same("3.6.1.Final"),
        "connector": same("postgresql"),
        "name": same("bench"),
        "ts_ms": sent,
        "snapshot": pa.nulls(n, pa.string()),
        "db": same("shop"),
        "sequence": sequence,
        "schema": same("public"),
        "table": same(table),
        "txId": position,
        "lsn": position,
    }
    transaction = {"id": text, "total_order": order, "data_collection_order": order}
    return pa.RecordBatch.from_pydict(
        {
            "before": before,
            "after": after,
            "source": pa.StructArray.from_arrays(list(source.values()), names=list(source)),
            "transaction": pa.StructArray.from_arrays(list(transaction.values()), names=list(transaction)),
            "op": op,
            "ts_ms": sent,
        }
    )
