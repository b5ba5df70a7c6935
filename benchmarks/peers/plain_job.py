"""Kafka to Iceberg as most people write it first: record by record, a list of dictionaries, an append now and then."""

from __future__ import annotations

import io
import json
import signal
import sys
import time
from typing import Any

import fastavro
import pyarrow as pa
from confluent_kafka import Consumer
from pyiceberg.catalog.sql import SqlCatalog

COLUMNS = pa.schema(
    [
        ("device_id", pa.string()),
        ("measured_at", pa.timestamp("us", "UTC")),
        ("temperature", pa.float64()),
        ("humidity", pa.float64()),
        ("battery", pa.float32()),
        ("firmware", pa.string()),
        ("lat", pa.float64()),
        ("lon", pa.float64()),
        ("status", pa.string()),
    ]
)


def main() -> None:
    asked = json.loads(sys.argv[1])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    catalog = SqlCatalog("bench", uri=asked["uri"], warehouse=asked["warehouse"])
    catalog.create_namespace_if_not_exists("bench")
    table = catalog.create_table_if_not_exists("bench.readings", COLUMNS)
    schema = fastavro.parse_schema(asked["schema"])
    consumer = Consumer(
        {
            "bootstrap.servers": asked["bootstrap"],
            "group.id": asked["group"],
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([asked["topic"]])
    rows: list[Any] = []
    committed = time.monotonic()
    while True:
        for message in consumer.consume(10_000, 0.2):
            value = message.value()
            if message.error() or value is None:
                continue
            rows.append(fastavro.schemaless_reader(io.BytesIO(value[5:]), schema))
        if time.monotonic() - committed >= asked["seconds"]:
            if rows:
                table.append(pa.Table.from_pylist(rows, COLUMNS))
                consumer.commit(asynchronous=False)
                rows = []
            committed = time.monotonic()


if __name__ == "__main__":
    main()
