"""What our own producer never writes: holes, control batches, the broker's timestamps, old formats, bombs."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import cramjam
import numpy as np
import pyarrow as pa
import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, READ_UNCOMMITTED
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from structlog.testing import capture_logs

from headrace import native
from headrace.errors import ConfigError, HeadraceError
from headrace.kafka import consumer as consumer_module
from headrace.kafka import layout
from headrace.kafka.columns import Chunk
from headrace.kafka.compression import Decompressor, compress
from headrace.kafka.consumer import LEGACY_FETCHES
from headrace.kafka.errors import CorruptBatchError, DecompressionLimitError
from headrace.kafka.reader import FetchReader, ReadLimits
from headrace.kafka.writer import encode_one_batch
from tests.unit.kafka.rows import columns, rows_of


def batch(
    base: int,
    deltas: list[int],
    *,
    last_delta: int | None = None,
    producer: int = -1,
    attributes: int = 0,
    codec: int = 0,
    key: bytes = b"k",
) -> bytes:
    """A batch as the client library builds it, then changed as a broker would."""
    builder = DefaultRecordBatchBuilder(2, codec, 0, producer, 0, 0, 1 << 20)
    for delta in deltas:
        builder.append(delta, 1000 + delta, key, b"v%d" % (base + delta), [])
    data = bytearray(builder.build())
    struct.pack_into(">q", data, 0, base)
    data[layout.ATTRIBUTES + 1] |= attributes
    if last_delta is not None:
        struct.pack_into(">i", data, layout.LAST_OFFSET_DELTA, last_delta)
    rest = np.frombuffer(bytes(data[layout.ATTRIBUTES :]), np.uint8)
    struct.pack_into(">I", data, layout.CRC, native.crc32c(rest.ctypes.data, len(rest)))
    return bytes(data)


def read(data: bytes, start: int = 0, limits: ReadLimits | None = None) -> list[Chunk]:
    return list(FetchReader(limits or ReadLimits(), headers=True).read(data, "t", 3, start))


def values(chunks: list[Chunk]) -> list[bytes]:
    return [value for chunk in chunks for value in chunk.values.to_pylist()]


def test_compaction_leaves_holes_and_the_end_of_the_batch_is_still_passed() -> None:
    chunks = read(batch(10, [0, 3, 4], last_delta=9) + batch(25, [1, 2]), 12)
    assert [chunk.offsets.tolist() for chunk in chunks] == [[13, 14, 26, 27]]
    assert chunks[-1].next_offset == 28


def test_a_batch_whose_records_are_all_compacted_away_is_passed() -> None:
    (chunk,) = read(batch(10, [0], last_delta=9), 15)
    assert (len(chunk), chunk.next_offset) == (0, 20)


def test_the_broker_s_timestamp_is_that_of_the_whole_batch() -> None:
    (chunk,) = read(batch(0, [0, 1, 2], attributes=layout.LOG_APPEND_TIME))
    assert chunk.timestamps.tolist() == [1002] * 3


def control(base: int, producer: int, kind: int) -> bytes:
    key = struct.pack(">hh", 0, kind)
    return batch(base, [0], producer=producer, attributes=layout.CONTROL | layout.TRANSACTIONAL, key=key)


def client_view(
    data: bytes,
    isolation: int,
    aborted: list[tuple[int, int]],
    start: int = 0,
    limits: ReadLimits | None = None,
) -> tuple[list[Any], int]:
    """What aiokafka's fetch result would take from the data, and the position after it."""
    reader = FetchReader(limits or ReadLimits(), headers=True)
    records = consumer_module._ColumnarPartitionRecords(
        reader,
        TopicPartition("t", 3),
        consumer_module._Batches(data),
        aborted,
        start,
        None,
        None,
        True,
        isolation,
    )
    return list(records), records.next_fetch_offset


def test_aborted_records_are_left_out_and_control_batches_always_are() -> None:
    transactional = layout.TRANSACTIONAL
    log = (
        batch(0, [0, 1], producer=1, attributes=transactional)
        + batch(2, [0], producer=2, attributes=transactional)
        + batch(3, [0])
        + control(4, 1, 0)
        + batch(5, [0], producer=1, attributes=transactional)
        + control(6, 2, 1)
        + control(7, 1, 1)
    )
    chunks, position = client_view(log, READ_COMMITTED, [(1, 0)])
    assert values(chunks) == [b"v2", b"v3", b"v5"]
    assert position == 8
    chunks, position = client_view(log, READ_UNCOMMITTED, [])
    assert values(chunks) == [b"v0", b"v1", b"v2", b"v3", b"v5"]
    assert position == 8


def test_a_fetch_of_nothing_but_aborted_records_moves_the_position() -> None:
    log = batch(0, [0, 1], producer=1, attributes=layout.TRANSACTIONAL) + control(2, 1, 0)
    assert client_view(log, READ_COMMITTED, [(1, 0)]) == ([], 3)


def test_what_is_before_a_bad_batch_is_given_out_first() -> None:
    bad = bytearray(batch(2, [0]))
    bad[-3] ^= 1
    (chunk, error), position = client_view(batch(0, [0, 1]) + bytes(bad), READ_UNCOMMITTED, [])
    assert chunk.offsets.tolist() == [0, 1]
    assert position == 2
    assert isinstance(error, CorruptBatchError)
    assert error.where == "t-3@2"


def test_records_that_contradict_their_header_are_refused_after_the_good_ones() -> None:
    good, malformed = batch(0, [0, 1]), bytearray(batch(2, [0, 1]))
    malformed[layout.HEADER_SIZE] = 0x7E
    rest = np.frombuffer(bytes(malformed[layout.ATTRIBUTES :]), np.uint8)
    struct.pack_into(">I", malformed, layout.CRC, native.crc32c(rest.ctypes.data, len(rest)))
    (chunk, error), position = client_view(good + bytes(malformed), READ_UNCOMMITTED, [])
    assert chunk.offsets.tolist() == [0, 1]
    assert position == 2
    assert "malformed records" in str(error)


@pytest.mark.parametrize("codec", [0, layout.LZ4])
def test_more_records_than_bytes_are_refused_before_columns_are_allocated(codec: int) -> None:
    bomb = bytearray(batch(0, [0], codec=codec))
    struct.pack_into(">i", bomb, layout.RECORDS, 2**31 - 1)
    rest = np.frombuffer(bytes(bomb[layout.ATTRIBUTES :]), np.uint8)
    struct.pack_into(">I", bomb, layout.CRC, native.crc32c(rest.ctypes.data, len(rest)))
    with pytest.raises(CorruptBatchError, match="more records than"):
        read(bytes(bomb))


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_a_bomb_is_refused_at_the_limit(codec: int) -> None:
    bomb = np.frombuffer(compress(codec, memoryview(bytes(5_000_000))), np.uint8)
    tracemalloc.start()
    with pytest.raises(DecompressionLimitError, match="more than 1000000 bytes"):
        Decompressor(1_000_000, 1_000_000).decompress(codec, bomb)
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()
    assert Decompressor(1, 5_000_000).decompress(codec, bomb).tobytes() == bytes(5_000_000)


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_cut_off_input_is_corrupt_and_not_too_large(codec: int) -> None:
    data = np.frombuffer(compress(codec, memoryview(bytes(range(256)) * 400)), np.uint8)
    with pytest.raises(CorruptBatchError):
        Decompressor(1 << 20, 1 << 20).decompress(codec, data[: len(data) // 2])


def test_snappy_without_framing_is_read_too() -> None:
    data = np.frombuffer(bytes(cramjam.snappy.compress_raw(b"abc" * 1000)), np.uint8)
    assert Decompressor(1, 4000).decompress(layout.SNAPPY, data).tobytes() == b"abc" * 1000


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(CorruptBatchError, match="unknown codec 6"):
        Decompressor(1, 1).decompress(6, np.empty(0, np.uint8))


@pytest.mark.parametrize("magic", [0, 1])
def test_older_formats_go_through_the_client_with_one_warning(magic: int) -> None:
    builder = LegacyRecordBatchBuilder(magic, 0, 1 << 20)
    for i in range(5):
        builder.append(i, 1000 + i, b"k" if i % 2 else None, b"v%d" % i)
    data = bytes(builder.build())
    consumer_module._legacy_topics.clear()
    before = LEGACY_FETCHES.labels("t")._value.get()
    with capture_logs() as logged:
        for _ in range(2):
            (chunk,), position = client_view(data, READ_UNCOMMITTED, [], 1)
    assert values([chunk]) == [b"v1", b"v2", b"v3", b"v4"]
    assert chunk.keys.to_pylist() == [b"k", None, b"k", None]
    assert chunk.timestamps.tolist() == ([1001, 1002, 1003, 1004] if magic else [-1] * 4)
    assert position == chunk.next_offset == 5
    assert [(event["log_level"], event["topic"]) for event in logged] == [("warning", "t")]
    assert LEGACY_FETCHES.labels("t")._value.get() == before + 2


def test_damaged_older_formats_are_corrupt() -> None:
    builder = LegacyRecordBatchBuilder(1, 0, 1 << 20)
    builder.append(0, 1000, b"k", b"value")
    data = bytearray(builder.build())
    data[-1] ^= 1
    (error,), position = client_view(bytes(data), READ_UNCOMMITTED, [])
    assert isinstance(error, CorruptBatchError)
    assert position == 0


def test_a_batch_cut_off_in_its_header_is_corrupt_after_older_messages() -> None:
    builder = LegacyRecordBatchBuilder(1, 0, 1 << 20)
    builder.append(0, 1000, b"k", b"value")
    cut = struct.pack(">qiibb", 1, 6, 0, 2, 0)
    (chunk, error), position = client_view(bytes(builder.build()) + cut, READ_UNCOMMITTED, [])
    assert values([chunk]) == [b"value"]
    assert isinstance(error, CorruptBatchError)
    assert position == 1


@pytest.mark.parametrize("codec", [layout.GZIP, layout.SNAPPY, layout.LZ4])
def test_a_bomb_in_an_older_format_is_refused_after_the_good_ones(codec: int) -> None:
    def message(offset: int, codec: int, value: bytes) -> bytes:
        builder = LegacyRecordBatchBuilder(1, codec, 1 << 30)
        builder.append(offset, 1000, b"k", value)
        data = bytearray(builder.build())
        struct.pack_into(">q", data, 0, offset)
        return bytes(data)

    data = message(0, 0, b"plain") + message(1, codec, b"small" * 100) + message(2, codec, bytes(5_000_000))
    limits = ReadLimits(max_chunk_bytes=1_000_000, max_decompressed_bytes=1_000_000)
    tracemalloc.start()
    (chunk, error), position = client_view(data, READ_UNCOMMITTED, [], limits=limits)
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()
    assert values([chunk]) == [b"plain", b"small" * 100]
    assert isinstance(error, DecompressionLimitError)
    assert (error.where, position) == ("t-3@2", 2)


def test_older_formats_keep_to_the_bounds_of_a_chunk() -> None:
    builder = LegacyRecordBatchBuilder(1, 0, 1 << 20)
    for i in range(25):
        builder.append(i, 1000 + i, None, bytes(100))
    limits = ReadLimits(max_chunk_rows=7, max_chunk_bytes=400)
    chunks, position = client_view(bytes(builder.build()), READ_UNCOMMITTED, [], limits=limits)
    assert [len(chunk) for chunk in chunks] == [4] * 6 + [1]
    assert [chunk.next_offset for chunk in chunks] == [4, 8, 12, 16, 20, 24, 25]
    assert position == 25


def test_bad_headers_name_the_record() -> None:
    payload = encode_one_batch(
        columns([(None, b"v", 1, ()), (None, b"v", 1, (("key", b"value"),))]),
        codec=0,
        max_plain_bytes=1000,
        max_bytes=1000,
    ).finish()
    (chunk,) = read(payload.tobytes())
    assert chunk.wire_headers is not None
    chunk.wire_headers.data[1] = 0x7E
    with pytest.raises(CorruptBatchError, match="t-3@1"):
        _ = chunk.headers


def test_an_empty_slice_stays_where_it_is() -> None:
    (chunk,) = read(batch(10, [0, 3, 4], last_delta=9))
    assert (chunk.slice(1, 0).next_offset, chunk.slice(1, 1).next_offset, chunk.slice(3).next_offset) == (13, 14, 20)
    assert rows_of([chunk.slice(0)]) == rows_of([chunk])


def test_a_chunk_without_headers_has_empty_ones() -> None:
    (chunk,) = read(batch(0, [0, 1]))
    assert chunk.headers.to_pylist() == [[], []]
    assert chunk.headers.type == pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))


def test_limits_are_checked() -> None:
    with pytest.raises(ConfigError, match="max_chunk_rows"):
        ReadLimits(max_chunk_rows=0)


async def test_deserializers_are_refused() -> None:
    with pytest.raises(ConfigError, match="value_deserializer"):
        consumer_module.ColumnarConsumer(value_deserializer=len)


async def test_an_error_waits_until_other_partitions_records_are_given_out(monkeypatch: pytest.MonkeyPatch) -> None:
    (chunk,) = read(batch(0, [0]))
    tp, other = TopicPartition("t", 3), TopicPartition("t", 4)
    fetched: list[dict[TopicPartition, list[Any]]] = [
        {tp: [CorruptBatchError("bad")], other: [chunk]},
        {other: [chunk]},
    ]

    async def getmany(*_: Any, **__: Any) -> dict[TopicPartition, list[Any]]:
        return fetched.pop(0) if fetched else {}

    monkeypatch.setattr(consumer_module.AIOKafkaConsumer, "getmany", getmany)
    consumer = consumer_module.ColumnarConsumer()
    consumer.assign([tp, other])
    assert await consumer.getmany() == {other: [chunk]}
    with pytest.raises(HeadraceError, match="bad"):
        await consumer.getmany()
    assert await consumer.getmany() == {other: [chunk]}


async def test_a_poll_ends_when_its_chunks_hold_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    (chunk,) = read(batch(0, [0, 1, 2]))
    tp, other = TopicPartition("t", 3), TopicPartition("t", 4)
    fetched = [{tp: [chunk]}, {tp: [chunk]}, {other: [chunk]}, {tp: [chunk]}]

    async def getmany(*_: Any, max_records: int, **__: Any) -> dict[TopicPartition, list[Any]]:
        assert max_records == 1
        return fetched.pop(0) if fetched else {}

    monkeypatch.setattr(consumer_module.AIOKafkaConsumer, "getmany", getmany)
    limits = ReadLimits(max_poll_bytes=2 * chunk.nbytes + 1)
    consumer = consumer_module.ColumnarConsumer(limits=limits)
    assert await consumer.getmany(max_records=1) == {tp: [chunk]}
    assert await consumer.getmany() == {tp: [chunk, chunk], other: [chunk]}
    assert await consumer.getmany() == {}
    with pytest.raises(ValueError, match="positive"):
        await consumer.getmany(max_records=0)


async def test_the_client_s_error_waits_until_what_is_in_hand_is_given_out(monkeypatch: pytest.MonkeyPatch) -> None:
    (chunk,) = read(batch(0, [0]))
    tp, other = TopicPartition("t", 3), TopicPartition("t", 4)
    answers: list[Any] = [{tp: [chunk]}, OffsetOutOfRangeError({other: 5}), {tp: [chunk]}, KafkaError("seen"), {}]

    async def getmany(*_: Any, **__: Any) -> dict[TopicPartition, list[Any]]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        found: dict[TopicPartition, list[Any]] = answer
        return found

    monkeypatch.setattr(consumer_module.AIOKafkaConsumer, "getmany", getmany)
    consumer = consumer_module.ColumnarConsumer()
    consumer.assign([tp, other])
    assert await consumer.getmany() == {tp: [chunk]}
    consumer.assign([tp])
    # What was out of range is not read any more.
    assert await consumer.getmany() == {tp: [chunk]}
    with pytest.raises(KafkaError, match="seen"):
        await consumer.getmany()
    assert await consumer.getmany() == {}
