"""A table's definition changes while its changes stream: nothing restarts, nothing is lost, other tables flow."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from connectors import snapshots
from connectors.connect import Connect
from connectors.databases import prepare_source
from governance.verify.current import source_of
from headrace.config import Settings
from schemas.diff import history
from schemas.registry import Registry
from tests.integration.cdc.capture import Capture, captured, streaming
from tests.integration.cdc.evolution import Engine, mariadb, postgresql, read_again

Made = Callable[[Settings, Callable[[str], str], Path], AbstractContextManager[tuple[Engine, Capture]]]


@pytest.mark.parametrize("made", [postgresql, mariadb])
async def test_definitions_change_while_it_streams(
    made: Made,
    settings: Settings,
    connect_url: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshots, "POLL_SECONDS", 0.3)
    with made(settings, request.getfixturevalue, tmp_path) as (engine, capture):
        prepare_source(capture.settings, capture.connector)
        async with streaming(capture, connect_url) as lifecycle:
            tables = ("items", "steady", "rekeyed", "unkeyed", "order$items", "narrowed", "retyped", "dropped")
            await capture.equal(*tables)
            before = {name: snapshot(capture, name) for name in ("items", "rekeyed", "unkeyed")}
            began = datetime.now(UTC)
            stop = asyncio.Event()
            writer = asyncio.create_task(write_steadily(capture, stop))
            capture.execute(
                "ALTER TABLE items ADD COLUMN added varchar(20)",
                "UPDATE items SET added = 'x' WHERE id < 5",
                "ALTER TABLE items ADD COLUMN rated int NOT NULL DEFAULT 7, "
                "ADD COLUMN note varchar(20) DEFAULT 'none', "
                "ADD COLUMN on_day date DEFAULT '2024-02-29', ADD COLUMN amount numeric(6, 2) DEFAULT 1.25, "
                f"ADD COLUMN seen {engine.instant} NULL DEFAULT '2024-01-02 03:04:05', "
                f"ADD COLUMN ok {engine.flag} DEFAULT true",
                "UPDATE items SET n = -n, rated = id WHERE id BETWEEN 4 AND 8",
                "INSERT INTO items (id, rated, note) VALUES (100, 1, 'some')",
                "INSERT INTO items (id, note, on_day, amount, seen, ok) VALUES (102, NULL, NULL, NULL, NULL, NULL)",
                "UPDATE items SET note = NULL, amount = NULL, ok = NULL WHERE id IN (9, 100)",
            )
            await capture.equal("items")
            moved = await still_moving(capture, 0)
            capture.execute(
                "ALTER TABLE items DROP COLUMN gone",
                "UPDATE items SET name = 'no gone' WHERE id = 9",
                f"ALTER TABLE items {engine.retype('n', 'bigint')}, {engine.retype('f', 'float8')}, "
                f"{engine.retype('price', 'numeric(14, 2)')}",
                "UPDATE items SET n = 5000000000, f = 0.1, price = 123456789012.34 WHERE id = 10",
                engine.labelled,
                "INSERT INTO items (id, m) VALUES (101, 'new')",
            )
            capture.execute(
                f"ALTER TABLE rekeyed {engine.drop_key('rekeyed')}, ADD PRIMARY KEY (a, b)",
                "UPDATE rekeyed SET v = 1 WHERE id % 3 = 0",
                "DELETE FROM rekeyed WHERE id % 5 = 0",
                "UPDATE rekeyed SET b = concat(b, 'x') WHERE id BETWEEN 31 AND 33",
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
                "CREATE TABLE early (id int PRIMARY KEY, v int)",
                f"INSERT INTO early SELECT seq, seq FROM {engine.rows.format(9)}",
                "CREATE TABLE late (id int PRIMARY KEY, v int)",
                *engine.publish(capture, "late"),
                f"INSERT INTO late SELECT seq, seq FROM {engine.rows.format(9)}",
                "INSERT INTO dropped VALUES (2)",
            )
            await capture.equal("items", "rekeyed", "unkeyed", "order$items", "late", "dropped")
            moved = await still_moving(capture, moved)
            assert lifecycle.problems() == {}
            capture.execute(
                "DELETE FROM narrowed WHERE id = 2",
                f"ALTER TABLE narrowed {engine.retype('n', 'int')}, {engine.retype('f', 'float(20)')}, "
                f"{engine.retype('price', 'numeric(8, 2)')}",
                "INSERT INTO narrowed VALUES (3, 3, 0.1, 3.25)",
                "ALTER TABLE items RENAME COLUMN added TO renamed",
                "UPDATE items SET name = 'renamed' WHERE id = 3",
                f"ALTER TABLE retyped {engine.retype('v', 'varchar(20)')}",
                "UPDATE retyped SET v = 'text' WHERE id = 1",
                "INSERT INTO retyped VALUES (3, 'three', 3)",
                "DROP TABLE dropped",
            )
            await capture.until(lambda: len(capture.quarantined("retyped")) < 4 and "no quarantine yet")
            assert {(q["stage"], q["rule"]) for q in capture.quarantined("retyped")} == {
                ("bronze", "schema: type"),
                ("current", "schema: type"),
            }
            assert "v is string here but int32 in the table" in str(lifecycle.problems())
            await still_moving(capture, moved)
            # No row has the renamed key: they stay, and what comes under it is refused until the table is read again.
            topic = capture.topic("order_items")
            assert source_of(capture.url, topic) == (capture.schema, "order$items")
            capture.execute(
                "ALTER TABLE order$items RENAME COLUMN id TO number",
                "UPDATE order$items SET v = 0",
                f"ALTER TABLE unkeyed {engine.drop_key('unkeyed')}",
                "INSERT INTO unkeyed VALUES (99, 9)",
            )
            await capture.until(lambda: len(capture.quarantined("order_items")) < 9 and "not refused yet")
            assert {q["rule"] for q in capture.quarantined("order_items")} == {"key: another"}
            assert sorted((row["id"], row["v"]) for row in capture.landed("order_items")) == [
                (n, n) for n in range(1, 10)
            ]
            await capture.until(lambda: not capture.quarantined("unkeyed") and "not refused yet")
            assert "message.key.columns" in capture.quarantined("unkeyed")[0]["reason"]
            # What the source does not send again is there once the table is read again.
            await capture.until(lambda: len(capture.landed("narrowed")) != 2 and "not landed yet")
            rows = {row["id"]: (row["renamed"], row["added"]) for row in capture.landed("items") if row["id"] in (3, 4)}
            assert rows == {3: ("x", None), 4: (None, "x")}
            await engine.admit(capture, Connect(connect_url))
            await read_again(capture, "items", "narrowed", "order$items", "early")
            await capture.equal("items", "narrowed", "order$items", "early")
            stop.set()
            await writer
            await capture.equal("steady", "rekeyed", "late")
            assert sorted(row["id"] for row in capture.landed("dropped")) == [1, 2], "what was dropped stays"
            assert not any(capture.quarantined(name) for name in ("items", "rekeyed", "narrowed"))
            assert {"n": "long", "f": "double", "price": "decimal(14, 2)"}.items() <= types(capture, "narrowed").items()
        for name, (old, rows_then) in before.items():
            assert snapshot(capture, name, old)[1] == rows_then, f"old snapshots of {name} are readable"
        bronze = capture.landed("items", "bronze")
        assert len({(r["_kafka_partition"], r["_offset"]) for r in bronze}) == len(bronze)
        told = differences(capture, "items", began)
        assert told.pop("value rated")[0] == ("added", None, "int, default 7")
        assert {name: told[f"value {name}"] for name in ("added", "renamed", "gone", "n", "f", "price", "m")} == {
            "added": [("added", None, "string, nullable"), ("removed", "string, nullable", None)],
            "renamed": [("added", None, "string, nullable")],
            "gone": [("removed", "string, nullable", None)],
            "n": [("changed", "int, nullable", "long, nullable")],
            "f": [("changed", "float, nullable", "double, nullable")],
            "price": [("changed", "decimal(8, 2), nullable", "decimal(14, 2), nullable")],
            "m": [("changed", "string (Enum of good,bad), nullable", "string (Enum of good,bad,new), nullable")],
        }
        assert differences(capture, "narrowed", began) == {
            "value n": [("changed", "long, nullable", "int, nullable")],
            "value f": [("changed", "double, nullable", "float, nullable")],
            "value price": [("changed", "decimal(14, 2), nullable", "decimal(8, 2), nullable")],
        }
        assert differences(capture, "rekeyed", began) == {
            "key a": [("added", None, "int")],
            "key b": [("added", None, "string")],
            "key id": [("removed", "int", None)],
        }


async def test_values_of_another_type_have_a_column_of_their_own(
    settings: Settings, connect_url: str, tmp_path: Path
) -> None:
    create = "CREATE TABLE retyped (id int PRIMARY KEY, v int, w int, x int)"
    before = "INSERT INTO retyped VALUES (1, 1, 1, 1), (2, 2, 2, 2), (3, 3, 3, 3)"
    with captured(settings, connect_url, tmp_path, create, before, sink={"retyped": "column"}) as capture:
        async with streaming(capture, connect_url) as lifecycle:
            await capture.equal("retyped")
            capture.execute(
                "ALTER TABLE retyped ALTER v TYPE text, ALTER w TYPE date USING '2024-02-28'::date + w",
                "UPDATE retyped SET v = 'two' WHERE id = 2",
                "INSERT INTO retyped VALUES (4, 'four', NULL, 4)",
                "ALTER TABLE retyped ALTER v TYPE int USING 5",
                "UPDATE retyped SET v = 6 WHERE id = 3",
            )
            await capture.until(lambda: not any(row["v"] == 6 for row in capture.landed("retyped")) and "not yet")
            named = ("v", "v_string", "w", "w_date32_day")
            rows = {row["id"]: tuple(row[name] for name in named) for row in capture.landed("retyped")}
            assert rows == {
                1: (1, None, 1, None),
                2: (None, "two", None, date(2024, 3, 1)),
                3: (6, None, None, date(2024, 3, 2)),
                4: (None, "four", None, None),
            }
            received = [row["after"] for row in capture.landed("retyped", "bronze") if row["op"] != "r"]
            assert sorted((row["id"], row["v"], row["v_string"]) for row in received) == [
                (2, None, "two"), (3, 6, None), (4, None, "four")
            ]  # fmt: skip
            assert capture.quarantined("retyped") == []
            assert lifecycle.problems() == {}
            # By its key a row is found: another type of it is refused whatever the policy.
            capture.execute("ALTER TABLE retyped ALTER id TYPE text", "DELETE FROM retyped WHERE id = '1'")
            await capture.until(lambda: len(capture.quarantined("retyped")) < 1 and "not refused yet")
            assert {q["stage"] for q in capture.quarantined("retyped")} == {"current"}
            assert len(capture.landed("retyped")) == 4


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


def snapshot(capture: Capture, name: str, at: int | None = None) -> tuple[int | None, list[dict[str, Any]]]:
    """A snapshot of a table, the newest by default, and its rows."""
    table = capture.table(name)
    assert table is not None
    at = at or table.metadata.current_snapshot_id
    rows = table.scan(snapshot_id=at).to_arrow().to_pylist()
    return at, sorted(rows, key=lambda row: row["id"])


def types(capture: Capture, name: str) -> dict[str, str]:
    table = capture.table(name)
    assert table is not None
    return {field.name: str(field.field_type) for field in table.schema().fields}


def differences(capture: Capture, name: str, since: datetime) -> dict[str, list[tuple[str, str | None, str | None]]]:
    """What `headrace contract diff` tells of each field of a table's key and value since a time, in whole seconds as
    the registry has them."""
    with closing(Registry(capture.settings.registry.url)) as registry:
        steps = history(registry, capture.topic(name))
    told = defaultdict(list)
    for step in steps:
        assert step.created is not None
        if datetime.fromisoformat(step.created) >= since.replace(microsecond=0):
            for one in step.differences:
                told[f"{step.part} {one.at}"].append((one.change, one.was, one.now))
    return dict(told)


async def still_moving(capture: Capture, before: int) -> int:
    """Once the steady table shows changes made since it showed `before` of them; returns how many it shows."""

    def shown() -> int:
        return sum(row["v"] for row in capture.landed("steady"))

    await capture.until(lambda: shown() <= before and "the other table stands still")
    return shown()


async def write_steadily(capture: Capture, stop: asyncio.Event) -> None:
    while not stop.is_set():
        some = random.randrange(4)
        await asyncio.to_thread(capture.execute, f"UPDATE steady SET v = v + 1 WHERE id % 4 = {some}")
        await asyncio.sleep(0.05)
