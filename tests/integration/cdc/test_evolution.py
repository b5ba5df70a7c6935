"""A table's definition changes while its changes stream: nothing restarts, nothing is lost, other tables flow."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg

from governance.verify.current import source_of
from headrace.config import Settings
from schemas.names import SIGNAL_TABLE
from tests.integration.cdc.capture import Capture, captured, streaming

SETUP = (
    "CREATE TYPE mood AS ENUM ('good', 'bad')",
    "CREATE TABLE things (id int PRIMARY KEY, n int, f real, price numeric(8, 2), name text, gone text, m mood)",
    "INSERT INTO things SELECT g, g, g, g, 'n' || g, 'g', 'good' FROM generate_series(1, 60) g",
    "CREATE TABLE steady (id int PRIMARY KEY, v bigint)",
    "INSERT INTO steady SELECT g, 0 FROM generate_series(1, 20) g",
    "CREATE TABLE rekeyed (id int PRIMARY KEY, a int NOT NULL, b text NOT NULL, v int)",
    "INSERT INTO rekeyed SELECT g, g % 7, 'b' || g, 0 FROM generate_series(1, 60) g",
    "CREATE TABLE unkeyed (id int NOT NULL, v int)",
    "INSERT INTO unkeyed SELECT g, 0 FROM generate_series(1, 60) g",
    "CREATE TABLE order$items (id int PRIMARY KEY, v int)",
    "INSERT INTO order$items SELECT g, 0 FROM generate_series(1, 9) g",
    f"CREATE TABLE {SIGNAL_TABLE} (id varchar(64) PRIMARY KEY, type varchar(32) NOT NULL, data text)",
    "CREATE TABLE retyped (id int PRIMARY KEY, v int, w int)",
    "INSERT INTO retyped VALUES (1, 1, 1), (2, 2, 2)",
    "CREATE TABLE dropped (id int PRIMARY KEY)",
    "INSERT INTO dropped VALUES (1)",
)


async def test_definitions_change_while_it_streams(settings: Settings, connect_url: str, tmp_path: Path) -> None:
    with captured(settings, connect_url, tmp_path, *SETUP) as capture:
        async with streaming(capture, connect_url) as lifecycle:
            tables = ("things", "steady", "rekeyed", "unkeyed", "order$items", "retyped", "dropped")
            await capture.equal(*tables)
            before = capture.table("things")
            assert before is not None
            old, rows = before.metadata.current_snapshot_id, capture.landed("things")
            stop = asyncio.Event()
            writer = asyncio.create_task(write_steadily(capture, stop))
            capture.execute(
                "ALTER TABLE things ADD COLUMN added text",
                "UPDATE things SET added = 'x' WHERE id < 5",
                "ALTER TABLE things ADD COLUMN rated int NOT NULL DEFAULT 7, ADD COLUMN note text DEFAULT 'none', "
                "ADD COLUMN on_day date DEFAULT '2024-02-29', ADD COLUMN amount numeric(6, 2) DEFAULT 1.25, "
                "ADD COLUMN seen timestamptz DEFAULT '2024-01-02T03:04:05Z', ADD COLUMN ok boolean DEFAULT true",
                "UPDATE things SET n = -n, rated = id WHERE id BETWEEN 4 AND 8",
                "INSERT INTO things (id, rated, note) VALUES (100, 1, 'some')",
                "INSERT INTO things (id, note, on_day, amount, seen, ok) VALUES (102, NULL, NULL, NULL, NULL, NULL)",
                "UPDATE things SET note = NULL, amount = NULL, ok = NULL WHERE id IN (9, 100)",
            )
            await capture.equal("things")
            moved = await still_moving(capture, 0)
            capture.execute(
                "ALTER TABLE things DROP COLUMN gone",
                "UPDATE things SET name = 'no gone' WHERE id = 9",
                "ALTER TABLE things ALTER n TYPE bigint, ALTER f TYPE float8, ALTER price TYPE numeric(14, 2)",
                "UPDATE things SET n = 5000000000, f = 0.1, price = 123456789012.34 WHERE id = 10",
                "ALTER TYPE mood ADD VALUE 'new'",
                "INSERT INTO things (id, m) VALUES (101, 'new')",
            )
            capture.execute(
                "ALTER TABLE rekeyed DROP CONSTRAINT rekeyed_pkey, ADD PRIMARY KEY (a, b)",
                "UPDATE rekeyed SET v = 1 WHERE id % 3 = 0",
                "DELETE FROM rekeyed WHERE id % 5 = 0",
                "UPDATE rekeyed SET b = b || 'x' WHERE id BETWEEN 31 AND 33",
                "INSERT INTO rekeyed VALUES (1, 1, 'twice the id', 2)",
            )
            # What has no key yet may be in a partition that is read later than those of the key.
            capture.execute("INSERT INTO unkeyed VALUES (61, 0)")
            await capture.equal("unkeyed")
            capture.execute(
                "ALTER TABLE unkeyed ADD PRIMARY KEY (id)",
                "UPDATE unkeyed SET v = 1 WHERE id % 3 = 0",
                "DELETE FROM unkeyed WHERE id % 5 = 0",
                "UPDATE order$items SET v = id",
            )
            capture.execute(
                "CREATE TABLE late (id int PRIMARY KEY, v int)",
                f"ALTER PUBLICATION {capture.name} ADD TABLE late",
                "INSERT INTO late SELECT g, g FROM generate_series(1, 9) g",
                "INSERT INTO dropped VALUES (2)",
            )
            await capture.equal("things", "rekeyed", "unkeyed", "order$items", "late", "dropped")
            moved = await still_moving(capture, moved)
            assert lifecycle.problems() == {}
            # Renamed: what it held is not sent again. The table says so, and reading it again makes it right.
            capture.execute("ALTER TABLE things RENAME COLUMN added TO renamed", "UPDATE things SET renamed = renamed")
            capture.execute(
                "ALTER TABLE retyped ALTER v TYPE text",
                "UPDATE retyped SET v = 'text' WHERE id = 1",
                "INSERT INTO retyped VALUES (3, 'three', 3)",
                "DROP TABLE dropped",
            )
            await capture.equal("things")
            await capture.until(lambda: len(capture.quarantined("retyped")) < 4 and "no quarantine yet")
            assert {(q["stage"], q["rule"]) for q in capture.quarantined("retyped")} == {
                ("bronze", "schema: type"),
                ("current", "schema: type"),
            }
            assert "v is string here but int32 in the table" in str(lifecycle.problems())
            await still_moving(capture, moved)
            # No row has the renamed key: they stay, and what comes under it is refused until the table is read again.
            topic = capture.topic("order_items")
            assert source_of(capture.url, topic) == ("public", "order$items")
            capture.execute(
                "ALTER TABLE order$items RENAME COLUMN id TO number",
                "UPDATE order$items SET v = 0",
                "ALTER TABLE unkeyed DROP CONSTRAINT unkeyed_pkey",
                "INSERT INTO unkeyed VALUES (99, 9)",
            )
            await capture.until(lambda: len(capture.quarantined("order_items")) < 9 and "not refused yet")
            assert {q["rule"] for q in capture.quarantined("order_items")} == {"key: another"}
            assert sorted((row["id"], row["v"]) for row in capture.landed("order_items")) == [
                (n, n) for n in range(1, 10)
            ]
            await capture.until(lambda: not capture.quarantined("unkeyed") and "not refused yet")
            assert "message.key.columns" in capture.quarantined("unkeyed")[0]["reason"]
            again = '{"type": "INCREMENTAL", "data-collections": ["public[.]order.items"]}'
            capture.execute(f"INSERT INTO {SIGNAL_TABLE} VALUES ('one', 'execute-snapshot', '{again}')")
            await capture.equal("order$items")
            stop.set()
            await writer
            await capture.equal("things", "steady", "rekeyed", "late")
            assert capture.quarantined("things") == capture.quarantined("rekeyed") == []
        now = capture.table("things")
        assert now is not None
        then = now.scan(snapshot_id=old).to_arrow().to_pylist()
        assert sorted(then, key=lambda r: r["id"]) == sorted(rows, key=lambda r: r["id"]), "old snapshots are readable"
        bronze = capture.landed("things", "bronze")
        assert len({(r["_kafka_partition"], r["_offset"]) for r in bronze}) == len(bronze)


async def test_a_null_is_not_the_default_of_its_column(settings: Settings, connect_url: str, tmp_path: Path) -> None:
    defaults = {"i": "int DEFAULT 5", "t": "text DEFAULT 'x'", "n": "numeric(6, 2) DEFAULT 1.25",
                "d": "date DEFAULT '2024-02-29'", "u": "uuid DEFAULT 'f81d4fae-7dec-11d0-a765-00a0c91e6bf6'",
                "b": "boolean DEFAULT true", "j": "jsonb DEFAULT '{}'"}  # fmt: skip
    columns, nulls = ", ".join(f"{k} {v}" for k, v in defaults.items()), ", ".join(["NULL"] * len(defaults))
    create = f"CREATE TABLE sparse (id int PRIMARY KEY, must int NOT NULL DEFAULT 7, {columns})"
    insert = f"INSERT INTO sparse (id, {', '.join(defaults)}) VALUES"
    set_null = f"UPDATE sparse SET {', '.join(f'{name} = NULL' for name in defaults)}"
    with captured(settings, connect_url, tmp_path, create, f"{insert} (1, {nulls}), (2, {nulls})",
                  "INSERT INTO sparse (id) VALUES (3), (4), (5)") as capture:  # fmt: skip
        async with streaming(capture, connect_url):
            await capture.equal("sparse")
            capture.execute(
                f"{insert} (6, {nulls})",
                "INSERT INTO sparse (id) VALUES (7)",
                f"{set_null} WHERE id = 3",
                "UPDATE sparse SET must = 8 WHERE id = 2",
                "DELETE FROM sparse WHERE id = 4",
                "ALTER TABLE sparse REPLICA IDENTITY FULL",
                f"{set_null} WHERE id = 5",
                "UPDATE sparse SET must = 9 WHERE id = 5",
                "DELETE FROM sparse WHERE id = 1",
            )
            await capture.equal("sparse")
            assert capture.quarantined("sparse") == []
        nothing = dict.fromkeys(defaults)
        changes = [row for row in capture.landed("sparse", "bronze") if row["op"] != "r"]
        seen = [(row["before"], row["after"]) for row in changes]
        after = [{name: row[name] for name in defaults} for _, row in seen if row and row["id"] in (2, 3, 5, 6)]
        assert after == [nothing] * 5, "as received, too"
        (deleted,) = (row for row, now in seen if row and now is None and row["id"] == 1)
        assert {name: deleted[name] for name in defaults} == nothing
        assert deleted["must"] == 7
        assert {row["source"] and row["source"]["snapshot"] for row in changes} == {None}


async def still_moving(capture: Capture, before: int) -> int:
    """Once the steady table shows changes made since it showed `before` of them; returns how many it shows."""

    def shown() -> int:
        return sum(row["v"] for row in capture.landed("steady"))

    await capture.until(lambda: shown() <= before and "the other table stands still")
    return shown()


async def write_steadily(capture: Capture, stop: asyncio.Event) -> None:
    with psycopg.connect(capture.url, autocommit=True) as db:
        while not stop.is_set():
            await asyncio.to_thread(db.execute, "UPDATE steady SET v = v + 1 WHERE id % 4 = floor(random() * 4)")
            await asyncio.sleep(0.05)
