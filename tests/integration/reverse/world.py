"""A sync's sources in a real Kafka: change events as Debezium writes them, and KPI values."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastavro
import tomli_w
from confluent_kafka import Producer

from headrace.config import Settings
from headrace.kafka.admin import TopicSpec, ensure_topics
from schemas.contracts import BUILTIN
from schemas.names import subject
from schemas.registry import Registry

ROW = {
    "type": "record",
    "name": "Value",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "name", "type": ["null", "string"], "default": None},
        {"name": "email", "type": ["null", "string"], "default": None},
    ],
}
ENVELOPE = {
    "type": "record",
    "name": "Envelope",
    "fields": [
        {"name": "before", "type": ["null", ROW], "default": None},
        {"name": "after", "type": ["null", "Value"], "default": None},
        {
            "name": "source",
            "type": {
                "type": "record",
                "name": "Source",
                "fields": [
                    {"name": "lsn", "type": ["null", "long"]},
                    {"name": "sequence", "type": ["null", "string"]},
                    {"name": "schema", "type": "string"},
                    {"name": "table", "type": "string"},
                    {"name": "ts_ms", "type": "long"},
                ],
            },
        },
        {"name": "op", "type": "string"},
        {
            "name": "transaction",
            "type": [
                "null",
                {"type": "record", "name": "Block", "fields": [{"name": "total_order", "type": "long"}]},
            ],
        },
    ],
}


@dataclass
class Sources:
    """Topics of one test's own, and a content folder with the syncs of them. `current` is what the database has."""

    settings: Settings
    name: str
    folder: Path
    current: dict[int, dict[str, Any]] = field(default_factory=dict)
    kpis: dict[int, float] = field(default_factory=dict)
    lsn: int = 0
    revision: int = 0

    def __post_init__(self) -> None:
        self.customers, self.values = f"{self.name}.public.customers", f"{self.name}.kpis"
        ensure_topics(self.settings.kafka, {self.customers: TopicSpec(2), self.values: TopicSpec(2)})
        registry = Registry(self.settings.registry.url)
        kpi = json.loads((BUILTIN / "kpi_value.avsc").read_text())
        events = ENVELOPE | {"namespace": self.customers}
        self._ids = {
            topic: (registry.register(subject(topic, "value"), schema), fastavro.parse_schema(schema))
            for topic, schema in ((self.customers, events), (self.values, kpi))
        }
        self._producer = Producer(
            {
                "bootstrap.servers": self.settings.kafka.bootstrap_servers,
                "partitioner": "murmur2_random",
                "linger.ms": 2,
            }
        )

    def declare(self, name: str, **changes: Any) -> None:
        """A sync of both topics into the target `crm`."""
        sync = {
            "target": "crm",
            "type": "http",
            "mode": "mirror",
            "key": ["customer_id"],
            "rate": 1e6,
            "timeout": "2s",
            "retries": 2,
            "defaults": {"spend": 0.0},
            "sources": [
                {
                    "topic": self.customers,
                    "key": {"customer_id": "id"},
                    "columns": {"name": "name", "email": "email"},
                    "required": True,
                },
                {"topic": self.values, "key": {"customer_id": "customer_id"}, "pivot": {"spend": "spend"}},
            ],
            "http": {
                "path": "/customers/{customer_id}",
                "body": {"name": "{name}", "email": "{email}", "spend": "{spend}"},
            },
        }
        folder = self.folder / "sinks" / "syncs"
        folder.mkdir(parents=True, exist_ok=True)
        said = {k: v for k, v in (sync | changes).items() if v is not None}
        (folder / f"{self.name}_{name}.toml").write_text(tomli_w.dumps(said))

    def change(self, key: int, name: str | None, email: str | None = None) -> None:
        """Insert, update or (name None) delete a customer."""
        if name is None and key not in self.current:
            return
        self.lsn += 8
        before, after = self.current.get(key), None if name is None else {"id": key, "name": name, "email": email}
        if after is None:
            self.current.pop(key, None)
        else:
            self.current[key] = after
        self.emit(before, after, self.lsn)

    def emit(self, before: Any, after: Any, lsn: int) -> None:
        source = {"lsn": lsn, "sequence": f'["{lsn}","{lsn}"]', "schema": "public", "table": "customers", "ts_ms": 0}
        op = "d" if after is None else "c" if before is None else "u"
        row = {"before": before, "after": after, "source": source, "op": op, "transaction": {"total_order": 1}}
        key = str((after or before)["id"]).encode()
        self._send(self.customers, key, row)
        if after is None:
            self._producer.produce(self.customers, key=key, value=None)

    def spend(self, key: int, value: float) -> None:
        self.revision += 1
        self.kpis[key] = value
        row = {
            "kpi": "spend",
            "window_start": None,
            "window_end": None,
            "group": json.dumps({"customer_id": key}),
            "value": value,
            "unit": "EUR",
            "final": False,
            "revision": self.revision,
            "cut": "{}",
            "source_topic": "orders",
            "updated_at": 0,
        }
        self._send(self.values, str(key).encode(), row)

    def _send(self, topic: str, key: bytes, row: dict[str, Any]) -> None:
        number, schema = self._ids[topic]
        out = io.BytesIO(b"\0" + number.to_bytes(4, "big"))
        out.seek(5)
        fastavro.schemaless_writer(out, schema, row)
        self._producer.produce(topic, key=key, value=out.getvalue())

    def flush(self) -> None:
        assert self._producer.flush(30) == 0

    def expected(self) -> dict[str, Any]:
        return {
            str(key): {"name": row["name"], "email": row["email"], "spend": self.kpis.get(key, 0.0)}
            for key, row in self.current.items()
        }


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait; what the condition last saw is the caller's to assert."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
