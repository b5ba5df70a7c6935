"""The topic of `ops.quarantine`: where sinks write what a table or a target refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pyarrow as pa
from aiokafka.errors import KafkaError

from headrace.config import KafkaSettings
from headrace.kafka import ColumnarProducer, admin
from headrace.kafka.admin import TopicSpec
from headrace.kafka.client import producer_options
from schemas.codec import Encoder
from schemas.contracts import BUILTIN, load_contract
from schemas.names import subject
from schemas.registry import Registry


class RefusedRows:
    """Writes rows under the quarantine's contract. Started with the first rows, so that who refuses nothing needs
    neither a producer nor the registry for it."""

    def __init__(self, kafka: KafkaSettings, registry: Registry) -> None:
        self._kafka = kafka
        self._registry = registry
        self._contract = load_contract(BUILTIN / "quarantined.avsc")
        self._encoder: Encoder | None = None
        self._producer: ColumnarProducer | None = None
        self._partitions = 0
        self._turn = asyncio.Lock()

    async def send(self, batches: Iterable[tuple[int, pa.RecordBatch]]) -> None:
        """Return when all rows are acknowledged. A batch comes with the partition that its records are of: those of one
        keep their order.

        After an error, all of them are to be sent again: what is in the topic is a prefix of each partition's.
        Raises `UnavailableError` and aiokafka's errors.
        """
        async with self._turn:
            producer, encoder = await self._start()
            try:
                for partition, rows in batches:
                    values = await asyncio.to_thread(encoder.encode, rows)
                    await producer.send_in_turn(self._contract.topic, partition % self._partitions, None, values)
            except KafkaError:
                # Its sequence of batches has a hole: a broker may refuse what follows.
                await self.close()
                raise

    async def close(self) -> None:
        if self._producer is not None:
            producer, self._producer = self._producer, None
            await producer.stop()

    async def _start(self) -> tuple[ColumnarProducer, Encoder]:
        topic = self._contract.topic
        if self._encoder is None:
            await asyncio.to_thread(admin.ensure_topics, self._kafka, {topic: TopicSpec()})
            self._partitions = (await asyncio.to_thread(admin.partitions, self._kafka))[topic]
            name = subject(topic, "value")
            schema_id = await asyncio.to_thread(self._registry.register, name, self._contract.avro)
            self._encoder = Encoder(self._contract.avro, schema_id)
        if self._producer is None:
            producer = ColumnarProducer(**producer_options(self._kafka))
            try:
                await producer.start()
            except (KafkaError, OSError):
                await producer.stop()
                raise
            self._producer = producer
        return self._producer, self._encoder
