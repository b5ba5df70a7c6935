"""aiokafka's producer, which also takes columns.

Columns become whole record batches that go through aiokafka's public `send_batch`: idempotence, transactions, retries
and security stay aiokafka's. Private names relied on, under a pinned version: the methods of
`aiokafka.producer.message_accumulator.BatchBuilder` (`_set_producer_state` and `_build` among them, called when the
sender takes the batch), and of the producer `_message_accumulator` (its `_batch_size`, `_compression_type`,
`drain_by_nodes` and `reenqueue`, and its batches' `_builder`), `_max_request_size` and `_txn_manager`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from aiokafka import AIOKafkaProducer
from aiokafka.producer.message_accumulator import BatchBuilder, MessageAccumulator
from aiokafka.structs import RecordMetadata

from headrace.errors import HeadraceError
from headrace.kafka.reader import ReadLimits
from headrace.kafka.security import Watch
from headrace.kafka.writer import Columns, EncodedBatch, encode_batches, encode_one_batch, partition_for

# Plain bytes of a request's rows, below the batch size of `producer_options`.
SLICE_BYTES = 900_000
# A request carries a batch of every partition that its broker leads; brokers close a connection that sends more than
# socket.request.max.bytes (100 MiB by default), and the client would send the same again.
MOST_REQUEST_BYTES = 48 << 20
# Most that a record's lengths, offset and timestamp take.
RECORD_OVERHEAD = 32


class _ColumnarBatch(BatchBuilder):
    """What the client's sender asks of a batch, for one that is born full.

    The header waits for `_build`: producer id, epoch and sequence are given when the sender takes the batch. A retry
    sends the same bytes.
    """

    def __init__(self, batch: EncodedBatch) -> None:
        self._batch = batch
        self._producer_state = (-1, -1, -1)
        self._buffer: memoryview | None = None

    def append(self, **_: Any) -> None:
        """Nothing can be added."""

    def close(self) -> None:
        """It is closed from the start."""

    def closed(self) -> bool:
        return True

    def record_count(self) -> int:
        return self._batch.records

    def size(self) -> int:
        return len(self._batch.payload)

    def _set_producer_state(self, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
        self._producer_state = (producer_id, producer_epoch, base_sequence)

    def _build(self) -> memoryview:
        if self._buffer is None:
            self._buffer = self._batch.finish(*self._producer_state).data
        return self._buffer


class ColumnarProducer(AIOKafkaProducer):
    """`AIOKafkaProducer` with `send_columns` and `send_by_key`; its other methods work as ever.

    Each future resolves to the batch's `RecordMetadata` (its offset is that of the batch's first row), or to None with
    acks=0. Batches of one call are sent in order. With `enable_idempotence` or transactions nothing is sent twice.
    """

    _null_key_turn = 0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._watch = Watch(self.client)
        self._message_accumulator.drain_by_nodes = self._drain

    async def start(self) -> None:
        """Connect. Raises `SecurityError` when TLS or SASL refuses a connection."""
        await self._watch.start(super().start, self.stop)

    def _drain(self, *arguments: Any, **options: Any) -> tuple[dict[int, dict[Any, Any]], bool]:
        """The client's batches for each node, but what is too much for one request is put back for the next."""
        accumulator = self._message_accumulator
        nodes, leaders_missing = MessageAccumulator.drain_by_nodes(accumulator, *arguments, **options)
        for batches in nodes.values():
            size = 0
            for place, batch in list(batches.items()):
                size += batch._builder.size()
                if size > MOST_REQUEST_BYTES and len(batches) > 1:
                    size -= batch._builder.size()
                    # It keeps its sequence number, as one that is tried again.
                    accumulator.reenqueue(batches.pop(place))
        return nodes, leaders_missing

    async def send_columns(
        self,
        topic: str,
        partition: int,
        keys: pa.BinaryArray | None,
        values: pa.BinaryArray,
        timestamps: npt.NDArray[np.int64] | None = None,
        headers: pa.ListArray | None = None,
        atomic: bool = False,
    ) -> list[asyncio.Future[RecordMetadata]]:
        """Send rows to one partition, in order; one future a record batch.

        `keys` None is all null; null values are tombstones; `timestamps` are milliseconds, now by default; `headers` is
        list<struct<key: string, value: binary>>. `atomic` puts all rows into exactly one record batch, which Kafka
        appends whole or not at all. Waits until the batch before has left. Raises `BatchTooLargeError` when a row (or
        `atomic`, all rows) does not fit a request of max_request_size (the rows before that row may be sent, none at
        all when atomic), `SecurityError` when TLS or SASL has refused a connection meanwhile, and aiokafka's errors.
        """
        self._watch.check()
        columns = Columns(keys, values, timestamps, headers)
        try:
            batches = iter([self._encode_one(columns)]) if atomic else self._encode(columns)
            return [await self.send_batch(_ColumnarBatch(batch), topic, partition=partition) for batch in batches]
        except HeadraceError as e:
            e.where = e.where or f"{topic}-{partition}"
            raise

    async def send_in_turn(
        self,
        topic: str,
        partition: int,
        keys: pa.BinaryArray | None,
        values: pa.BinaryArray,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        """Send rows to one partition, a request at a time, each after the one before is acknowledged; it is made
        ready meanwhile.

        Whatever fails, what is in the topic is a prefix of the rows: sent again from the first, none of them appears
        before one that precedes it. `told` is called at each acknowledgement. Raises as `send_columns`.
        """
        self._watch.check()
        unacknowledged: list[asyncio.Future[RecordMetadata]] = []
        try:
            for start, stop in slices(keys, values):
                part = None if keys is None else keys.slice(start, stop - start)
                ready = partial(self._batches, part, values.slice(start, stop - start))
                if unacknowledged:
                    batches, *_ = await asyncio.gather(asyncio.to_thread(ready), *unacknowledged)
                    told()
                else:
                    batches = ready()
                unacknowledged = [await self.send_batch(batch, topic, partition=partition) for batch in batches]
            await asyncio.gather(*unacknowledged)
        except HeadraceError as e:
            e.where = e.where or f"{topic}-{partition}"
            raise

    async def send_by_key(
        self,
        topic: str,
        keys: pa.BinaryArray,
        values: pa.BinaryArray,
        timestamps: npt.NDArray[np.int64] | None = None,
        headers: pa.ListArray | None = None,
    ) -> list[asyncio.Future[RecordMetadata]]:
        """Send each row to the partition of its key, as Kafka's default partitioner chooses; order is kept per key.

        Rows with a null key go to one partition, another at each call. One future a record batch; raises as
        `send_columns`, with other partitions' rows possibly sent.
        """
        partitions = sorted(await self.partitions_for(topic))
        chosen = partition_for(keys, len(partitions))
        chosen[chosen < 0] = self._null_key_turn % len(partitions)
        self._null_key_turn += 1
        futures: list[asyncio.Future[RecordMetadata]] = []
        for place in np.unique(chosen).tolist():
            rows = np.flatnonzero(chosen == place)
            futures += await self.send_columns(
                topic,
                partitions[place],
                keys.take(pa.array(rows)),
                values.take(pa.array(rows)),
                None if timestamps is None else np.asarray(timestamps)[rows],
                None if headers is None else headers.take(pa.array(rows)),
            )
        return futures

    @property
    def _transactional(self) -> bool:
        return self._txn_manager is not None and self._txn_manager.transactional_id is not None

    def _batches(self, keys: pa.BinaryArray | None, values: pa.BinaryArray) -> list[BatchBuilder]:
        return [_ColumnarBatch(batch) for batch in self._encode(Columns(keys, values))]

    def _encode(self, columns: Columns) -> Iterator[EncodedBatch]:
        return encode_batches(
            columns,
            codec=self._message_accumulator._compression_type,
            max_batch_bytes=min(self._message_accumulator._batch_size, self._max_request_size),
            max_record_bytes=self._max_request_size,
            transactional=self._transactional,
        )

    def _encode_one(self, columns: Columns) -> EncodedBatch:
        return encode_one_batch(
            columns,
            codec=self._message_accumulator._compression_type,
            max_plain_bytes=ReadLimits().max_decompressed_bytes,
            max_bytes=self._max_request_size,
            transactional=self._transactional,
        )


def slices(keys: pa.BinaryArray | None, values: pa.BinaryArray) -> Iterator[tuple[int, int]]:
    """Consecutive (start, stop) of rows that fit one request; a row that is larger than that stands alone."""
    sizes = _lengths(values) + RECORD_OVERHEAD
    if keys is not None:
        sizes += _lengths(keys)
    ends = np.cumsum(sizes)
    start = 0
    while start < len(ends):
        before = ends[start] - sizes[start]
        stop = max(start + 1, int(np.searchsorted(ends, before + SLICE_BYTES, side="right")))
        yield start, stop
        start = stop


def _lengths(column: pa.BinaryArray) -> npt.NDArray[np.int64]:
    out: npt.NDArray[np.int64] = (
        pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    )
    return out
