"""What a pipeline would have made of one captured table, written by hand with plain libraries (confluent-kafka,
fastavro, pyiceberg), so that a test can lose, double or change exactly one thing."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import httpx
import pyarrow as pa
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from pyiceberg.catalog.sql import SqlCatalog

from governance.verify.avro import Schemas
from governance.verify.current import check_current
from governance.verify.kafka import KafkaReader
from governance.verify.lake import Lake
from governance.verify.landed import check_bronze
from governance.verify.ledger import Ledger
from governance.verify.report import Check
from headrace.config import LakeSettings, Settings
from schemas.names import table_name

START = datetime(2026, 1, 1, tzinfo=UTC)
ROW = {
    "type": "record",
    "name": "Value",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "country", "type": ["null", "string"], "default": None},
        {"name": "amount", "type": {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}},
        {"name": "created_at", "type": {"type": "string", "connect.name": "io.debezium.time.ZonedTimestamp"}},
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
                    {"name": "snapshot", "type": ["null", "string"], "default": None},
                    {"name": "sequence", "type": ["null", "string"], "default": None},
                    {"name": "txId", "type": ["null", "long"], "default": None},
                    {"name": "lsn", "type": ["null", "long"], "default": None},
                    {"name": "schema", "type": ["null", "string"], "default": None},
                    {"name": "table", "type": ["null", "string"], "default": None},
                ],
            },
        },
        {"name": "op", "type": "string"},
        {
            "name": "transaction",
            "type": [
                "null",
                {"type": "record", "name": "block", "fields": [{"name": "total_order", "type": "long"}]},
            ],
            "default": None,
        },
    ],
}
CLEAN = {
    "type": "record",
    "name": "Clean",
    "fields": [{"name": "id", "type": "long"}, {"name": "source_offset", "type": "long"}],
}
ARROW_ROW = pa.struct(
    [
        ("id", pa.int64()),
        ("country", pa.string()),
        ("amount", pa.decimal128(12, 2)),
        ("created_at", pa.timestamp("us", "UTC")),
    ]
)
KAFKA = [("_kafka_partition", pa.int32()), ("_offset", pa.int64()), ("_timestamp", pa.timestamp("us", "UTC"))]
BRONZE = pa.schema(
    [
        ("before", ARROW_ROW),
        ("after", ARROW_ROW),
        (
            "source",
            pa.struct(
                [(name, pa.string()) for name in ("snapshot", "sequence", "schema", "table")]
                + [(name, pa.int64()) for name in ("txId", "lsn")]
            ),
        ),
        ("op", pa.string()),
        ("transaction", pa.struct([("total_order", pa.int64())])),
        *KAFKA,
        ("_key", pa.binary()),
    ]
)
CURRENT = pa.schema([*ARROW_ROW, *KAFKA])


@dataclass
class World:
    """One captured table with its topic, and the lake that a pipeline would have made of it."""

    settings: Settings
    topic: str
    database: str
    records: list[dict[str, Any]] = field(default_factory=list)
    bronze: list[dict[str, Any]] = field(default_factory=list)
    current: list[dict[str, Any]] = field(default_factory=list)

    @property
    def bronze_name(self) -> str:
        return table_name("bronze", self.topic)

    def lake(self, folder: Path) -> Lake:
        """Write the tables as they stand and open them."""
        lake = LakeSettings(uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/lake")
        catalog = SqlCatalog(lake.catalog, uri=lake.uri, warehouse=lake.warehouse)
        held = {f"headrace.offset.{self.topic}.0": str(len(self.records))}
        for name, schema, rows in ((self.bronze_name, BRONZE, self.bronze), ("silver.t", CURRENT, self.current)):
            catalog.create_namespace_if_not_exists(name.split(".")[0])
            table = catalog.create_table(name, schema=schema, properties=held)
            table.append(pa.Table.from_pylist(rows, schema=schema))
        return Lake(lake)

    def checks(self, folder: Path) -> dict[str, Check]:
        lake, kafka = self.lake(folder), KafkaReader(self.settings.kafka)
        schemas = Schemas(self.settings.registry.url)
        ledger = Ledger(kafka, schemas)
        bronze, silver = lake.table(self.bronze_name), lake.table("silver.t")
        assert bronze is not None
        assert silver is not None
        return {
            "bronze": check_bronze(kafka, schemas, lake, ledger, self.topic, 1, bronze),
            "current": check_current(kafka, schemas, lake, self.topic, 1, silver, self.database, patience=1.0),
        }


def encode(registry: str, topic: str, schema: dict[str, Any]) -> Callable[[dict[str, Any]], bytes]:
    answer = httpx.post(f"{registry}/subjects/{topic}-value/versions", json={"schema": json.dumps(schema)}, timeout=20)
    answer.raise_for_status()
    parsed = fastavro.parse_schema(schema)
    head = b"\0" + answer.json()["id"].to_bytes(4, "big")

    def one(value: dict[str, Any]) -> bytes:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, parsed, value)
        return head + out.getvalue()

    return one


def produce(settings: Settings, topic: str, values: list[bytes | None], partitions: int = 1) -> None:
    """The records are old by their timestamps: retention must not take them while the test looks."""
    options = {"bootstrap.servers": settings.kafka.bootstrap_servers}
    admin = AdminClient(options)
    for future in admin.create_topics([NewTopic(topic, partitions, 1, config={"retention.ms": "-1"})]).values():
        future.result(30)
    producer = Producer(options)
    for value in values:
        producer.produce(topic, value=value, partition=0, timestamp=int(START.timestamp() * 1000))
    assert producer.flush(30) == 0


def row(number: int, amount: str = "10.00", country: str = "FR") -> dict[str, Any]:
    created = (START + timedelta(seconds=number)).isoformat().replace("+00:00", "Z")
    return {"id": number, "country": country, "amount": Decimal(amount), "created_at": created}


def change(op: str, before: dict[str, Any] | None, after: dict[str, Any] | None, at: int, xid: int) -> dict[str, Any]:
    transaction = None if op == "r" else {"total_order": 1}
    sequence = None if op == "r" else f'["{at}","{at}"]'
    source = {"snapshot": "true" if op == "r" else None, "sequence": sequence, "txId": xid, "lsn": at}
    return {"before": before, "after": after, "source": source, "op": op, "transaction": transaction}


def as_lake(value: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if value is None else {**value, "created_at": datetime.fromisoformat(value["created_at"])}
