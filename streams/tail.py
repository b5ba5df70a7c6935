"""Reading back what is already in a topic, to go on from there."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any

import pyarrow as pa
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from headrace.config import KafkaSettings
from headrace.errors import UnavailableError
from headrace.kafka.client import replay_options
from headrace.kafka.columns import Chunk
from headrace.kafka.consumer import ColumnarConsumer
from headrace.kafka.errors import from_client
from headrace.logs import get_logger
from schemas.codec import ChunkDecoder

log = get_logger("tail")

FIRST_WINDOW = 2_000
# Without a record for this long a partition that should have some cannot be read.
PATIENCE_SECONDS = 60.0


class Tail:
    """A consumer without a group, for reading parts of partitions; used as `async with Tail(...) as tail`.

    Raises `UnavailableError` (or `TerminalError`) for the client's errors.
    """

    def __init__(self, kafka: KafkaSettings, schema_of: Callable[[int], dict[str, Any]]) -> None:
        self._consumer = ColumnarConsumer(**replay_options(kafka), headers=False)
        self._decoder = ChunkDecoder(schema_of)

    async def __aenter__(self) -> Tail:
        try:
            await self._consumer.start()
        except (KafkaError, OSError) as e:
            await self._consumer.stop()
            raise from_client(e, where="reading back") from e
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._consumer.stop()
        if isinstance(error, KafkaError):
            raise from_client(error, where="reading back") from error

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """First offset that is there and the one that the next record gets."""
        tp = TopicPartition(topic, partition)
        first = (await self._consumer.beginning_offsets([tp]))[tp]
        return first, (await self._consumer.end_offsets([tp]))[tp]

    async def chunks(self, topic: str, partition: int, start: int, stop: int) -> AsyncIterator[Chunk]:
        """The records of offsets start..stop, without the latter."""
        tp = TopicPartition(topic, partition)
        self._consumer.assign([tp])
        self._consumer.seek(tp, start)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while start < stop:
            for chunk in (await self._consumer.getmany(tp, timeout_ms=1000)).get(tp, []):
                deadline = time.monotonic() + PATIENCE_SECONDS
                below = int(chunk.offsets.searchsorted(stop))
                if below:
                    yield chunk.slice(0, below)
            # Also moves over control records and holes, which give no chunk.
            start = await self._consumer.position(tp)
            if time.monotonic() > deadline:
                raise UnavailableError(f"no record for {PATIENCE_SECONDS:.0f} s", where=f"{topic}-{partition}@{start}")

    async def batches(self, topic: str, partition: int, start: int, stop: int) -> AsyncIterator[pa.RecordBatch]:
        """The same, decoded, without those that do not decode: what somebody else wrote says nothing of us."""
        async for chunk in self.chunks(topic, partition, start, stop):
            decoded = self._decoder.decode(chunk.values)
            if len(decoded.bad):
                log.warning(
                    "records of somebody else", topic=topic, partition=partition, records=len(decoded.bad),
                    reason=decoded.reasons[0],
                )  # fmt: skip
            yield decoded.batch

    async def backwards(self, topic: str, partition: int) -> AsyncIterator[pa.RecordBatch]:
        """Windows of growing size from the end of a partition to its start; within each, records in order."""
        first, stop = await self.bounds(topic, partition)
        size = FIRST_WINDOW
        while stop > first:
            start = max(first, stop - size)
            found = [batch async for batch in self.batches(topic, partition, start, stop) if batch.num_rows]
            if found:
                yield pa.concat_batches(found)
            stop, size = start, size * 4
