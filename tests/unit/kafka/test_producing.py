from __future__ import annotations

import asyncio
import subprocess
import sys
from types import SimpleNamespace

import pyarrow as pa
import pytest
from aiokafka.errors import KafkaTimeoutError
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.structs import RecordMetadata

import headrace.kafka
from headrace.kafka.producer import RECORD_OVERHEAD, SLICE_BYTES, ColumnarProducer, _ColumnarBatch, slices
from headrace.kafka.writer import Columns, encode_batches, encode_headers, partition_for
from tests.unit.kafka.rows import Row, columns


def test_a_retry_sends_the_same_bytes_with_the_state_given_first() -> None:
    (encoded,) = encode_batches(columns([(b"k", b"v", 5, ())]), codec=0, max_batch_bytes=1000, max_record_bytes=1000)
    batch = _ColumnarBatch(encoded)
    assert (batch.closed(), batch.record_count(), batch.append(key=b"", value=b"", timestamp=0)) == (True, 1, None)
    batch._set_producer_state(77, 2, 9)
    sent = bytes(batch._build())
    assert bytes(batch._build()) == sent
    assert len(sent) == batch.size()
    parsed = DefaultRecordBatch(sent)
    assert (parsed.producer_id, parsed.producer_epoch, parsed.base_sequence) == (77, 2, 9)
    assert parsed.validate_crc()


def test_batches_keep_to_their_size_and_a_long_row_goes_beyond_it() -> None:
    rows: list[Row] = [(None, bytes(size), 1, ()) for size in (10, 90, 90, 700, 10)]
    batches = list(encode_batches(columns(rows), codec=0, max_batch_bytes=300, max_record_bytes=800))
    assert [batch.records for batch in batches] == [3, 2]
    assert [len(batch.payload) for batch in batches][1] > 700


def test_a_long_row_makes_no_batch_that_is_longer_than_it_must_be() -> None:
    rows: list[Row] = [(b"k", bytes(size), 1, ()) for size in (400, 200, 90, 90, 90)]
    batches = list(encode_batches(columns(rows), codec=0, max_batch_bytes=300, max_record_bytes=100_000))
    assert [batch.records for batch in batches] == [1, 1, 2, 1]


def test_compression_that_does_not_help_is_left_out() -> None:
    (batch,) = encode_batches(columns([(None, b"v", 1, ())]), codec=4, max_batch_bytes=1000, max_record_bytes=1000)
    assert batch.attributes == 0


def test_no_rows_make_no_batch() -> None:
    assert list(encode_batches(columns([]), codec=0, max_batch_bytes=1000, max_record_bytes=1000)) == []


def test_text_columns_are_taken_as_their_bytes() -> None:
    assert partition_for(pa.array(["key"]), 7).tolist() == partition_for(pa.array([b"key"]), 7).tolist()
    with pytest.raises(pa.ArrowNotImplementedError):
        Columns(None, pa.array([1.5]))


def test_null_headers_are_none() -> None:
    wire = encode_headers(pa.array([None, []], headrace.kafka.columns.HEADERS))
    assert wire.offsets.tolist() == [0, 0, 0]


def test_admin_does_not_load_the_kernels() -> None:
    code = "import sys, headrace.kafka.admin; sys.exit('headrace.kernels' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_slices_cover_all_rows_and_fit_a_request() -> None:
    sizes = [10, SLICE_BYTES // 2, SLICE_BYTES // 2, SLICE_BYTES * 2, 5, None]
    values = pa.array([None if n is None else b"x" * n for n in sizes], pa.binary())
    found = list(slices(values, values))
    assert [start for start, _ in found] == [0, *(stop for _, stop in found[:-1])]
    assert found[-1][1] == len(values)
    for start, stop in found:
        plain = sum(2 * (n or 0) + RECORD_OVERHEAD for n in sizes[start:stop])
        assert plain <= SLICE_BYTES or stop - start == 1
    assert list(slices(None, pa.array([], pa.binary()))) == []


async def test_a_request_leaves_only_after_the_one_before_is_acknowledged() -> None:
    values = pa.array([b"x" * SLICE_BYTES] * 3)
    producer = ColumnarProducer.__new__(ColumnarProducer)
    acks: list[asyncio.Future[RecordMetadata]] = []
    made: list[int] = []

    def batches(_keys: None, rows: pa.BinaryArray) -> list[None]:
        made.append(len(rows))
        return [None]

    async def send_batch(_batch: None, _topic: str, *, partition: int) -> asyncio.Future[RecordMetadata]:
        assert all(ack.done() for ack in acks)
        acks.append(asyncio.get_running_loop().create_future())
        return acks[-1]

    async def sent(number: int) -> None:
        async with asyncio.timeout(10):
            while (len(acks), len(made)) != (number, min(number + 1, 3)):  # noqa: ASYNC110 (made in a thread)
                await asyncio.sleep(0.001)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(producer, "_watch", SimpleNamespace(check=lambda: None), raising=False)
        patch.setattr(producer, "_batches", batches)
        patch.setattr(producer, "send_batch", send_batch)
        told: list[int] = []
        sending = asyncio.create_task(producer.send_in_turn("t", 0, None, values, lambda: told.append(len(acks))))
        await sent(1)
        acks[0].set_result(RecordMetadata("t", 0, None, 0, 0, 0, 0))
        await sent(2)
        acks[1].set_exception(KafkaTimeoutError())
        with pytest.raises(KafkaTimeoutError):
            await sending
        assert (len(acks), told) == (2, [1])
    producer._closed = True
