"""Columns to record batches and back, and what damaged batches do."""

from __future__ import annotations

import ctypes
import mmap
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.record.default_records import DefaultRecordBatch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace import native
from headrace.errors import HeadraceError
from headrace.kafka import layout
from headrace.kafka.errors import BatchTooLargeError, CorruptBatchError
from headrace.kafka.reader import FetchReader, LegacyFormatError, ReadLimits
from headrace.kafka.writer import encode_batches, encode_one_batch, partition_for
from tests.unit.kafka.rows import Row, arrays, columns, rows_of

CODECS = st.sampled_from([0, 1, 2, 3, 4])
HEADER_KEYS = st.text(max_size=5).filter(lambda text: text.encode("utf-8", "ignore").decode() == text)
BYTES = st.none() | st.binary(max_size=40) | st.integers(60, 300).map(bytes)
ROWS: st.SearchStrategy[Row] = st.tuples(
    BYTES,
    BYTES,
    st.integers(0, 2**45),
    st.lists(st.tuples(HEADER_KEYS, BYTES), max_size=3).map(tuple),
)
READER = FetchReader(ReadLimits(max_decompressed_bytes=1 << 20), headers=True)


def produce(rows: list[Row], codec: int, max_batch_bytes: int = 1 << 20) -> bytes:
    """What a broker stores of them: one batch behind the other, base offsets assigned."""
    log = b""
    offset = 0
    for batch in encode_batches(columns(rows), codec=codec, max_batch_bytes=max_batch_bytes, max_record_bytes=1 << 20):
        log += offset.to_bytes(8, "big") + batch.finish().tobytes()[8:]
        offset += batch.records
    return log


@given(st.lists(ROWS, min_size=1, max_size=30), CODECS, st.integers(200, 2000), st.data())
def test_rows_come_back_from_any_offset_in_any_chunks(
    rows: list[Row], codec: int, max_batch_bytes: int, data: st.DataObject
) -> None:
    log = produce(rows, codec, max_batch_bytes)
    start = data.draw(st.integers(0, len(rows) - 1))
    limits = ReadLimits(max_chunk_rows=data.draw(st.integers(1, 40)), max_chunk_bytes=data.draw(st.integers(1, 3000)))
    chunks = [chunk for chunk in FetchReader(limits, headers=True).read(log, "t", 0, start) if len(chunk)]
    assert rows_of(chunks) == list(enumerate(rows))[start:]
    assert chunks[-1].next_offset == len(rows)
    assert all(len(chunk) <= limits.max_chunk_rows for chunk in chunks)
    assert all(a.next_offset == b.offsets[0] for a, b in pairwise(chunks))


@given(st.lists(ROWS, min_size=1, max_size=30), CODECS)
def test_the_client_library_reads_our_batches(rows: list[Row], codec: int) -> None:
    batch = DefaultRecordBatch(
        encode_one_batch(columns(rows), codec=codec, max_plain_bytes=1 << 20, max_bytes=1 << 20)
        .finish(7, 3, 11)
        .tobytes()
    )
    assert batch.validate_crc()
    assert batch.producer_id == 7
    assert [(r.key, r.value, r.timestamp, tuple(r.headers)) for r in batch] == rows


@given(st.lists(ROWS, min_size=1, max_size=20), st.integers(1, 40))
def test_one_batch_holds_all_rows_or_is_refused(rows: list[Row], room: int) -> None:
    whole = len(produce(rows, 0))
    limit = whole - 20 + room
    if limit >= whole:
        batch = encode_one_batch(columns(rows), codec=0, max_plain_bytes=1 << 20, max_bytes=limit)
        assert batch.records == len(rows)
    else:
        with pytest.raises(BatchTooLargeError):
            encode_one_batch(columns(rows), codec=0, max_plain_bytes=1 << 20, max_bytes=limit)


@given(st.lists(ROWS, min_size=3, max_size=20), CODECS, st.data())
def test_slices_of_columns_and_of_chunks_are_the_rows_they_name(
    rows: list[Row], codec: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, len(rows) - 1))
    length = data.draw(st.integers(1, len(rows) - first))
    (chunk,) = READER.read(produce(rows, codec), "t", 0, 0)
    part = chunk.slice(first, length)
    assert [row for _, row in rows_of([part])] == rows[first : first + length]
    assert part.next_offset == first + length
    keys, values, timestamps, headers = arrays(rows)
    stop = first + length
    sliced = encode_one_batch(
        type(columns(rows))(
            keys.slice(first, length), values.slice(first, length), timestamps[first:stop], headers.slice(first, length)
        ),
        codec=codec,
        max_plain_bytes=1 << 20,
        max_bytes=1 << 20,
    )
    assert [row for _, row in rows_of(READER.read(sliced.finish().tobytes(), "t", 0, 0))] == rows[first:stop]


@settings(max_examples=400)
@given(st.lists(ROWS, min_size=1, max_size=12), CODECS, st.data())
def test_damage_is_an_error_or_other_rows_but_never_a_crash(rows: list[Row], codec: int, data: st.DataObject) -> None:
    """Without checksums any bytes may come: every read is inside the input, every array is valid."""
    log = bytearray(produce(rows, codec, 300))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(log) - 1))
        log[at : at + 1] = data.draw(st.binary(max_size=3))
    _read_whatever(bytes(log))


@settings(max_examples=200)
@given(st.lists(ROWS, min_size=1, max_size=12), st.data())
def test_a_flipped_bit_behind_the_checksum_is_noticed(rows: list[Row], data: st.DataObject) -> None:
    log = bytearray(produce(rows, 0))
    bit = data.draw(st.integers(17 * 8, len(log) * 8 - 1))
    log[bit >> 3] ^= 1 << (bit & 7)
    with pytest.raises(HeadraceError, match="checksum"):
        list(READER.read(bytes(log), "t", 0, 0))


@given(st.binary(max_size=200))
@example(b"")
@example(bytes(17))
@example(b"\xff" * 100)
@example(bytes(8) + b"\x00\x00\x00\x32" + bytes(4) + b"\x02" + bytes(100))
def test_any_bytes_are_refused(data: bytes) -> None:
    _read_whatever(data)


class GuardedMemory:
    """Bytes that end where memory that can't be read begins: a read past the input kills the test run."""

    SIZE = 16 * mmap.PAGESIZE

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, self.SIZE + mmap.PAGESIZE)
        self._view = np.frombuffer(self._memory, np.uint8)
        guard = ctypes.c_void_p(self._view.ctypes.data + self.SIZE)
        assert ctypes.CDLL(None, use_errno=True).mprotect(guard, mmap.PAGESIZE, 0) == 0

    def put(self, data: bytes) -> memoryview:
        start = self.SIZE - len(data)
        self._view[start : self.SIZE] = np.frombuffer(data, np.uint8)
        return self._view.data[start : self.SIZE]


GUARDED = GuardedMemory()


def _read_whatever(data: bytes) -> None:
    try:
        rows_of(READER.read(GUARDED.put(data), "t", 0, 0, check_crc=False))
    except (HeadraceError, LegacyFormatError):
        return


@given(st.lists(st.none() | st.binary(max_size=20), max_size=20), st.integers(1, 100))
def test_partitions_are_the_default_partitioner_s(keys: list[bytes | None], partitions: int) -> None:
    places = list(range(partitions))
    expected = [-1 if key is None else DefaultPartitioner()(key, places, places) for key in keys]
    assert partition_for(pa.array(keys, pa.binary()), partitions).tolist() == expected


@given(st.binary(max_size=200))
def test_checksums_with_and_without_the_processor_s_instruction_agree(data: bytes) -> None:
    memory = np.frombuffer(data, np.uint8)
    assert native.crc32c(memory.ctypes.data, len(data)) == native.crc32c_by_table(memory.ctypes.data, len(data))


@pytest.mark.parametrize("headers", [True, False])
def test_a_record_without_the_count_of_its_headers_is_malformed(headers: bool) -> None:
    log = bytearray(produce([(b"key", b"value", 0, ()), (None, None, 0, ())], 0)[:-1])
    log[layout.LENGTH : layout.LENGTH + 4] = (len(log) - layout.LOG_OVERHEAD).to_bytes(4, "big")
    log[1 - layout.MIN_RECORD_SIZE] -= 2  # the length of the last record, a zigzag varint
    with pytest.raises(CorruptBatchError, match="malformed"):
        list(FetchReader(ReadLimits(), headers=headers).read(GUARDED.put(bytes(log)), "t", 0, 0, check_crc=False))
