"""Rows into the topics of contracts, under the contract's schema, acknowledged by all replicas of the broker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import pyarrow as pa
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.structs import RecordMetadata

from connectors.convert import JsonConverter
from headrace.config import Settings
from headrace.errors import TransientError, UnavailableError
from headrace.kafka import ColumnarProducer
from headrace.kafka.admin import TopicSpec, ensure_topics
from headrace.kafka.client import producer_options
from headrace.kafka.errors import from_client
from schemas.codec.encoder import Encoder
from schemas.contracts import Contract
from schemas.keys import record_keys
from schemas.names import subject
from schemas.registry import Registry
from schemas.rules import Rule, compile_rules

T = TypeVar("T")

# A record of this size still fits the producer's request and the broker's default limit.
MAX_RECORD_BYTES = 1_000_000


@dataclass(frozen=True)
class Stream:
    """What is needed to write rows of one contract. `schema_id` is that of the contract in the registry."""

    contract: Contract
    schema_id: int
    encoder: Encoder = field(repr=False)
    converter: JsonConverter = field(repr=False)

    @cached_property
    def rules(self) -> list[Rule]:
        return compile_rules(self.contract)

    def encode(self, batch: pa.RecordBatch) -> tuple[pa.BinaryArray, pa.BinaryArray]:
        """Kafka keys and framed values of the batch's rows."""
        return record_keys(batch, self.contract.key), self.encoder.encode(batch)


def is_fed_from_outside(contract: Contract) -> bool:
    """Whether others than Headrace and Connect may write the contract's topic."""
    return contract.is_source


class Feed:
    """One idempotent producer and the streams that it has been asked for. For one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._registry = Registry(settings.registry.url, settings.state / "schemas")
        self._streams: dict[str, Stream] = {}
        self._producer: ColumnarProducer | None = None
        self._starting = asyncio.Lock()

    async def stream(self, contract: Contract) -> Stream:
        """The contract's stream; its topic is created and its schema registered where they are missing.

        Raises `UnavailableError` while Kafka or the registry is away, `TerminalError` when the registry refuses the
        schema.
        """
        known = self._streams.get(contract.topic)
        if known is None:
            # Fails at once while Kafka is away; what follows would hold a thread for its whole timeout.
            await self.start()
            known = await asyncio.to_thread(self._prepare, contract)
            self._streams[contract.topic] = known
        return known

    def _prepare(self, contract: Contract) -> Stream:
        ensure_topics(self._settings.kafka, {contract.topic: TopicSpec()})
        schema_id = self._registry.register(subject(contract.topic, "value"), contract.avro)
        return Stream(contract, schema_id, Encoder(contract.avro, schema_id), JsonConverter(contract.avro))

    async def start(self) -> ColumnarProducer:
        """Connect, once. Raises `UnavailableError` while Kafka is away."""
        async with self._starting:
            if self._producer is None:
                producer = ColumnarProducer(**producer_options(self._settings.kafka))
                try:
                    await producer.start()
                except (KafkaConnectionError, OSError) as e:
                    await producer.stop()
                    raise UnavailableError(
                        "cannot be reached", where=f"Kafka at {self._settings.kafka.bootstrap_servers}"
                    ) from e
                self._producer = producer
            return self._producer

    async def send(
        self, topic: str, keys: pa.BinaryArray, values: pa.BinaryArray
    ) -> list[asyncio.Future[RecordMetadata]]:
        """Send rows, each to the partition of its key; each future is done when the broker has its batch for good.

        Raises `UnavailableError` when Kafka takes nothing more for now: some of the rows may be sent all the same.
        """
        producer = await self.start()
        try:
            return await producer.send_by_key(topic, keys, values)
        except KafkaError as e:
            raise from_client(e, where=topic) from e

    async def close(self) -> None:
        """Send what waits and let go."""
        if self._producer is not None:
            await self._producer.stop()


async def persist(
    call: Callable[[], Awaitable[T]], sleep: Callable[[float], Awaitable[bool]], note: Callable[[str | None], None]
) -> T | None:
    """Call until it succeeds, waiting between transient failures; None when `sleep` says that the process stops.

    `note` gets each failure, and None at the end.
    """
    delay = 0.25
    while True:
        try:
            done = await call()
        except TransientError as e:
            note(str(e))
            if await sleep(delay):
                return None
            delay = min(delay * 2, 5.0)
        else:
            note(None)
            return done
