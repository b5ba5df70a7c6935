from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import fastavro
import httpx
import pytest
from confluent_kafka import Consumer

from headrace.config import Settings


@dataclass(frozen=True)
class Record:
    """One Kafka record as confluent-kafka and fastavro read it; `row` is None where the value is not framed."""

    partition: int
    key: bytes | None
    value: bytes
    row: dict[str, Any] | None


@dataclass(frozen=True)
class Own:
    """A contract of one test's own, in a content folder of its own, fed from `<name>/+/reading`."""

    settings: Settings
    name: str
    folder: Path

    @property
    def topic(self) -> str:
        return f"{self.name}.readings"

    def read(self, enough: Callable[[list[Record]], bool], seconds: float = 30) -> list[Record]:
        """All records of the topic, once they are enough (or the time is over)."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.settings.kafka.bootstrap_servers,
                "group.id": uuid4().hex,
                "auto.offset.reset": "earliest",
            }
        )
        consumer.subscribe([self.topic])
        found: list[Record] = []
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not enough(found):
            found += [self._record(m) for m in consumer.consume(1000, 0.2) if m.error() is None]
        found += [self._record(m) for m in consumer.consume(1000, 0.5) if m.error() is None]
        consumer.close()
        return found

    def _record(self, message: Any) -> Record:
        value = message.value()
        row = None
        if value[:1] == b"\0":
            schema = _schema(self.settings.registry.url, int.from_bytes(value[1:5], "big"))
            row = fastavro.schemaless_reader(io.BytesIO(value[5:]), schema, None)
        return Record(message.partition(), message.key(), value, row)


_schemas: dict[tuple[str, int], Any] = {}


def _schema(url: str, number: int) -> Any:
    if (url, number) not in _schemas:
        text = httpx.get(f"{url}/schemas/ids/{number}").json()["schema"]
        _schemas[url, number] = fastavro.parse_schema(json.loads(text))
    return _schemas[url, number]


@pytest.fixture
def own(settings: Settings, tmp_path: Path) -> Own:
    name = f"t{uuid4().hex[:10]}"
    shipped = Path(__file__).parents[3] / "schemas" / "contracts" / "reading.avsc"
    contract = json.loads(shipped.read_text()) | {
        "name": f"Reading_{name}",
        "topic": f"{name}.readings",
        "mqtt": [f"{name}/+/reading"],
    }
    folder = tmp_path / "content" / "schemas" / "contracts"
    folder.mkdir(parents=True)
    (folder / "reading.avsc").write_text(json.dumps(contract))
    changes = {
        "content": [tmp_path / "content"],
        "worker": settings.worker.model_copy(update={"application": name}),
        "home": tmp_path,
    }
    return Own(settings.model_copy(update=changes), name, tmp_path)
