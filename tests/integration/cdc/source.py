"""A database of PostgreSQL with every type, and the lake that its tables land in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from pyiceberg.table import Table

from governance.verify.avro import Schemas
from governance.verify.current import check_current
from governance.verify.kafka import KafkaReader
from governance.verify.lake import Lake
from governance.verify.landed import check_bronze
from governance.verify.ledger import Ledger
from governance.verify.report import Check
from headrace.config import Settings
from sinks.iceberg.catalog import find_table, open_catalog


@dataclass
class Source:
    """The database, and the lake that its tables land in."""

    settings: Settings
    name: str
    url: str

    def execute(self, *statements: str) -> None:
        with psycopg.connect(self.url) as db:
            for statement in statements:
                db.execute(statement)

    def topic(self, table: str) -> str:
        return f"{self.name}.public.{table}"

    def table(self, name: str) -> Table | None:
        return find_table(open_catalog(self.settings.lake), f"silver.{self.name}_public_{name}")

    def rows(self, name: str) -> dict[int, dict[str, Any]]:
        found = self.table(name)
        if found is None:
            return {}
        read = found.scan().to_arrow().to_pylist()
        assert len(read) == len({row["id"] for row in read})
        return {row["id"]: row for row in read}

    def verify(self, table: str) -> list[Check]:
        kafka, schemas, lake = (
            KafkaReader(self.settings.kafka),
            Schemas(self.settings.registry.url),
            Lake(self.settings.lake),
        )
        bronze, silver = (lake.table(f"{layer}.{self.name}_public_{table}") for layer in ("bronze", "silver"))
        assert bronze is not None
        assert silver is not None
        topic = self.topic(table)
        return [
            check_bronze(kafka, schemas, lake, Ledger(kafka, schemas), topic, 1, bronze),
            check_current(kafka, schemas, lake, topic, 1, silver, self.url, patience=0),
        ]
