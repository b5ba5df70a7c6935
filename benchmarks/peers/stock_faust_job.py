"""A stock Faust agent: each event decoded, checked, given its device's columns, encoded and sent."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import fastavro
import faust
from confluent_kafka import Consumer, TopicPartition

ENRICHED = ("customer_id", "site", "min_temperature", "max_temperature")


def table(asked: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """The table devices, from its change topic; read in one go, which is cheaper than by an agent."""
    schema, rows = fastavro.parse_schema(asked["devices_schema"]), {}
    consumer = Consumer({"bootstrap.servers": asked["bootstrap"], "group.id": f"{asked['group']}-devices"})
    places = [TopicPartition(asked["devices"], p, 0) for p in range(asked["partitions"])]
    left = sum(consumer.get_watermark_offsets(place)[1] for place in places)
    consumer.assign(places)
    while left > 0:
        for message in consumer.consume(10_000, 0.5):
            value = message.value()
            if message.error() or value is None:
                continue
            row = fastavro.schemaless_reader(io.BytesIO(value[5:]), schema)["after"]
            rows[row["id"]] = tuple(row[name] for name in ENRICHED)
            left -= 1
    consumer.close()
    return rows


def clean(row: dict[str, Any]) -> bool:
    """The rules of the contract."""
    temperature, humidity = row["temperature"], row["humidity"]
    return (temperature is None or -60 <= temperature <= 90) and (humidity is None or 0 <= humidity <= 100)


def main() -> None:
    asked = json.loads(sys.argv[1])
    devices = table(asked)
    reader, writer = fastavro.parse_schema(asked["schema"]), fastavro.parse_schema(asked["output_schema"])
    head = b"\0" + asked["output_id"].to_bytes(4, "big")
    app = faust.App(
        asked["group"],
        broker=f"kafka://{asked['bootstrap']}",
        store="memory://",
        topic_partitions=asked["partitions"],
        producer_compression_type="lz4",
        web_enabled=False,
    )
    source = app.topic(asked["topic"], value_type=bytes, value_serializer="raw")
    output = app.topic(asked["output"], value_type=bytes, value_serializer="raw", partitions=asked["partitions"])

    @app.agent(source)  # type: ignore[untyped-decorator]  # Faust has no types
    async def readings(stream: Any) -> None:
        async for event in stream.events():
            row = fastavro.schemaless_reader(io.BytesIO(event.value[5:]), reader)
            device = devices.get(row["device_id"])
            if device is None or not clean(row):
                continue
            row.update(zip(ENRICHED, device, strict=True))
            row["source_offset"] = event.message.offset
            out = io.BytesIO()
            out.write(head)
            fastavro.schemaless_writer(out, writer, row)
            await output.send(value=out.getvalue(), partition=event.message.partition)

    faust.Worker(app, loglevel="warning").execute_from_commandline()


if __name__ == "__main__":
    main()
