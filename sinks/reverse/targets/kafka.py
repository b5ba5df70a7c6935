"""A topic, of this cluster or another: JSON rows under JSON keys, null for a row that is deleted.

Batches are transactions under the sync's own transactional id: who opens the target fences whoever had it open, so no
older row lands behind a newer one. After a crash a change may be there twice in a row of its key's changes, under the
same `idempotency-key` header.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import orjson
import pyarrow as pa
from aiokafka.errors import InvalidProducerEpoch, KafkaError, ProducerFenced

from headrace.config import KafkaSettings
from headrace.errors import FencedError, HeadraceError, UnavailableError
from headrace.kafka import ColumnarProducer
from headrace.kafka.client import producer_options
from headrace.kafka.columns import HEADERS
from headrace.kafka.errors import from_client
from sinks.reverse.declaration import Sync
from sinks.reverse.fold import Change
from sinks.reverse.targets.base import Done, Failed, Outcome, Refused

MAX_BYTES = 1_000_000
START_SECONDS = 30.0


class KafkaTarget:
    def __init__(self, sync: Sync, url: str, kafka: KafkaSettings) -> None:
        assert sync.kafka is not None
        self._topic = sync.kafka.topic
        self._id = f"headrace-sync-{sync.name}-target"
        self._timeout = sync.timeout
        servers = url.partition("://")[2].rstrip("/")
        self._kafka = kafka if servers == kafka.bootstrap_servers else KafkaSettings(bootstrap_servers=servers)
        self._producer: ColumnarProducer | None = None

    async def open(self) -> None:
        await self._start()

    async def _start(self) -> ColumnarProducer:
        if self._producer is None:
            producer = ColumnarProducer(**producer_options(self._kafka), transactional_id=self._id)
            try:
                await asyncio.wait_for(producer.start(), START_SECONDS)
            except (KafkaError, OSError, TimeoutError) as e:
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
        some_keys, some_values = (pa.array([one[i] for i in fitting], pa.binary()) for one in (keys, values))
        try:
            await asyncio.wait_for(self._append(some_keys, some_values, pa.array(ids, HEADERS)), self._timeout)
        except (ProducerFenced, InvalidProducerEpoch) as e:
            raise FencedError("another process has opened the target", where=f"topic {self._topic}") from e
        except (HeadraceError, KafkaError, TimeoutError) as e:
            await self._forget()
            error = e if isinstance(e, HeadraceError) else from_client(e, where=f"topic {self._topic}")
            if isinstance(error, UnavailableError):
                return [Failed(error.what)] * len(changes)
            raise error from e
        return outcomes

    async def _append(self, keys: pa.BinaryArray, values: pa.BinaryArray, ids: pa.ListArray) -> None:
        producer = await self._start()
        async with producer.transaction():
            await asyncio.gather(*await producer.send_by_key(self._topic, keys, values, headers=ids))

    async def _forget(self) -> None:
        """After a transaction of unknown outcome: the next start ends it, whichever way."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with suppress(KafkaError, TimeoutError):
                await asyncio.wait_for(producer.stop(), self._timeout)
