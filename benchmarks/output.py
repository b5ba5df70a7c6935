"""Looking at what an agent has written: every reading once, each with what its device's row says."""

from __future__ import annotations

import asyncio
from functools import reduce

import numpy as np
import pyarrow.compute as pc
from aiokafka import TopicPartition

from benchmarks.data import device_events
from benchmarks.shapes import ENRICHED
from headrace.config import Settings
from headrace.kafka import admin
from headrace.kafka.client import consumer_options
from headrace.kafka.consumer import ColumnarConsumer
from schemas.codec import ChunkDecoder
from schemas.envelope import row_batch
from schemas.registry import Registry


def holds_all_enriched(settings: Settings, topic: str, events: int) -> bool:
    """Whether the topic has exactly `events` records, all different, each with the columns of its own device."""
    ends = admin.end_offsets(settings.kafka, [topic])
    if sum(ends.values()) != events:
        return False
    return asyncio.run(_read(settings, topic, ends)) == (events, events)


async def _read(settings: Settings, topic: str, ends: dict[admin.Partition, int]) -> tuple[int, int]:
    """Distinct readings, and readings that have what the row of their device says."""
    devices = row_batch(device_events(), "after")
    registry = Registry(settings.registry.url)
    decoder, consumer = (
        ChunkDecoder(registry.schema),
        ColumnarConsumer(headers=False, **consumer_options(settings.kafka)),
    )
    places = [TopicPartition(topic, partition) for _, partition in ends]
    await consumer.start()
    try:
        consumer.assign(places)
        await consumer.seek_to_beginning(*places)
        left, times, right = {p: end for (_, p), end in ends.items() if end}, [np.empty(0, np.int64)], 0
        while left:
            for place, chunks in (await consumer.getmany(timeout_ms=1000)).items():
                for chunk in chunks:
                    batch = decoder.decode(chunk.values).batch
                    times.append(batch.column("measured_at").cast("int64").to_numpy())
                    rows = devices.take(pc.index_in(batch.column("device_id"), value_set=devices.column("id")))
                    names = [field["name"] for field in ENRICHED]
                    same = reduce(pc.and_, (pc.equal(rows.column(n), batch.column(n)) for n in names))
                    right += pc.sum(same).as_py() or 0
                    if chunk.next_offset >= left[place.partition]:
                        del left[place.partition]
    finally:
        await consumer.stop()
        registry.close()
    return len(np.unique(np.concatenate(times))), right
