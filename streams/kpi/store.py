"""One source's changelog in Kafka: made, written in whole batches, read back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pyarrow as pa
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from headrace.config import KafkaSettings, Settings
from headrace.errors import TerminalError
from headrace.kafka import Chunk, ColumnarConsumer, ColumnarProducer
from headrace.kafka.admin import TopicSpec, add_partitions, ensure_topics, partitions
from headrace.kafka.client import producer_options, replay_options
from headrace.kafka.errors import from_client
from streams.kpi.changelog import Fold, changelog_topic

MAX_BATCH_BYTES = 8 << 20

_CONFIG = {
    "cleanup.policy": "compact",
    "max.message.bytes": str(MAX_BATCH_BYTES + 65_536),
    # Values that a stale writer has put above newer ones are repaired within this time, before the newer ones go.
    "min.compaction.lag.ms": "3600000",
    "segment.ms": "86400000",
}


def ensure_changelog(kafka: KafkaSettings, application: str, source: str) -> None:
    """Create a source's changelog, or add the partitions that the source has got since. Blocks.

    Raises `UnavailableError` and `TerminalError` as `headrace.kafka.admin` does.
    """
    topic, wanted = changelog_topic(application, source), partitions(kafka)[source]
    ensure_topics(kafka, {topic: TopicSpec(wanted, _CONFIG)})
    add_partitions(kafka, {topic: wanted})


class Changelog:
    """Writes one source's changelog and reads it back."""

    def __init__(self, settings: Settings, source: str) -> None:
        self._kafka = settings.kafka
        self._application = settings.worker.application
        self._source = source
        self.topic = changelog_topic(settings.worker.application, source)
        self._producer: ColumnarProducer | None = None

    async def start(self) -> None:
        """Raises `UnavailableError` when Kafka does not answer."""
        producer = ColumnarProducer(**producer_options(self._kafka) | {"max_request_size": MAX_BATCH_BYTES})
        try:
            await producer.start()
        except (KafkaError, OSError) as e:
            await producer.stop()
            raise from_client(e, where=self.topic) from e
        self._producer = producer

    async def stop(self) -> None:
        if self._producer is not None:
            producer, self._producer = self._producer, None
            await producer.stop()

    async def ensure(self) -> None:
        await asyncio.to_thread(ensure_changelog, self._kafka, self._application, self._source)

    async def write(self, partition: int, keys: pa.BinaryArray, values: pa.BinaryArray) -> int:
        """Append one record batch; returns its first offset once all replicas have it.

        Raises `BatchTooLargeError` before anything is sent, and `TerminalError` for a batch that may or may not be in
        the log: whoever starts anew finds out.
        """
        if self._producer is None:
            raise TerminalError("not started", where=self.topic)
        try:
            (sent,) = await self._producer.send_columns(self.topic, partition, keys, values, atomic=True)
            return int((await sent).offset)
        except KafkaError as e:
            raise TerminalError(
                f"state was not acknowledged: {type(e).__name__}", where=f"{self.topic}-{partition}"
            ) from e

    async def read(self, partition: int) -> tuple[Fold, int]:
        """All of a partition's changelog and the offset that the next batch should get. Raises `UnavailableError`."""
        fold, position = Fold(), 0
        async for chunk in chunks(self._kafka, self.topic, partition, None):
            fold.feed(chunk.keys, chunk.values)
            position = chunk.next_offset
        return fold, position

    async def only_tombstones(self, partition: int, start: int, stop: int) -> bool:
        """Whether all records from `start` to before `stop` are tombstones. Raises `UnavailableError`."""
        async for chunk in chunks(self._kafka, self.topic, partition, start):
            mine = chunk.slice(0, int(np.searchsorted(chunk.offsets, stop)))
            if mine.values.null_count < len(mine):
                return False
            if chunk.next_offset >= stop:
                break
        return True


async def chunks(kafka: KafkaSettings, topic: str, partition: int, start: int | None) -> AsyncIterator[Chunk]:
    """A partition's chunks up to where it ends now, from `start` or from its beginning. Raises `UnavailableError`."""
    tp = TopicPartition(topic, partition)
    consumer = ColumnarConsumer(headers=False, **replay_options(kafka))
    try:
        await consumer.start()
        consumer.assign([tp])
        end = (await consumer.end_offsets([tp]))[tp]
        position = (await consumer.beginning_offsets([tp]))[tp] if start is None else start
        consumer.seek(tp, position)
        while position < end:
            for chunk in (await consumer.getmany(tp, timeout_ms=500)).get(tp, []):
                position = chunk.next_offset
                yield chunk
    except (KafkaError, OSError) as e:
        raise from_client(e, where=f"{topic}-{partition}") from e
    finally:
        await consumer.stop()


async def after_last_record(kafka: KafkaSettings, topic: str, partition: int, begin: int, end: int) -> int:
    """The offset after a partition's last record, `begin` when it has none: markers of transactions may follow it."""
    step = 100
    while True:
        start = max(begin, end - step)
        if start >= end:
            return begin
        last = begin
        async for chunk in chunks(kafka, topic, partition, start):
            if len(chunk):
                last = int(chunk.offsets[-1]) + 1
        if last > begin or start == begin:
            return last
        step *= 10
