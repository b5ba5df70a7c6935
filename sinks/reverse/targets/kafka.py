"""A topic, of this cluster or another: JSON rows under JSON keys, null for a row that is deleted.

The idempotency key is in the header `idempotency-key`: a change may be there twice after a crash, with the same one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import orjson
import pyarrow as pa
from aiokafka.errors import KafkaError
from aiokafka.structs import RecordMetadata

from headrace.config import KafkaSettings
from headrace.errors import UnavailableError
from headrace.kafka import ColumnarProducer
from headrace.kafka.client import producer_options
from headrace.kafka.columns import HEADERS
from headrace.kafka.errors import BatchTooLargeError, from_client
from sinks.reverse.declaration import Sync
from sinks.reverse.fold import Change
from sinks.reverse.targets.base import Done, Failed, Outcome, Refused

MAX_BYTES = 1_000_000


class KafkaTarget:
    def __init__(self, sync: Sync, url: str, kafka: KafkaSettings) -> None:
        assert sync.kafka is not None
        self._topic = sync.kafka.topic
        self._timeout = sync.timeout
        servers = url.partition("://")[2].rstrip("/")
        self._kafka = kafka if servers == kafka.bootstrap_servers else KafkaSettings(bootstrap_servers=servers)
        self._producer: ColumnarProducer | None = None

    async def open(self) -> None:
        await self._start()

    async def _start(self) -> ColumnarProducer:
        if self._producer is None:
            producer = ColumnarProducer(**producer_options(self._kafka))
            try:
                await producer.start()
            except (KafkaError, OSError) as e:
                await producer.stop()
                raise UnavailableError("cannot be reached", where=f"Kafka at {self._kafka.bootstrap_servers}") from e
            self._producer = producer
        return self._producer

    async def close(self) -> None:
        if self._producer is not None:
            await self._producer.stop()

    async def send(self, changes: Sequence[Change]) -> list[Outcome]:
        outcomes: list[Outcome] = [Done()] * len(changes)
        keys = [orjson.dumps(change.key) for change in changes]
        values = [None if change.op == "delete" else orjson.dumps(change.row) for change in changes]
        fitting = []
        for index, (key, value) in enumerate(zip(keys, values, strict=True)):
            if len(key) + len(value or b"") > MAX_BYTES:
                outcomes[index] = Refused(f"the row takes more than {MAX_BYTES} bytes")
            else:
                fitting.append(index)
        if not fitting:
            return outcomes
        ids = [[{"key": "idempotency-key", "value": changes[i].id.encode()}] for i in fitting]
        try:
            futures = await (await self._start()).send_by_key(
                self._topic,
                pa.array([keys[i] for i in fitting], pa.binary()),
                pa.array([values[i] for i in fitting], pa.binary()),
                headers=pa.array(ids, HEADERS),
            )
            await self._acknowledged(futures)
        except (UnavailableError, TimeoutError) as e:
            return [Failed(str(e) or "not acknowledged in time")] * len(changes)
        except (KafkaError, BatchTooLargeError) as e:
            error = from_client(e, where=f"topic {self._topic}")
            if isinstance(error, UnavailableError):
                return [Failed(error.what)] * len(changes)
            raise error from e
        return outcomes

    async def _acknowledged(self, futures: list[asyncio.Future[RecordMetadata]]) -> None:
        done, waiting = await asyncio.wait(futures, timeout=self._timeout)
        for future in done:
            future.result()
        if waiting:
            raise TimeoutError
