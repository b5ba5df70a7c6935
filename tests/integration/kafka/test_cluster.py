"""What one broker does not show: three that are killed and restarted under load, and a log that is compacted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from random import Random
from uuid import uuid4

import pyarrow as pa
import pytest
from aiokafka import TopicPartition
from aiokafka.errors import CommitFailedError, KafkaError
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from headrace.config import KafkaSettings
from headrace.kafka import Chunk, ColumnarConsumer, ColumnarProducer, admin
from headrace.kafka.client import confluent_options, consumer_options, producer_options
from tests.integration.kafka.brokers import Brokers, brokers
from tests.integration.kafka.oracle import NOW, consume, produce, producer
from tests.unit.kafka.rows import Row, rows_of

# Seven starts of a Java machine: a busy one takes its time.
pytestmark = pytest.mark.timeout(900)

PARTITIONS = 3
ROWS = 50
CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
SECONDS = 120.0


@pytest.fixture(scope="module")
def three() -> Iterator[Brokers]:
    with brokers(3) as running:
        yield running


class Writer:
    """Rows in order to each partition; `acknowledged` are (offset, value) by partition."""

    def __init__(self, kafka: KafkaSettings, topic: str) -> None:
        self._kafka = kafka
        self._topic = topic
        self.acknowledged: list[list[tuple[int, bytes]]] = [[] for _ in range(PARTITIONS)]
        self.done = asyncio.Event()

    async def run(self) -> None:
        producer = ColumnarProducer(**producer_options(self._kafka))
        await producer.start()
        try:
            await asyncio.gather(*(self._write(producer, partition) for partition in range(PARTITIONS)))
        finally:
            await producer.stop()

    async def _write(self, producer: ColumnarProducer, partition: int) -> None:
        while not self.done.is_set():
            known = self.acknowledged[partition]
            values = [b"%d of %d" % (len(known) + i, partition) for i in range(ROWS)]
            (ack,) = await asyncio.gather(
                *await producer.send_columns(self._topic, partition, None, pa.array(values, pa.binary()))
            )
            known += [(ack.offset + i, value) for i, value in enumerate(values)]
            await asyncio.sleep(0.05)


class Reader:
    """The member of a group: `seen` are the values by offset of each partition."""

    def __init__(self, kafka: KafkaSettings, topic: str) -> None:
        self._kafka = kafka
        self._topic = topic
        self.seen: list[dict[int, bytes]] = [{} for _ in range(PARTITIONS)]

    async def run(self, is_done: Callable[[], bool]) -> None:
        options = {
            **consumer_options(self._kafka),
            "auto_offset_reset": "earliest",
            "group_id": self._topic,
            "heartbeat_interval_ms": 500,
        }
        consumer = ColumnarConsumer(self._topic, **options)
        await consumer.start()
        try:
            while not is_done():
                for tp, chunks in (await consumer.getmany(timeout_ms=200)).items():
                    for chunk in chunks:
                        self._see(tp.partition, chunk.offsets.tolist(), chunk.values.to_pylist())
                await self._commit(consumer)
        finally:
            await consumer.stop()

    def _see(self, partition: int, offsets: list[int], values: list[bytes]) -> None:
        seen = self.seen[partition]
        for offset, value in zip(offsets, values, strict=True):
            # Read again from the last commit after the group has moved: the same values at the same places.
            assert seen.setdefault(offset, value) == value
            assert offset < len(seen)

    @staticmethod
    async def _commit(consumer: ColumnarConsumer) -> None:
        try:
            await consumer.commit()
        except CommitFailedError:
            pass  # the group has moved: what was not committed is read again
        except KafkaError as e:
            if not e.retriable:
                raise


def replicas(client: AdminClient, topic: str) -> list[tuple[int, int]]:
    """(leader, replicas in sync) of each partition; nothing while the cluster does not say."""
    try:
        found = client.list_topics(topic, timeout=5).topics[topic].partitions
    except KafkaException:
        return []
    return [(found[partition].leader, len(found[partition].isrs)) for partition in sorted(found)]


async def until(what: Callable[[], Awaitable[bool]], who: list[asyncio.Task[None]]) -> None:
    deadline = time.monotonic() + SECONDS
    while not await what():
        for task in who:
            assert not task.done() or task.result()
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def test_leaders_die_and_brokers_restart_under_load(three: Brokers) -> None:
    kafka = KafkaSettings(bootstrap_servers=three.bootstrap_servers(), replication_factor=3)
    topic = f"ledger-{uuid4().hex[:8]}"
    await asyncio.to_thread(admin.ensure_topics, kafka, {topic: admin.TopicSpec(PARTITIONS)})
    observer = AdminClient(confluent_options(kafka) | {"log_level": 2})
    writer, reader = Writer(kafka, topic), Reader(kafka, topic)
    ended = asyncio.Event()

    def is_read() -> bool:
        return ended.is_set() and [len(seen) for seen in reader.seen] == [len(all_) for all_ in writer.acknowledged]

    tasks = [asyncio.create_task(writer.run()), asyncio.create_task(reader.run(is_read))]

    async def progress() -> None:
        """Each partition takes rows, and they are read, from now on."""
        goals = [len(known) + 2 * ROWS for known in writer.acknowledged]

        async def reached() -> bool:
            return all(len(seen) >= goal for seen, goal in zip(reader.seen, goals, strict=True))

        await until(reached, tasks)

    async def state() -> list[tuple[int, int]]:
        return await asyncio.to_thread(replicas, observer, topic)

    async def leader() -> int:
        found = await state()
        return found[0][0] if found else -1

    async def in_sync() -> bool:
        return [count for leader, count in await state() if leader > 0] == [3] * PARTITIONS

    try:
        await progress()
        await until(in_sync, tasks)
        killed = await leader()
        assert killed in three.nodes
        three.kill(killed)

        async def has_new_leader() -> bool:
            return await leader() not in (-1, killed)

        await until(has_new_leader, tasks)
        await progress()
        three.start(killed)
        await until(in_sync, tasks)
        for node in set(three.nodes) - {killed}:
            await asyncio.to_thread(three.stop, node)
            await progress()
            three.start(node)
            await until(in_sync, tasks)
        await progress()
        writer.done.set()
        await tasks[0]
        ended.set()
        await asyncio.wait_for(tasks[1], SECONDS)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    for partition in range(PARTITIONS):
        log = [(offset, value) for offset, (_, value, *_) in await asyncio.to_thread(consume, kafka, topic, partition)]
        assert log == [(i, b"%d of %d" % (i, partition)) for i in range(len(log))]
        assert writer.acknowledged[partition] == log
        assert sorted(reader.seen[partition].items()) == log


async def test_what_the_broker_has_compacted_away_is_passed_from_any_offset(three: Brokers) -> None:
    kafka = KafkaSettings(bootstrap_servers=three.bootstrap_servers(), replication_factor=3)
    topic = f"compacted-{uuid4().hex[:8]}"
    config = {
        "cleanup.policy": "compact",
        "segment.ms": "100",
        "min.cleanable.dirty.ratio": "0.001",
        "delete.retention.ms": "3600000",
    }
    await asyncio.to_thread(admin.ensure_topics, kafka, {topic: admin.TopicSpec(1, config)})
    random = Random(7)
    written = 0
    log: list[tuple[int, Row]] = []
    deadline = time.monotonic() + SECONDS
    while written < 6 * ROWS or len(log) > written - 4 * ROWS:
        assert time.monotonic() < deadline
        at = NOW + 20 * written  # the broker begins another segment by the time that records tell
        rows: list[Row] = [
            (b"%d" % random.randrange(2 * ROWS), None if random.random() < 0.3 else b"%d" % (written + i), at, ())
            for i in range(ROWS)
        ]
        codec = CODECS[written // ROWS % len(CODECS)]
        await asyncio.to_thread(produce, producer(kafka, compression_type=codec, batch_num_messages=7), topic, rows)
        written += ROWS
        await asyncio.sleep(0.2)  # the cleaner's turn
        log = await asyncio.to_thread(consume, kafka, topic)
    # The cleaner is at work still, so what is read lies between two readings of the other client.
    for start in (0, 1, written // 3, written - ROWS):
        chunks = await read_to(kafka, topic, start, written)
        later = await asyncio.to_thread(consume, kafka, topic)
        ours = rows_of(chunks)
        assert {row for row in later if row[0] >= start} <= set(ours) <= {row for row in log if row[0] >= start}
        assert [offset for offset, _ in ours] == sorted({offset for offset, _ in ours})
        assert chunks[-1].next_offset == written
    assert any(row[1] is None for _, row in log)


async def read_to(kafka: KafkaSettings, topic: str, start: int, end: int) -> list[Chunk]:
    consumer = ColumnarConsumer(**consumer_options(kafka))
    await consumer.start()
    tp = TopicPartition(topic, 0)
    consumer.assign([tp])
    consumer.seek(tp, start)
    chunks: list[Chunk] = []
    async with asyncio.timeout(SECONDS):
        while await consumer.position(tp) < end:
            chunks += (await consumer.getmany(timeout_ms=500)).get(tp, [])
    await consumer.stop()
    return chunks
