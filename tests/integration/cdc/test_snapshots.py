"""Incremental snapshots: rows that are read while a change of them is in the log, and no other session sees it yet; a
table whose columns changed."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import psycopg
import pytest

from connectors.connect import Connect
from governance.verify.avro import Schemas
from governance.verify.current import check_current
from governance.verify.kafka import KafkaReader
from governance.verify.lake import Lake, Table
from headrace.config import Settings
from schemas.names import SIGNAL_TABLE, table_name
from sinks.iceberg.catalog import find_table, open_catalog
from tests.integration.cdc.capture import Capture, captured, streaming
from tests.integration.cdc.parity import Engine, Session, mariadb, postgresql
from tests.integration.cdc.rereads import Reader, supervised
from tests.integration.sinks.iceberg.shop import running

SETUP = (
    "CREATE TABLE things (id int PRIMARY KEY, name text)",
    "INSERT INTO things SELECT g, 'before' FROM generate_series(1, 20) g",
    f"CREATE TABLE {SIGNAL_TABLE} (id varchar(64) PRIMARY KEY, type varchar(32) NOT NULL, data text)",
)
SNAPSHOT = json.dumps({"type": "INCREMENTAL", "data-collections": ["public[.]things"]})


@contextmanager
def unseen(settings: Settings, url: str, *statements: str) -> Iterator[None]:
    """Statements of one transaction, committed in the log: nobody sees them before the end, for the transaction waits
    for a standby that there is not. No other one does."""
    with psycopg.connect(settings.postgres.url, autocommit=True) as admin, psycopg.connect(url) as db:
        for name, value in (("synchronous_commit", "local"), ("synchronous_standby_names", "nobody")):
            admin.execute(f"ALTER SYSTEM SET {name} = '{value}'")
            admin.execute("SELECT pg_reload_conf()")
            while admin.execute(f"SHOW {name}").fetchone() != (value,):
                pass
        db.execute("SET LOCAL synchronous_commit = 'on'")
        for statement in statements:
            db.execute(statement)
        commit = threading.Thread(target=db.commit)
        commit.start()
        try:
            yield
            assert commit.is_alive()
        finally:
            for name in ("synchronous_standby_names", "synchronous_commit"):
                admin.execute(f"ALTER SYSTEM RESET {name}")
            admin.execute("SELECT pg_reload_conf()")
            commit.join()


def received(capture: Capture) -> list[tuple[int, str, str | None]]:
    """What bronze has of two rows beside the initial snapshot: key, operation, name."""
    events = [e for e in capture.landed("things", "bronze") if e["op"] is not None]
    events = [e for e in events if e["source"]["snapshot"] in (None, "incremental")]
    rows = [(e["after"] or e["before"], e["op"]) for e in sorted(events, key=lambda e: e["_offset"])]
    return sorted(((row["id"], op, row["name"]) for row, op in rows if row["id"] in (3, 4)), key=lambda one: one[0])


def cut(capture: Capture) -> Table:
    """The current state as it is now."""
    found = Lake(capture.settings.lake).table(table_name("silver", capture.topic("things")))
    assert found is not None
    return found


def offences(capture: Capture, held: Table) -> list[str]:
    """What `headrace verify` finds wrong with the current state of a moment and what has come since."""
    kafka, schemas = KafkaReader(capture.settings.kafka), Schemas(capture.settings.registry.url)
    topic, lake = capture.topic("things"), Lake(capture.settings.lake)
    return check_current(kafka, schemas, lake, topic, 4, held, capture.url, patience=0).offences


async def test_a_row_that_was_read_does_not_stand_over_a_change_that_its_reader_did_not_see(
    settings: Settings, connect_url: str, tmp_path: Path
) -> None:
    with captured(settings, connect_url, tmp_path, *SETUP) as capture:
        async with streaming(capture, connect_url):
            await capture.equal("things")
            cuts = [cut(capture)]
            changes = ("UPDATE things SET name = 'after' WHERE id = 3", "DELETE FROM things WHERE id = 4")
            with unseen(settings, capture.url, *changes):
                await capture.until(lambda: len(received(capture)) < 2)
                await capture.until(lambda: len(capture.landed("things")) != 19)
                cuts.append(cut(capture))
                capture.execute(f"INSERT INTO {SIGNAL_TABLE} VALUES ('one', 'execute-snapshot', '{SNAPSHOT}')")
                await capture.until(lambda: len(received(capture)) < 4)
            await capture.equal("things")
            assert [offences(capture, held) for held in (*cuts, cut(capture))] == [[], [], []]
        assert received(capture) == [(3, "u", "after"), (3, "r", "before"), (4, "d", None), (4, "r", "before")]


async def test_a_table_is_read_again_after_its_columns_changed(
    settings: Settings, connect_url: str, tmp_path: Path
) -> None:
    """The driver prepares a statement that it has run five times, and the server refuses it once its columns change."""
    chunks = {"incremental.snapshot.chunk.size": "2"}
    with captured(settings, connect_url, tmp_path, *SETUP, **chunks) as capture:
        async with streaming(capture, connect_url):
            await capture.equal("things")
            with closing(Reader(capture.settings, capture.connector)) as reader:
                for old, new in (("name", "title"), ("title", "heading"), ("heading", "label")):
                    reader.read(capture.topic("things"))
                    await asyncio.to_thread(reader.wait)
                    capture.execute(f"ALTER TABLE things RENAME COLUMN {old} TO {new}")
                reader.read(capture.topic("things"))
                await capture.equal("things")


@pytest.mark.parametrize("made", [postgresql, mariadb])
async def test_a_table_that_is_altered_while_it_is_read_is_read_whole(
    made: Callable[..., AbstractContextManager[Engine]],
    settings: Settings,
    connect_url: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    """The chunk that waits for the lock finds a column that the log has not told of yet: Debezium for PostgreSQL says
    that the table has failed, which the reader answers as a person would; Debezium for MariaDB says nothing."""
    with (
        made(settings, request.getfixturevalue, tmp_path) as engine,
        closing(engine.session()) as db,
        closing(Reader(engine.settings, engine.connector)) as reader,
    ):
        with db.cursor() as cursor:
            rows = ", ".join(f"({n}, {n})" for n in range(10, 4010))
            cursor.execute(f"INSERT INTO kept (id, n) VALUES {rows}")
        db.commit()
        await asyncio.to_thread(Connect(connect_url).apply, engine.connector)
        async with supervised(engine.settings), running(engine.settings):
            await asyncio.to_thread(read_and_alter, engine, db, reader)
            async with asyncio.timeout(40):
                while await asyncio.to_thread(read_again, engine) != {0, 1, *range(10, 4010)}:  # noqa: ASYNC110
                    await asyncio.sleep(0.3)


def read_and_alter(engine: Engine, db: Session, reader: Reader) -> None:
    reader.read(engine.topic("kept"))
    reader.altering(engine.topic("kept"))
    with db.cursor() as cursor:
        whole = "TABLE kept IN ACCESS EXCLUSIVE MODE" if engine.transactional else "TABLES kept WRITE"
        cursor.execute(f"LOCK {whole}")
        time.sleep(0.5)
        found = reader.look()
        assert found is not None
        assert not found.over, "else nothing waits for the lock"
        cursor.execute("ALTER TABLE kept ADD COLUMN extra int DEFAULT 4")
        if not engine.transactional:
            cursor.execute("UNLOCK TABLES")
    db.commit()
    reader.wait()


def read_again(engine: Engine) -> set[int]:
    """Which rows of `kept` an incremental snapshot has brought."""
    found = find_table(open_catalog(engine.settings.lake), table_name("bronze", engine.topic("kept")))
    events = [] if found is None else found.scan().to_arrow().to_pylist()
    return {e["after"]["id"] for e in events if e["op"] == "r" and e["source"]["snapshot"] == "incremental"}
