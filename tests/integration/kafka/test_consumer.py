"""What another client produced, consumed as columns, against what that client consumes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, OffsetOutOfRangeError
from confluent_kafka import TopicPartition as ConfluentPartition
from confluent_kafka.admin import AdminClient

from headrace.config import KafkaSettings
from headrace.kafka import consumer as consumer_module
from headrace.kafka.client import confluent_options, consumer_options
from headrace.kafka.columns import Chunk
from headrace.kafka.consumer import ColumnarConsumer
from headrace.kafka.errors import CorruptBatchError, DecompressionLimitError, FetchStoppedError
from headrace.kafka.reader import ReadLimits
from tests.integration.kafka.oracle import NOW, consume, produce, producer, random_rows
from tests.unit.kafka.rows import Row, rows_of

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
Topic = Callable[..., str]


@asynccontextmanager
async def reading(
    cluster: KafkaSettings, topic: str, start: int | None = 0, partition: int = 0, **options: Any
) -> AsyncIterator[tuple[ColumnarConsumer, TopicPartition]]:
    consumer = ColumnarConsumer(**{**consumer_options(cluster), **options})
    await consumer.start()
    try:
        tp = TopicPartition(topic, partition)
        consumer.assign([tp])
        if start is not None:
            consumer.seek(tp, start)
        yield consumer, tp
    finally:
        await consumer.stop()


async def chunks_to_end(consumer: ColumnarConsumer, tp: TopicPartition) -> list[Chunk]:
    end = (await consumer.end_offsets([tp]))[tp]
    chunks: list[Chunk] = []
    async with asyncio.timeout(30):
        while await consumer.position(tp) < end:
            chunks += (await consumer.getmany(timeout_ms=500)).get(tp, [])
    assert await consumer.position(tp) == end
    return chunks


async def read_all(cluster: KafkaSettings, topic: str, start: int = 0, **options: Any) -> list[tuple[int, Row]]:
    async with reading(cluster, topic, start, **options) as (consumer, tp):
        return rows_of(await chunks_to_end(consumer, tp))


async def test_all_codecs_in_one_log_from_any_offset(cluster: KafkaSettings, topic: Topic) -> None:
    name = topic()
    rows = [random_rows(700, seed) for seed in range(len(CODECS))]
    for codec, some in zip(CODECS, rows, strict=True):
        produce(producer(cluster, compression_type=codec, batch_num_messages=100), name, some)
    expected = consume(cluster, name)
    assert [row for _, row in expected] == [row for some in rows for row in some]
    assert await read_all(cluster, name) == expected
    assert await read_all(cluster, name, max_partition_fetch_bytes=20_000) == expected
    assert await read_all(cluster, name, 1234) == expected[1234:]
    without_headers = [(offset, (*row[:3], ())) for offset, row in expected]
    assert await read_all(cluster, name, headers=False) == without_headers


@pytest.mark.parametrize("codec", ["none", "lz4"])
async def test_timestamps_of_the_broker(cluster: KafkaSettings, topic: Topic, codec: str) -> None:
    name = topic(message_timestamp_type="LogAppendTime")
    produce(producer(cluster, compression_type=codec), name, random_rows(500))
    assert await read_all(cluster, name) == consume(cluster, name)


async def test_aborted_transactions_and_control_batches(cluster: KafkaSettings, topic: Topic) -> None:
    name = topic()
    writers = [
        producer(
            cluster,
            transactional_id=f"{name}-{i}",
            compression_type=CODECS[i],
            batch_num_messages=20,
        )
        for i in range(3)
    ]
    for writer in writers:
        writer.init_transactions(20)
    for turn in range(4):
        for writer in writers:
            writer.begin_transaction()
        for step in range(3):
            for i, writer in enumerate(writers):
                produce(writer, name, random_rows(30, seed=100 * turn + 10 * step + i))
        for i, writer in enumerate(writers):
            (writer.abort_transaction if (turn + i) % 3 == 0 else writer.commit_transaction)(20)
        produce(producer(cluster), name, random_rows(10, seed=turn))
    writers[0].begin_transaction()
    produce(writers[0], name, random_rows(100))
    writers[0].abort_transaction(20)
    seen = {}
    for isolation in ("read_committed", "read_uncommitted"):
        seen[isolation] = await read_all(cluster, name, isolation_level=isolation)
        assert seen[isolation] == consume(cluster, name, isolation=isolation)
        small = await read_all(cluster, name, isolation_level=isolation, max_partition_fetch_bytes=3000)
        assert small == seen[isolation]
    assert 0 < len(seen["read_committed"]) < len(seen["read_uncommitted"])


async def test_pause_seek_and_bounded_chunks(cluster: KafkaSettings, topic: Topic) -> None:
    name = topic()
    rows = random_rows(2000)
    produce(producer(cluster, compression_type="lz4", batch_num_messages=300), name, rows)
    async with reading(cluster, name, limits=ReadLimits(max_chunk_rows=77)) as (consumer, tp):
        chunk = await consumer.getone()
        assert (len(chunk), await consumer.position(tp)) == (77, 77)
        consumer.pause(tp)
        assert await consumer.getmany(timeout_ms=300) == {}
        consumer.resume(tp)
        got = await consumer.getmany(timeout_ms=5000, max_records=2)
        assert [int(chunk.offsets[0]) for chunk in got[tp]] == [77, 154]
        consumer.seek(tp, 1000)
        got = await consumer.getmany(timeout_ms=5000)
        assert int(got[tp][0].offsets[0]) == 1000
        await consumer.seek_to_beginning(tp)
        chunks = await chunks_to_end(consumer, tp)
    assert [row for _, row in rows_of(chunks)] == rows
    assert max(map(len, chunks)) == 77


async def test_a_deleted_start_is_never_skipped_in_silence(cluster: KafkaSettings, topic: Topic) -> None:
    name = topic()
    produce(producer(cluster, compression_type="zstd", batch_num_messages=100), name, random_rows(1000))
    admin = AdminClient(confluent_options(cluster))
    for future in admin.delete_records([ConfluentPartition(name, 0, 333)]).values():
        future.result(20)
    async with reading(cluster, name) as (consumer, _):
        with pytest.raises(OffsetOutOfRangeError):
            await consumer.getmany(timeout_ms=10_000)
    assert await read_all(cluster, name, auto_offset_reset="earliest") == consume(cluster, name)


async def test_an_end_that_was_cut_off_is_never_taken_for_quiet(cluster: KafkaSettings, topic: Topic) -> None:
    name = topic()
    produce(producer(cluster), name, random_rows(10))
    async with reading(cluster, name, 11) as (consumer, _):
        with pytest.raises(OffsetOutOfRangeError):
            await consumer.getmany(timeout_ms=10_000)


async def test_damage_on_the_way_is_raised_once_and_loses_nothing(
    cluster: KafkaSettings, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = topic(2)
    rows = random_rows(1000)
    for partition in (0, 1):
        produce(producer(cluster, batch_num_messages=100), name, rows, partition)
    damaged = []

    class Damaged(consumer_module._Batches):
        def __init__(self, data: bytes | memoryview) -> None:
            if not damaged and len(data) > 50_000:
                damaged.append(1)
                broken = bytearray(data)
                broken[40_000] ^= 4
                data = bytes(broken)
            super().__init__(data)

    monkeypatch.setattr(consumer_module, "_Batches", Damaged)
    consumer = ColumnarConsumer(**consumer_options(cluster))
    await consumer.start()
    tps = [TopicPartition(name, 0), TopicPartition(name, 1)]
    consumer.assign(tps)
    for tp in tps:
        consumer.seek(tp, 0)
    chunks: dict[TopicPartition, list[Chunk]] = {tp: [] for tp in tps}
    errors = 0
    async with asyncio.timeout(30):
        while any(sum(map(len, some)) < len(rows) for some in chunks.values()):
            try:
                for tp, some in (await consumer.getmany(timeout_ms=500)).items():
                    chunks[tp] += some
            except CorruptBatchError:
                errors += 1
    await consumer.stop()
    assert errors == 1
    for tp in tps:
        assert [row for _, row in rows_of(chunks[tp])] == rows


async def test_a_bomb_is_refused_and_the_position_stays(cluster: KafkaSettings, topic: Topic) -> None:
    name = topic()
    writer = producer(cluster, compression_type="zstd", message_max_bytes=50_000_000)
    produce(writer, name, [(b"k", b"small", NOW, ())])
    produce(writer, name, [(b"k", bytes(20_000_000), NOW, ())])
    limits = ReadLimits(max_decompressed_bytes=4 << 20)
    async with reading(cluster, name, limits=limits) as (consumer, tp):
        assert rows_of([await consumer.getone()])[0][1][1] == b"small"
        for _ in range(2):
            with pytest.raises(DecompressionLimitError, match=f"{name}-0@1"):
                await consumer.getmany(timeout_ms=10_000)
        assert await consumer.position(tp) == 1


async def test_a_dead_fetch_task_is_raised_to_who_waits_and_who_asks(cluster: KafkaSettings, topic: Topic) -> None:
    async with reading(cluster, topic()) as (consumer, _):
        waiting = asyncio.create_task(consumer.getmany(timeout_ms=60_000))
        await asyncio.sleep(0.3)
        consumer._fetcher._fetch_task.cancel()
        for call in (waiting, consumer.getmany(timeout_ms=60_000), consumer.getone()):
            async with asyncio.timeout(5):
                with pytest.raises(FetchStoppedError):
                    await call


async def test_a_group_of_two_with_a_join_and_a_leave(cluster: KafkaSettings, topic: Topic) -> None:
    name = topic(4)
    expected = set()
    for partition in range(4):
        rows = random_rows(600, seed=partition)
        produce(producer(cluster, compression_type="lz4", batch_num_messages=50), name, rows, partition)
        expected |= {(partition, offset) for offset in range(len(rows))}
    group = f"group-{uuid4().hex[:8]}"
    first_owns_all = asyncio.Event()
    seen: dict[str, set[tuple[int, int]]] = {"first": set(), "second": set()}

    async def member(who: str, until: Callable[[], bool]) -> None:
        options = {
            **consumer_options(cluster),
            "group_id": group,
            "auto_offset_reset": "earliest",
            "max_partition_fetch_bytes": 15_000,
            "session_timeout_ms": 6000,
            "heartbeat_interval_ms": 200,
        }
        consumer = ColumnarConsumer(name, **options)
        await consumer.start()
        try:
            while not until():
                if who == "first" and seen["first"] and not seen["second"]:
                    await asyncio.sleep(0.1)
                    continue
                for tp, chunks in (await consumer.getmany(timeout_ms=100, max_records=1)).items():
                    (chunk,) = chunks
                    with contextlib.suppress(CommitFailedError, IllegalStateError):  # moved to the other one meanwhile
                        await consumer.commit({tp: chunk.next_offset})
                        seen[who] |= {(tp.partition, offset) for offset in chunk.offsets.tolist()}
                        first_owns_all.set()
        finally:
            await consumer.stop()

    async with asyncio.timeout(60):
        first = asyncio.create_task(member("first", lambda: seen["first"] | seen["second"] >= expected))
        await first_owns_all.wait()
        await member("second", lambda: len(seen["second"]) > 50)
        await first
    assert seen["first"] | seen["second"] == expected
    assert seen["first"]
