from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import fastavro
import httpx
import psycopg
import pytest
from confluent_kafka import Consumer
from psycopg.conninfo import make_conninfo

from connectors.connect import Connect
from headrace.config import Settings

SHOP = Path(__file__).parents[3] / "connectors" / "debezium" / "shop.json"


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


@dataclass
class Source:
    """A database of one test's own, with one table of one row, and its connector file."""

    name: str
    url: str = field(repr=False)
    file: Path

    def write(self, **changes: str) -> Path:
        config = json.loads(SHOP.read_text())["config"] | {
            "database.dbname": self.name,
            "topic.prefix": self.name,
            "table.include.list": "public.things",
            "slot.name": self.name,
            "publication.name": self.name,
            "heartbeat.interval.ms": "500",
            "topic.creation.default.partitions": "1",
            "topic.creation.control.include": f"{self.name}[.](transaction|notifications|.*_signal),.*heartbeat.*",
            "notification.sink.topic.name": f"{self.name}.notifications",
        }
        self.file.write_text(json.dumps({"name": self.name, "config": config | changes}))
        return self.file


@pytest.fixture
def source(postgres_url: str, connect_url: str, tmp_path: Path) -> Iterator[Source]:
    name = f"t{uuid4().hex[:10]}"
    url = make_conninfo(postgres_url, dbname=name)
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        with psycopg.connect(url) as db:
            db.execute("CREATE TABLE things (id bigint PRIMARY KEY, price numeric(8, 2), at timestamptz)")
            db.execute("ALTER TABLE things REPLICA IDENTITY FULL")
            db.execute("INSERT INTO things VALUES (1, 12.30, '2024-01-02T03:04:05Z')")
        yield Source(name, url, tmp_path / "one.json")
        client = Connect(connect_url)
        if any(one.name == name for one in client.statuses()):
            client.remove(name)
        for _ in range(50):
            slots = admin.execute("SELECT active FROM pg_replication_slots WHERE slot_name = %s", (name,)).fetchall()
            if slots == [(False,)]:
                admin.execute("SELECT pg_drop_replication_slot(%s)", (name,))
                slots = []
            if not slots:
                break
            time.sleep(0.2)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
