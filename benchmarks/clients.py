"""What is measured inside one client process, after its imports: producing, and Kafka to Arrow.

`python -m benchmarks.clients ASKED`, a JSON object, prints another one; CPU time is the process's, all threads.
"""

from __future__ import annotations

import asyncio
import io
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
from aiokafka import TopicPartition
from confluent_kafka import Consumer, Producer
from confluent_kafka import TopicPartition as ConfluentPartition

from benchmarks import stages
from benchmarks.data import readings
from benchmarks.row import Row
from benchmarks.shapes import READING
from benchmarks.system import PATIENCE
from benchmarks.tree import Tree
from headrace.config import Settings
from headrace.kafka import admin
from headrace.kafka.client import consumer_options, producer_options
from headrace.kafka.consumer import ColumnarConsumer
from headrace.kafka.producer import ColumnarProducer
from schemas.codec import ChunkDecoder, Encoder, warm
from schemas.registry import Registry
from schemas.types import arrow_schema

Run = Callable[[Settings, str, int, int], tuple[int, bool]]


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def produce_columns(settings: Settings, topic: str, events: int, partitions: int) -> tuple[int, bool]:
    schema_id = Registry(settings.registry.url).register(f"{topic}-value", READING)
    encoder = Encoder(READING, schema_id)

    async def work() -> int:
        producer = ColumnarProducer(**producer_options(settings.kafka))
        await producer.start()
        sent = 0
        try:
            for partition in range(partitions):
                last: list[Any] = []
                for batch in readings(events // partitions, partition, partitions):
                    last = await producer.send_columns(topic, partition, None, encoder.encode(batch))
                    sent += batch.num_rows
                await asyncio.gather(*last)
            await producer.flush()
        finally:
            await producer.stop()
        return sent

    sent = asyncio.run(work())
    return sent, _held(settings, topic) == sent


def produce_plain(settings: Settings, topic: str, events: int, partitions: int) -> tuple[int, bool]:
    schema_id = Registry(settings.registry.url).register(f"{topic}-value", READING)
    parsed = fastavro.parse_schema(READING)
    head = b"\0" + schema_id.to_bytes(4, "big")
    producer = Producer(
        {
            "bootstrap.servers": settings.kafka.bootstrap_servers,
            "compression.type": "lz4",
            "linger.ms": 20,
            "enable.idempotence": True,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    sent = 0
    for partition in range(partitions):
        for batch in readings(events // partitions, partition, partitions):
            for row in batch.to_pylist():
                out = io.BytesIO()
                out.write(head)
                fastavro.schemaless_writer(out, parsed, row)
                producer.produce(topic, value=out.getvalue(), partition=partition)
                sent += 1
            producer.poll(0)
            producer.flush()
    return sent, _held(settings, topic) == sent


def _held(settings: Settings, topic: str) -> int:
    return sum(admin.end_offsets(settings.kafka, [topic]).values())


def fetch_columns(settings: Settings, topic: str, events: int, partitions: int) -> tuple[int, bool]:
    decoder = ChunkDecoder(Registry(settings.registry.url).schema)

    async def work() -> tuple[int, bool]:
        consumer = ColumnarConsumer(headers=False, **consumer_options(settings.kafka))
        await consumer.start()
        places = [TopicPartition(topic, p) for p in range(partitions)]
        consumer.assign(places)
        await consumer.seek_to_beginning(*places)
        seen, growing, last = 0, True, dict.fromkeys(places, -1)
        try:
            while seen < events:
                for place, chunks in (await consumer.getmany(timeout_ms=1000)).items():
                    for chunk in chunks:
                        seen += decoder.decode(chunk.values).batch.num_rows
                        # Offsets that only grow are distinct; sets of them would cost more than what is measured.
                        growing &= bool(chunk.offsets[0] > last[place] and (np.diff(chunk.offsets) > 0).all())
                        last[place] = chunk.offsets[-1]
        finally:
            await consumer.stop()
        return seen, growing and seen == events

    return asyncio.run(work())


def fetch_plain(settings: Settings, topic: str, events: int, partitions: int) -> tuple[int, bool]:
    parsed, columns = fastavro.parse_schema(READING), arrow_schema(READING)
    consumer = Consumer({"bootstrap.servers": settings.kafka.bootstrap_servers, "group.id": "bench-plain"})
    consumer.assign([ConfluentPartition(topic, p, 0) for p in range(partitions)])
    seen, places = 0, []
    while seen < events:
        rows = []
        for message in consumer.consume(10_000, timeout=0.5):
            value, partition, offset = message.value(), message.partition(), message.offset()
            assert value is not None
            assert partition is not None
            assert offset is not None
            rows.append(fastavro.schemaless_reader(io.BytesIO(value[5:]), parsed))
            places.append(offset * partitions + partition)
        seen += pa.Table.from_pylist(rows, columns).num_rows
    consumer.close()
    return seen, len(set(places)) == events


PLAIN = "confluent-kafka + fastavro"
CLIENTS: dict[tuple[str, str], Run] = {
    ("produce", "headrace"): produce_columns,
    ("produce", PLAIN): produce_plain,
    ("decode", "headrace"): fetch_columns,
    ("decode", PLAIN): fetch_plain,
}


def measure_client(
    hop: str, system: str, settings: Settings, topic: str, events: int, partitions: int, into: Path | None = None
) -> Row:
    """One run in a process of its own; `into` gets where its time goes. Raises `TerminalError` when it fails."""
    asked = {"hop": hop, "system": system, "topic": topic, "events": events, "partitions": partitions}
    asked["settings"] = settings.model_dump_json()
    with Tree(
        [sys.executable, "-m", "benchmarks.clients", json.dumps(asked)],
        {stages.VARIABLE: None if into is None else str(into)},
    ) as tree:
        found = json.loads(tree.finish(PATIENCE).splitlines()[-1])
    return Row(hop, system, peak_rss_mb=tree.peak_mb, **found)


def main() -> None:
    asked = json.loads(sys.argv[1])
    stopwatch = stages.asked_for()
    settings = Settings.model_validate_json(asked["settings"])
    run = CLIENTS[asked["hop"], asked["system"]]
    warm()
    if stopwatch is not None:
        stopwatch.begin()
    clock, cpu = time.perf_counter(), cpu_seconds()
    events, ok = run(settings, asked["topic"], asked["events"], asked["partitions"])
    seconds, cpu = time.perf_counter() - clock, cpu_seconds() - cpu
    found = {"events": events, "seconds": seconds, "cpu_us_per_event": cpu / events * 1e6, "rows_ok": ok}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
