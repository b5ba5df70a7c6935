"""Sending derived records: in order, whole, and acknowledged before the next.

Readers of a derived topic drop what is not above the highest source offset they have seen, so a record must never
appear before one that precedes it. A batch therefore leaves only when the one before it is acknowledged: whatever fails
or is repeated, what is in the topic is a prefix of what was to be sent. aiokafka has one request in flight a broker
anyway, so this costs nothing within a chunk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from aiokafka.errors import KafkaError

from headrace.config import KafkaSettings
from headrace.errors import TerminalError
from headrace.kafka.client import producer_options
from headrace.kafka.errors import from_client
from headrace.kafka.producer import ColumnarProducer

# Plain bytes of a request's rows, below the producer's batch size.
SLICE_BYTES = 900_000
# Most that a record's lengths, offset and timestamp take.
RECORD_OVERHEAD = 32
STALLED_SECONDS = 10.0


class Output:
    """One idempotent producer for all processors of a worker."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._producer: ColumnarProducer | None = None
        self._sending: dict[object, float] = {}

    @property
    def producer(self) -> ColumnarProducer:
        if self._producer is None:
            raise TerminalError("not started", where="output")
        return self._producer

    async def start(self) -> None:
        """Raises `UnavailableError` when Kafka does not answer."""
        producer = ColumnarProducer(**producer_options(self._kafka))
        try:
            await producer.start()
        except (KafkaError, OSError) as e:
            await producer.stop()
            raise from_client(e, where="output") from e
        self._producer = producer

    async def stop(self) -> None:
        if self._producer is not None:
            producer, self._producer = self._producer, None
            await producer.stop()

    async def send(self, topic: str, partition: int, keys: pa.BinaryArray | None, values: pa.BinaryArray) -> None:
        """Returns when all rows are acknowledged by all replicas.

        While no broker answers it waits: an idempotent producer repeats until it succeeds. What it gives up on may or
        may not be in the topic, so the error is terminal: whoever starts anew looks at what the topic holds. Raises
        `BatchTooLargeError` before anything is sent of the rows concerned.
        """
        token = object()
        self._sending[token] = time.monotonic()
        try:
            for start, stop in slices(keys, values):
                part = None if keys is None else keys.slice(start, stop - start)
                sent = await self.producer.send_columns(topic, partition, part, values.slice(start, stop - start))
                await asyncio.gather(*sent)
                self._sending[token] = time.monotonic()
        except KafkaError as e:
            raise TerminalError(
                f"records were not acknowledged: {type(e).__name__}", where=f"{topic}-{partition}"
            ) from e
        finally:
            del self._sending[token]

    def problem(self) -> str | None:
        """What a health page says: None while Kafka acknowledges in time."""
        oldest = min(self._sending.values(), default=None)
        waited = 0.0 if oldest is None else time.monotonic() - oldest
        return f"Kafka has not acknowledged for {waited:.0f} s" if waited > STALLED_SECONDS else None


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


def _lengths(column: pa.BinaryArray) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    out: np.ndarray[tuple[int], np.dtype[np.int64]] = (
        pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    )
    return out
