"""A MariaDB database of a test's own, captured by the connector file of the docs and landed by the real sink."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pymysql

from connectors.connect import Connect, load_connector
from governance.verify.avro import Schemas
from governance.verify.current import check_current
from governance.verify.kafka import KafkaReader
from governance.verify.lake import Lake
from governance.verify.report import Check
from headrace.config import Settings
from headrace.mysql import connect
from schemas.names import table_name
from tests.integration.cdc.capture import Capture
from tests.integration.sinks.iceberg.shop import made_settings

FILE = Path(__file__).parents[3] / "docs" / "examples" / "inventory.json"
PARTITIONS = 3


@dataclass
class Inventory(Capture):
    """`things` is changed in every way, `moves` is never truncated, `notes` has no key."""

    server: str = field(repr=False, kw_only=True)

    def execute(self, *statements: str) -> None:
        self.transaction(*statements)

    def transaction(self, *statements: str) -> None:
        with connect(self.url) as db, db.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            db.commit()

    def select(self, query: str) -> list[tuple[Any, ...]]:
        with connect(self.url) as db, db.cursor() as cursor:
            cursor.execute(query)
            return list(cursor.fetchall())

    def check(self, table: str, patience: float = 90.0) -> Check:
        """What `headrace verify` finds, now."""
        lake = Lake(self.settings.lake)
        deadline = time.monotonic() + 30
        while (held := lake.table(table_name("silver", self.topic(table)))) is None and time.monotonic() < deadline:
            time.sleep(0.3)
            lake.refresh()
        assert held is not None, f"{table} has not landed"
        kafka, schemas = KafkaReader(self.settings.kafka), Schemas(self.settings.registry.url)
        partitions = kafka.topics()[self.topic(table)]
        return check_current(kafka, schemas, lake, self.topic(table), partitions, held, self.url, patience=patience)

    def events(self, table: str) -> list[tuple[int, dict[str, Any]]]:
        """(partition, decoded change) of everything in the topic, tombstones left out."""
        kafka, schemas, topic = KafkaReader(self.settings.kafka), Schemas(self.settings.registry.url), self.topic(table)
        found = []
        for partition in range(kafka.topics().get(topic, 0)):
            for record in kafka.read(topic, partition, *kafka.bounds(topic, partition)):
                if record.value is not None:
                    found.append((partition, schemas.decode(record.value)[0]))
        return found

    def count(self, table: str) -> int:
        kafka, topic = KafkaReader(self.settings.kafka), self.topic(table)
        return sum(kafka.bounds(topic, p)[1] for p in range(kafka.topics().get(topic, 0)))


@contextmanager
def inventory(settings: Settings, server: str, connect_url: str, folder: Path) -> Iterator[Inventory]:
    name = f"m{uuid4().hex[:8]}"
    mine = made_settings(settings, folder, name)
    config = json.loads(FILE.read_text().replace("inventory", name).replace("stock", name))["config"] | {
        "database.server.id": str(random.randint(10_000, 2**31)),
        "table.include.list": f"{name}\\..*",
        "topic.creation.default.partitions": str(PARTITIONS),
    }
    path = folder / "connectors" / "debezium" / f"{name}.json"
    path.write_text(json.dumps({"name": name, "config": config}))
    url = f"{server.rstrip('/')}/{name}"
    mine = mine.model_copy(update={"databases": {name: url}})
    own = Inventory(name, url, mine, load_connector(path), name, server=server)
    _run(server, f"CREATE DATABASE {name}")
    try:
        own.execute(
            "CREATE TABLE things (id bigint PRIMARY KEY, kind int, name varchar(60) DEFAULT 'none', "
            "price decimal(8, 2) DEFAULT 1.25, at datetime(6) DEFAULT '2024-02-29', seen timestamp(6) NULL, "
            "n int unsigned DEFAULT 5)",
            "CREATE TABLE moves (id bigint AUTO_INCREMENT PRIMARY KEY, thing bigint, amount int)",
            "CREATE TABLE notes (text varchar(60), n double)",
        )
        yield own
    finally:
        client = Connect(connect_url)
        if any(one.name == name for one in client.statuses()):
            client.remove(name)
        _run(server, f"DROP DATABASE {name}")
        with psycopg.connect(settings.postgres.url, autocommit=True) as admin:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def _run(server: str, statement: str) -> None:
    """In a session of its own: the server may have been killed since the last."""
    with connect(server) as db, db.cursor() as cursor:
        cursor.execute(statement)


class Writer(threading.Thread):
    """Changes the database without a pause: statements of many rows, several a transaction, some rolled back, keys that
    change, logs that end."""

    def __init__(self, own: Inventory, seed: int) -> None:
        super().__init__(daemon=True)
        self._own = own
        self._random = random.Random(seed)
        self._kind = seed
        self._next = seed * 1_000_000
        self._over = threading.Event()
        self.transactions = 0

    def run(self) -> None:
        with connect(self._own.url) as db, db.cursor() as cursor:
            while not self._over.is_set():
                try:
                    for _ in range(self._random.randint(1, 4)):
                        self._statement(cursor.execute)
                    db.rollback() if self._random.random() < 0.1 else db.commit()
                    self.transactions += 1
                except pymysql.MySQLError:  # a deadlock with the other writer
                    db.rollback()
                if self._random.random() < 0.02:
                    cursor.execute("FLUSH BINARY LOGS")
                time.sleep(0.05)

    def stop(self) -> None:
        self._over.set()
        self.join()
        assert self.transactions > 10

    def _statement(self, execute: Callable[[str], Any]) -> None:
        chance, some = self._random.random(), self._random.randint(1, 40)
        if chance < 0.45:
            rows = []
            for _ in range(some):
                self._next += 1
                rows.append(f"({self._next}, {self._kind}, 'n{self._next}', {some}.25, now(6), now(6), {some})")
            execute(f"INSERT INTO things VALUES {', '.join(rows)}")
            execute(f"INSERT INTO moves (thing, amount) SELECT id, n FROM things WHERE kind = {self._kind} LIMIT 5")
        elif chance < 0.75:
            execute(f"UPDATE things SET n = n + 1, name = NULL WHERE kind = {self._kind} ORDER BY id LIMIT {some}")
            execute(f"UPDATE moves SET amount = amount + {some} ORDER BY id DESC LIMIT 3")
        elif chance < 0.9:
            execute(f"DELETE FROM things WHERE kind = {self._kind} ORDER BY id LIMIT {some}")
        else:
            self._next += 10_000
            execute(f"UPDATE things SET id = id + 10000 WHERE kind = {self._kind} ORDER BY id DESC LIMIT 3")


def placed(events: list[tuple[int, dict[str, Any]]]) -> list[tuple[int, tuple[int, int, int, str], str]]:
    """(partition, place, content) of each change, without the library's help."""
    found = []
    for partition, event in events:
        if event["op"] != "r":
            source = event["source"]
            row = 0 if event["op"] == "t" else source["row"]
            half = "a" if event["op"] == "d" else "b"
            place = (int(source["file"].rpartition(".")[2]), source["pos"], row, half)
            found.append((partition, place, repr((event["op"], event["before"], event["after"]))))
    return found


async def until(true: Callable[[], Any], seconds: float = 120) -> None:
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(true):  # noqa: ASYNC110
            await asyncio.sleep(0.5)
