"""The topics that the hops read, filled once in a run, by Headrace's producer: same bytes for every system."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pyarrow as pa

from benchmarks.content import DEVICES, PREFIX
from benchmarks.data import changes, device_events, order_events, readings
from benchmarks.shapes import DEVICE, ORDER, READING, envelope, key
from headrace.config import Settings
from headrace.kafka import admin
from headrace.kafka.client import producer_options
from headrace.kafka.producer import ColumnarProducer
from schemas.codec import Encoder
from schemas.names import subject
from schemas.registry import Registry

PARTITIONS = 2
Batches = Iterator[tuple[pa.BinaryArray | None, pa.BinaryArray]]
Batcher = Callable[[int], Batches]


def readings_topic(events: int) -> str:
    return f"{PREFIX}.readings_{events}"


def orders_topic(events: int) -> str:
    return f"{PREFIX}.public.orders_{events}"


class Topics:
    """Topics of the cluster that `settings` name; each is filled when it is first asked for."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._registry = Registry(settings.registry.url)
        self._filled: set[str] = set()

    def close(self) -> None:
        self._registry.close()

    def readings(self, events: int) -> str:
        """A topic with so many readings, without keys."""
        topic = readings_topic(events)
        values = Encoder(READING, self._registry.register(subject(topic, "value"), READING))

        def batches(partition: int) -> Batches:
            for batch in readings(share(events, partition), partition, PARTITIONS):
                yield None, values.encode(batch)

        return self._fill(topic, batches)

    def orders(self, events: int) -> str:
        """A topic with so many change events of one table, keyed by the table's key."""
        topic = orders_topic(events)
        table = topic.rpartition(".")[2]
        schema, keyed = envelope(table, ORDER), key(table, "long")
        values = Encoder(schema, self._registry.register(subject(topic, "value"), schema))
        keys = Encoder(keyed, self._registry.register(subject(topic, "key"), keyed))

        def batches(partition: int) -> Batches:
            for parts in changes(share(events, partition), partition, PARTITIONS):
                ids = pa.RecordBatch.from_pydict({"id": parts["ids"]})
                yield keys.encode(ids), values.encode(order_events(parts, table))

        return self._fill(topic, batches)

    def devices(self) -> str:
        """The change topic of 100,000 devices."""
        schema = envelope("devices", DEVICE)
        values = Encoder(schema, self._registry.register(subject(DEVICES, "value"), schema))
        keyed = key("devices", "string")
        keys = Encoder(keyed, self._registry.register(subject(DEVICES, "key"), keyed))

        def batches(partition: int) -> Batches:
            if partition == 0:
                events = device_events()
                ids = pa.RecordBatch.from_arrays([events.column("after").field("id")], names=["id"])
                yield keys.encode(ids), values.encode(events)

        return self._fill(DEVICES, batches)

    def declare_readings(self, topic: str) -> None:
        """Register what the topic's values will be."""
        self._registry.register(subject(topic, "value"), READING)

    def empty(self, topic: str) -> str:
        """A topic without records, made now."""
        admin.ensure_topics(self._settings.kafka, {topic: admin.TopicSpec(PARTITIONS)})
        return topic

    def _fill(self, topic: str, batches: Batcher) -> str:
        if topic not in self._filled:
            self.empty(topic)
            asyncio.run(send(self._settings, topic, batches))
            self._filled.add(topic)
        return topic


def share(events: int, partition: int, partitions: int = PARTITIONS) -> int:
    """How many of the events a partition gets."""
    return events // partitions + (partition < events % partitions)


async def send(settings: Settings, topic: str, batches: Batcher, partitions: int = PARTITIONS) -> None:
    """Produce `batches(partition)` of every partition, and wait for the broker to have them."""
    producer = ColumnarProducer(**producer_options(settings.kafka))
    await producer.start()
    try:
        for partition in range(partitions):
            for keys, values in batches(partition):
                await asyncio.gather(*await producer.send_columns(topic, partition, keys, values))
    finally:
        await producer.stop()
