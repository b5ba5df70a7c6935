"""What databases say differently about the definition of a table, for tests that change it in each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from connectors import snapshots
from connectors.connect import Connect
from connectors.watch import Watch
from headrace.config import Settings
from headrace.errors import TerminalError
from tests.integration.cdc.capture import Capture, captured
from tests.integration.cdc.inventory import inventory


class Engine(Protocol):
    rows: str
    """What has the numbers from 1 to another as `seq`, for FROM."""
    instant: str
    """A type of points in time."""
    flag: str
    """A type that holds `true`."""
    enum: str
    """A type of the labels `good` and `bad`."""
    labelled: str
    """The statement that adds `new` to the labels of `items.m`."""

    def retype(self, column: str, declared: str) -> str: ...
    def drop_key(self, table: str) -> str: ...
    def publish(self, capture: Capture, table: str) -> tuple[str, ...]:
        """What a new table of the captured pattern needs."""
        ...

    async def admit(self, capture: Capture, client: Connect) -> None:
        """Capture table `early`, which has rows and was not captured. What does not suffice for it says what does."""
        ...


class Postgresql:
    rows = "generate_series(1, {}) seq"
    instant = "timestamptz"
    flag = "boolean"
    enum = "mood"
    labelled = "ALTER TYPE mood ADD VALUE 'new'"

    def retype(self, column: str, declared: str) -> str:
        return f"ALTER {column} TYPE {declared}"

    def drop_key(self, table: str) -> str:
        return f"DROP CONSTRAINT {table}_pkey"

    def publish(self, capture: Capture, table: str) -> tuple[str, ...]:
        return (f"ALTER PUBLICATION {capture.name} ADD TABLE {table}",)

    async def admit(self, capture: Capture, client: Connect) -> None:
        capture.execute(*self.publish(capture, "early"))
        with pytest.raises(TerminalError, match=f"UNKNOWN_SCHEMA.*restart {capture.name} --all"):
            await read_again(capture, "early")
        await asyncio.to_thread(client.restart_all, capture.name)


class Mariadb:
    rows = "seq_1_to_{}"
    instant = "timestamp"
    flag = "tinyint(1)"
    enum = "enum('good', 'bad')"
    labelled = "ALTER TABLE items MODIFY m enum('good', 'bad', 'new')"

    def retype(self, column: str, declared: str) -> str:
        return f"MODIFY {column} {declared}"

    def drop_key(self, table: str) -> str:
        return "DROP PRIMARY KEY"

    def publish(self, capture: Capture, table: str) -> tuple[str, ...]:
        return ()

    async def admit(self, capture: Capture, client: Connect) -> None:
        capture.configure(**{"table.include.list": f"{capture.schema}[.].*"})
        await asyncio.to_thread(client.apply, capture.connector)
        with pytest.raises(TerminalError, match=r"UNKNOWN_SCHEMA.*docs/mariadb.md"):
            await read_again(capture, "early")
        capture.execute("INSERT INTO early VALUES (10, 10)")
        await capture.until(lambda: client.status(capture.name).state != "FAILED" and "the change was read")
        history = {"schema.history.internal.kafka.topic": f"{capture.name}.schema-history-2"}
        capture.configure(**history, **{"snapshot.mode": "recovery"})
        await asyncio.to_thread(client.apply, capture.connector)


def setup(engine: Engine) -> tuple[str, ...]:
    sixty = engine.rows.format(60)
    return (
        f"CREATE TABLE items (id int PRIMARY KEY, n int, f float(20), price numeric(8, 2), name varchar(20), "
        f"gone varchar(20), m {engine.enum})",
        f"INSERT INTO items SELECT seq, seq, seq, seq, concat('n', seq), 'g', 'good' FROM {sixty}",
        "CREATE TABLE steady (id int PRIMARY KEY, v bigint)",
        f"INSERT INTO steady SELECT seq, 0 FROM {engine.rows.format(20)}",
        "CREATE TABLE rekeyed (id int PRIMARY KEY, a int NOT NULL, b varchar(20) NOT NULL, v int)",
        f"INSERT INTO rekeyed SELECT seq, seq % 7, concat('b', seq), 0 FROM {sixty}",
        "CREATE TABLE unkeyed (id int NOT NULL, v int)",
        f"INSERT INTO unkeyed SELECT seq, 0 FROM {sixty}",
        "CREATE TABLE order$items (id int PRIMARY KEY, v int)",
        f"INSERT INTO order$items SELECT seq, 0 FROM {engine.rows.format(9)}",
        "CREATE TABLE narrowed (id int PRIMARY KEY, n bigint, f float8, price numeric(14, 2))",
        "INSERT INTO narrowed VALUES (1, 1, 0.1, 1.25), (2, 5000000000, 0.5, 123456789012.34)",
        "CREATE TABLE retyped (id int PRIMARY KEY, v int, w int)",
        "INSERT INTO retyped VALUES (1, 1, 1), (2, 2, 2)",
        "CREATE TABLE dropped (id int PRIMARY KEY)",
        "INSERT INTO dropped VALUES (1)",
    )


async def read_again(capture: Capture, *tables: str) -> None:
    """What `headrace connect snapshot` does, one table after the other."""
    settings = capture.settings
    with closing(Watch(settings)) as watch:
        target = snapshots.find(watch, settings, "", capture.name)
        for table in tables:
            name = f"{capture.schema}.{table}"
            number = await asyncio.to_thread(snapshots.execute, watch, settings, target, name)
            done = await asyncio.to_thread(snapshots.follow, watch, target, number, lambda _: None)
            assert done.state == "completed"


@contextmanager
def postgresql(settings: Settings, need: Callable[[str], str], folder: Path) -> Iterator[tuple[Engine, Capture]]:
    engine = Postgresql()
    mood = "CREATE TYPE mood AS ENUM ('good', 'bad')"
    with captured(settings, need("connect_url"), folder, mood, *setup(engine)) as own:
        yield engine, own


@contextmanager
def mariadb(settings: Settings, need: Callable[[str], str], folder: Path) -> Iterator[tuple[Engine, Capture]]:
    engine = Mariadb()
    with inventory(settings, need("mariadb_url"), need("connect_url"), folder) as own:
        own.configure(**{"table.include.list": f"{own.schema}[.](?!early).*"})
        own.execute(*setup(engine))
        yield engine, own
