"""Records that a table cannot take: whole in `ops.quarantine`, acknowledged, before the table moves past them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from aiokafka.errors import KafkaError

from headrace.config import KafkaSettings
from headrace.kafka import ColumnarProducer, admin
from headrace.kafka.admin import TopicSpec
from headrace.kafka.client import producer_options
from schemas.codec import Encoder
from schemas.contracts import Contract
from schemas.names import subject
from schemas.registry import Registry
from sinks.iceberg.slices import Reject

Int64 = npt.NDArray[np.int64]


class Quarantine:
    """Writes rejects under the quarantine's contract. Started with the first reject, so that a sink without any needs
    neither a producer nor the registry for it."""

    def __init__(self, kafka: KafkaSettings, registry: Registry, contract: Contract) -> None:
        self._kafka = kafka
        self._registry = registry
        self._contract = contract
        self._encoder: Encoder | None = None
        self._producer: ColumnarProducer | None = None
        self._partitions = 0
        self._turn = asyncio.Lock()

    async def send(self, rejects: Sequence[Reject], topic_id: str) -> None:
        """Return when all of them are acknowledged. They are of one topic, which has this id.

        After an error, all of them are to be sent again: what is in the quarantine is a prefix of each partition's.
        Raises `UnavailableError` and aiokafka's errors.
        """
        async with self._turn:
            producer, encoder = await self._start()
            try:
                for partition in sorted({reject.slice.partition for reject in rejects}):
                    mine = [reject for reject in rejects if reject.slice.partition == partition]
                    values = await asyncio.to_thread(encoder.encode, quarantine_rows(mine, topic_id, time.time()))
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


def quarantine_rows(rejects: Sequence[Reject], topic_id: str, now: float) -> pa.RecordBatch:
    """Rejects of one partition as rows of the quarantine, in offset order: within a stage their offsets only increase
    from batch to batch, which readers tell replays by. `now` is in seconds since the epoch."""
    parts = pa.concat_tables([_rows(reject, topic_id, now) for reject in rejects]).combine_chunks()
    return parts.sort_by("source_offset").combine_chunks().to_batches()[0]


def _rows(reject: Reject, topic_id: str, now: float) -> pa.Table:
    part, rows = reject.slice, reject.rows
    n = len(rows)
    take = pa.array(rows)
    values = part.values.take(take)
    columns: dict[str, Any] = {
        "stage": _same(reject.stage, n),
        "source_topic": _same(part.topic, n),
        "source_partition": pa.array(np.full(n, part.partition, np.int32)),
        "source_offset": pa.array(part.offsets[rows]),
        "disposition": _same("quarantined", n),
        "rule": _same(reject.rule, n),
        "reason": pa.array(reject.reasons, pa.string()),
        "contract": _same(reject.contract, n),
        "key": part.keys.take(take),
        "value": values,
        "kafka_timestamp": pa.array(part.timestamps[rows] * 1000).cast(pa.timestamp("us", "UTC")),
        "quarantined_at": pa.array(np.full(n, int(now * 1e6))).cast(pa.timestamp("us", "UTC")),
        "schema_id": _schema_ids(values),
        "source_topic_id": _same(topic_id, n),
    }
    return pa.table(columns)


def _same(text: str | None, n: int) -> pa.Array:
    return pa.repeat(pa.scalar(text, pa.string()), n)


def _schema_ids(values: pa.BinaryArray) -> pa.Array:
    """The id in each value's header, null where it has none."""
    headers = pc.fill_null(pc.binary_slice(values, 0, 5), b"")
    ids = [int.from_bytes(h[1:], "big") if len(h) == 5 and h[0] == 0 else None for h in headers.to_pylist()]
    return pa.array([i if i is not None and i < 1 << 31 else None for i in ids], pa.int32())
