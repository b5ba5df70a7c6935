"""Columns produced, consumed by another client; the broker checks every checksum on its way in."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from aiokafka.errors import CorruptRecordException, KafkaError
from confluent_kafka import Producer

from headrace.config import KafkaSettings
from headrace.kafka.client import producer_options
from headrace.kafka.errors import BatchTooLargeError
from headrace.kafka.producer import ColumnarProducer
from headrace.kafka.writer import EncodedBatch
from tests.integration.kafka.oracle import NOW, consume, producer, random_rows
from tests.unit.kafka.rows import Row, arrays

Topic = Callable[..., str]


@asynccontextmanager
async def writing(cluster: KafkaSettings, **options: Any) -> AsyncIterator[ColumnarProducer]:
    to = ColumnarProducer(**{**producer_options(cluster), **options})
    await to.start()
    try:
        yield to
    finally:
        await to.stop()


async def send(to: ColumnarProducer, topic: str, rows: list[Row], **options: Any) -> list[Any]:
    keys, values, timestamps, headers = arrays(rows)
    return list(await asyncio.gather(*await to.send_columns(topic, 0, keys, values, timestamps, headers, **options)))


@pytest.mark.parametrize("codec", [None, "gzip", "snappy", "lz4", "zstd"])
@pytest.mark.parametrize("idempotent", [False, True])
async def test_another_client_reads_what_was_sent(
    cluster: KafkaSettings, topic: Topic, codec: str | None, idempotent: bool
) -> None:
    name = topic()
    rows = random_rows(1500)
    async with writing(cluster, compression_type=codec, enable_idempotence=idempotent, max_batch_size=50_000) as to:
        results = await send(to, name, rows)
        await to.send_and_wait(name, b"one by one", key=b"k", partition=0, timestamp_ms=NOW)
        (last,) = await send(to, name, rows[100:150])
    assert results[0].offset == 0
    assert len(results) > 3
    assert last.offset == len(rows) + 1
    expected = [*rows, (b"k", b"one by one", NOW, ()), *rows[100:150]]
    assert consume(cluster, name) == list(enumerate(expected))


async def test_transactions(cluster: KafkaSettings, topic: Topic) -> None:
    name = topic()
    rows = random_rows(300)
    async with writing(cluster, transactional_id=name, acks="all") as to:
        async with to.transaction():
            await send(to, name, rows)
        await to.begin_transaction()
        await send(to, name, rows[:100])
        await to.abort_transaction()
        async with to.transaction():
            await send(to, name, rows[100:150])
    assert [row for _, row in consume(cluster, name, isolation="read_committed")] == [*rows, *rows[100:150]]


async def test_a_broken_checksum_is_refused_by_the_broker(
    cluster: KafkaSettings, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = topic()
    finish = EncodedBatch.finish

    def broken(self: EncodedBatch, *state: int) -> Any:
        batch = finish(self, *state)
        batch[-1] ^= 1
        return batch

    async with writing(cluster, enable_idempotence=False, compression_type=None, request_timeout_ms=2000) as to:
        monkeypatch.setattr(EncodedBatch, "finish", broken)
        with pytest.raises(KafkaError) as caught:
            await send(to, name, random_rows(10))
        assert isinstance(caught.value, CorruptRecordException) or "Corrupt" in str(caught.value)
    assert consume(cluster, name) == []


async def test_atomic_is_one_batch_or_nothing(cluster: KafkaSettings, topic: Topic) -> None:
    name = topic()
    rows = random_rows(2000)
    async with writing(cluster, max_batch_size=10_000, max_request_size=600_000) as to:
        (result,) = await asyncio.gather(*await to.send_columns(name, 0, *arrays(rows), atomic=True))
        assert result.offset == 0
        keys, values, *_ = arrays(random_rows(8000))
        with pytest.raises(BatchTooLargeError, match="8000 rows"):
            await to.send_columns(name, 0, keys, values, atomic=True)
        with pytest.raises(BatchTooLargeError, match="row 1"):
            await to.send_columns(name, 0, None, pa.array([b"", bytes(700_000)]))
    assert [row for _, row in consume(cluster, name)][: len(rows)] == rows


async def test_keys_go_where_the_other_client_s_keys_go(cluster: KafkaSettings, topic: Topic) -> None:
    name, other = topic(3), topic(3)
    rows: list[Row] = [(b"key-%d" % (i % 31), b"%d" % i, NOW + i, ()) for i in range(500)]
    keys, values, timestamps, _ = arrays(rows)
    async with writing(cluster) as to:
        await asyncio.gather(*await to.send_by_key(name, keys, values, timestamps))
        nulls = await asyncio.gather(*await to.send_by_key(name, pa.nulls(3, pa.binary()), values[:3]))
    assert len(nulls) == 1
    java_like: Producer = producer(cluster, partitioner="murmur2_random")
    for key, value, timestamp, _ in rows:
        java_like.produce(other, value, key, timestamp=timestamp)
    java_like.flush(30)
    for partition in range(3):
        ours = [row for _, row in consume(cluster, name, partition) if row[0] is not None]
        assert ours == [row for _, row in consume(cluster, other, partition)]


async def test_rows_of_unequal_columns_are_refused(cluster: KafkaSettings, topic: Topic) -> None:
    async with writing(cluster) as to:
        with pytest.raises(ValueError, match="2 timestamps for 1 values"):
            await to.send_columns(topic(), 0, None, pa.array([b"v"]), np.zeros(2, np.int64))


async def test_full_batches_of_many_partitions_are_not_too_much_for_a_broker(
    cluster: KafkaSettings, topic: Topic
) -> None:
    name = topic(8, max_message_bytes=str(16 << 20))
    megabyte = os.urandom(1 << 20)
    values = pa.array([megabyte] * 14)
    async with writing(cluster, max_batch_size=15 << 20, compression_type=None) as to:
        acks = []
        for rows in (values, values[:1]):
            for partition in range(8):
                acks += await to.send_columns(name, partition, None, rows)
        async with asyncio.timeout(60):
            results = await asyncio.gather(*acks)
    assert [result.offset for result in results] == [0] * 8 + [14] * 8
