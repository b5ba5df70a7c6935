from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
from aiokafka.errors import KafkaTimeoutError

import sinks.refused
from headrace.config import KafkaSettings
from headrace.kafka import admin
from schemas.codec import Decoder
from schemas.contracts import BUILTIN, load_contract
from schemas.registry import Registry
from sinks.iceberg.quarantine import Quarantine
from sinks.iceberg.slices import Reject
from tests.unit.sinks.iceberg.support import slice_of

CONTRACT = load_contract(BUILTIN / "quarantined.avsc")


class Producer:
    """Fails once; then everything is sent."""

    all: ClassVar[list[Producer]] = []

    def __init__(self, **_: Any) -> None:
        self.sent: list[pa.BinaryArray] = []
        self.stopped = False
        self.all.append(self)

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        self.stopped = True

    async def send_in_turn(self, _topic: str, _partition: int, _keys: None, values: pa.BinaryArray) -> None:
        assert not self.stopped
        if len(self.all) == 1:
            raise KafkaTimeoutError()
        self.sent.append(values)


async def test_after_a_failure_all_is_sent_again_by_another_producer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Producer, "all", [])
    monkeypatch.setattr(sinks.refused, "ColumnarProducer", Producer)
    monkeypatch.setattr(admin, "ensure_topics", lambda *_: set())
    monkeypatch.setattr(admin, "partitions", lambda *_: {CONTRACT.topic: 1})
    monkeypatch.setattr(Registry, "register", lambda *_: 1)
    quarantine = Quarantine(KafkaSettings(), Registry("http://nowhere"))
    part = slice_of([{"x": 1}] * 3, 10, schema=pa.schema([("x", pa.int64())]))
    rejects = [Reject(part, np.array([0, 2]), "bronze", "rule", ("a", "b"))]
    with pytest.raises(KafkaTimeoutError):
        await quarantine.send(rejects, "id")
    await quarantine.send(rejects, "id")
    await quarantine.close()
    assert [producer.stopped for producer in Producer.all] == [True, True]
    rows = Decoder(CONTRACT.avro).decode(Producer.all[1].sent[0]).batch.to_pylist()
    assert [(row["source_offset"], row["source_topic_id"]) for row in rows] == [(10, "id"), (12, "id")]
