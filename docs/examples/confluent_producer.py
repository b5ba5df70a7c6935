"""An ordinary producer: confluent-kafka and its Avro serializer, nothing of Headrace.

    python confluent_producer.py BOOTSTRAP_SERVERS REGISTRY_URL CONTRACT.avsc < rows.ndjson

The contract file is the schema: its further attributes are kept by the registry and ignored by the serializer. Rows
are JSON objects, one a line; times are microseconds since the epoch. What it needs:
`pip install "confluent-kafka[avro,schemaregistry]"`.
"""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

from confluent_kafka import SerializingProducer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import StringSerializer


def produce(bootstrap_servers: str, registry_url: str, contract: str, rows: TextIO) -> int:
    """Send every row to the contract's topic, keyed by the contract's key; returns how many the broker has."""
    schema = json.loads(contract)
    (key,) = schema["key"]
    registry = SchemaRegistryClient({"url": registry_url})
    producer = SerializingProducer(
        {
            "bootstrap.servers": bootstrap_servers,
            "enable.idempotence": True,
            # The same partition for a key as Java's clients and Headrace choose.
            "partitioner": "murmur2_random",
            "key.serializer": StringSerializer(),
            "value.serializer": AvroSerializer(registry, contract),
        }
    )
    failed: list[Any] = []
    count = 0
    for line in rows:
        row = json.loads(line)
        producer.produce(schema["topic"], key=row[key], value=row, on_delivery=lambda e, _: e and failed.append(e))
        producer.poll(0)
        count += 1
    producer.flush()
    if failed:
        raise RuntimeError(f"{len(failed)} rows were not taken; the first because {failed[0]}")
    return count


if __name__ == "__main__":
    with open(sys.argv[3], encoding="utf-8") as file:
        print(produce(sys.argv[1], sys.argv[2], file.read(), sys.stdin), "rows sent")
