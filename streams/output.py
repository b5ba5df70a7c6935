"""Sending derived records: in order, whole, and acknowledged before the next.

Readers of a derived topic drop what is not above the highest source offset they have seen, so a record must never
appear before one that precedes it. A batch therefore leaves only when the one before it is acknowledged: whatever fails
or is repeated, what is in the topic is a prefix of what was to be sent. The next is made ready meanwhile, and other
partitions have requests of their own on the way.
"""

from __future__ import annotations

import time

import pyarrow as pa
from aiokafka.errors import KafkaError

from headrace.config import KafkaSettings
from headrace.errors import TerminalError
from headrace.kafka.client import producer_options
from headrace.kafka.errors import from_client
from headrace.kafka.producer import ColumnarProducer

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

        def told() -> None:
            self._sending[token] = time.monotonic()

        told()
        try:
            await self.producer.send_in_turn(topic, partition, keys, values, told)
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
