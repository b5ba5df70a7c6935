"""Every kind of change of a real database, through real Debezium, as current state."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg
import pyarrow.compute as pc
import pytest

from headrace.config import Settings
from stack.testing import SessionStack
from tests.integration.cdc.capture import Capture, captured, streaming
from tests.integration.stack.test_supervision import kill

BIG = (
    "SELECT {id}, 0, repeat('abc', 2000), convert_to(repeat('abd', 2000), 'UTF8'), "
    "jsonb_build_object('k', repeat('xyz', 2000)), array_agg('w' || g), array_agg(g), array_agg(g::bigint), "
    "array_agg(md5(g::text)::uuid), "
    "array_agg(date '2024-01-01' + g) FROM generate_series(1, 2000) g"
)
SETUP = (
    "CREATE TABLE things (id int PRIMARY KEY, name text, price numeric(8, 2))",
    "INSERT INTO things SELECT g, 'n' || g, g FROM generate_series(1, 40) g",
    "CREATE TABLE big (id int PRIMARY KEY, v int, t text, b bytea, j jsonb, ta text[], ia int[], la bigint[], "
    "ua uuid[], da date[])",
    *(f"ALTER TABLE big ALTER {name} SET STORAGE EXTERNAL" for name in ("t", "b", "j", "ta", "ia", "la", "ua", "da")),
    f"INSERT INTO big {BIG.format(id=1)}",
    f"INSERT INTO big {BIG.format(id=2)}",
    "CREATE TABLE bigfull (LIKE big INCLUDING ALL)",
    "ALTER TABLE bigfull REPLICA IDENTITY FULL",
    "INSERT INTO bigfull SELECT * FROM big",
    "CREATE TABLE keyless (a int, b text)",
    "ALTER TABLE keyless REPLICA IDENTITY FULL",
    "INSERT INTO keyless VALUES (1, 'same'), (1, 'same'), (2, NULL)",
    "CREATE TABLE indexed (a int NOT NULL, b text)",
    "CREATE UNIQUE INDEX indexed_a ON indexed (a)",
    "ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_a",
    "INSERT INTO indexed VALUES (1, 'x'), (2, 'y')",
    "CREATE TABLE identified (id int PRIMARY KEY, code text NOT NULL UNIQUE, v int)",
    "ALTER TABLE identified REPLICA IDENTITY USING INDEX identified_code_key",
    "INSERT INTO identified SELECT g, 'c' || g, 0 FROM generate_series(1, 9) g",
    "CREATE TABLE unidentified (id int PRIMARY KEY, b text)",
    "ALTER TABLE unidentified REPLICA IDENTITY NOTHING",
    "INSERT INTO unidentified VALUES (1, 'x')",
    "CREATE TABLE emptied (id int PRIMARY KEY, v int)",
    "INSERT INTO emptied SELECT g, 0 FROM generate_series(1, 200) g",
    'CREATE TABLE "2nd-named" ("1st key" int PRIMARY KEY, "größe.😀" text, "Unit-Price" numeric(8, 2))',
    """INSERT INTO "2nd-named" VALUES (1, 'x', 1), (2, 'y', 2)""",
)
TABLES = ("things", "big", "bigfull", "keyless", "indexed", "identified", "unidentified", "emptied", "2nd-named")
# A hundred thousand rows, and among them some that a repeat would double.
LARGE = """DO $$ BEGIN FOR i IN 1..100 LOOP
    INSERT INTO things SELECT g, 'bulk', 1 FROM generate_series(1000 * i, 1000 * i + 999) g;
    INSERT INTO keyless SELECT i, 'bulk' FROM generate_series(1, 10);
END LOOP; END $$"""


async def test_every_change_of_the_source_is_in_the_current_state(
    settings: Settings, stack: SessionStack, connect_url: str, tmp_path: Path
) -> None:
    one_partition = {
        "topic.creation.groups": "control,single",
        # Without a key order is kept in one partition alone; the parts of a change of a key lie together there.
        "topic.creation.single.include": ".*[.](keyless|big)",
        "topic.creation.single.partitions": "1",
        "topic.creation.single.replication.factor": "-1",
        # Its deletes have the index's columns alone.
        "message.key.columns": "public[.]identified:code",
    }
    with captured(settings, connect_url, tmp_path, *SETUP, **one_partition) as capture:
        async with streaming(capture, connect_url) as lifecycle:
            await capture.equal(*TABLES)
            small_changes(capture)
            large_values(capture)
            keyless_changes(capture)
            truncations(capture)
            capture.transaction(LARGE, "UPDATE things SET price = 2 WHERE id % 1000 = 0")
            await capture.until(lambda: capture.sent("things") < 30_000 and "not in the middle of it", 90)
            await asyncio.to_thread(kill, stack.home, "connect")
            await capture.equal(*TABLES, seconds=150)
            assert capture.quarantined("things") == capture.quarantined("keyless") == []
            assert capture.quarantined("bigfull") == []
            assert lifecycle.problems() == {}
        assert all(repeats(capture, table) for table in ("things", "keyless")), "the kill was no test"
        assert "__debezium_unavailable_value" in str(capture.landed("big", "bronze")), "bronze is as received"


def repeats(capture: Capture, table: str) -> int:
    """How many changes came again, by their places in the log."""
    found = capture.table(table, "bronze")
    assert found is not None
    rows = found.scan(row_filter="op in ('c', 'u', 'd')", selected_fields=("source", "transaction")).to_arrow()
    sequence, order = pc.struct_field(rows["source"], "sequence"), pc.struct_field(rows["transaction"], "total_order")
    return len(rows) - len(set(zip(sequence.to_pylist(), order.to_pylist(), strict=True)))


def small_changes(capture: Capture) -> None:
    capture.execute(
        "UPDATE things SET name = 'new', price = NULL WHERE id = 1",
        "DELETE FROM things WHERE id IN (2, 3)",
        "INSERT INTO things VALUES (2, 'again', 0.01)",
        *(f"UPDATE things SET price = {n} WHERE id = 5" for n in range(30)),
        "UPDATE things SET id = id + 500 WHERE id BETWEEN 10 AND 20",
        "UPDATE things SET id = 10 WHERE id = 510",
        "UPDATE indexed SET b = 'u' WHERE a = 1",
        "UPDATE indexed SET a = 7 WHERE a = 2",
        "DELETE FROM indexed WHERE a = 1",
        "UPDATE identified SET v = 1 WHERE id = 1",
        "UPDATE identified SET code = 'other' WHERE id = 2",
        "UPDATE identified SET id = 103 WHERE id = 3",
        "UPDATE identified SET id = 104, code = 'both' WHERE id = 4",
        "DELETE FROM identified WHERE id IN (5, 6)",
        'UPDATE "2nd-named" SET "größe.😀" = NULL, "1st key" = 3 WHERE "1st key" = 1',
        'ALTER TABLE "2nd-named" ADD COLUMN "2nd" int DEFAULT 7',
        'DELETE FROM "2nd-named" WHERE "Unit-Price" = 2',
        """INSERT INTO "2nd-named" VALUES (4, 'z', 4, 4)""",
    )
    capture.transaction(
        "INSERT INTO things VALUES (700, 'short', 1)",
        "UPDATE things SET name = 'lived' WHERE id = 700",
        "DELETE FROM things WHERE id = 700",
    )
    for statement in ("UPDATE unidentified SET b = 'y'", "DELETE FROM unidentified"):
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            capture.execute(statement)
    capture.execute("INSERT INTO unidentified VALUES (2, 'y')")


def large_values(capture: Capture) -> None:
    """Values that Postgres does not log again because they did not change."""
    for table in ("big", "bigfull"):
        capture.execute(
            f"UPDATE {table} SET v = 1 WHERE id = 1",
            f"UPDATE {table} SET v = 2, t = 'short' WHERE id = 1",
            f"UPDATE {table} SET v = 3 WHERE id = 1",
            f"UPDATE {table} SET v = 9, ta = NULL WHERE id = 2",
        )
    capture.transaction("UPDATE bigfull SET id = 3 WHERE id = 2", "UPDATE bigfull SET v = 4 WHERE id = 3")
    capture.execute("UPDATE big SET id = 3 WHERE id = 2", "UPDATE big SET id = 4, v = 5, j = '{}' WHERE id = 1")


def keyless_changes(capture: Capture) -> None:
    capture.execute(
        "UPDATE keyless SET b = 'one of them' WHERE ctid = (SELECT min(ctid) FROM keyless WHERE a = 1)",
        "DELETE FROM keyless WHERE b IS NULL",
        "INSERT INTO keyless SELECT 9, 'nine' FROM generate_series(1, 5)",
        "DELETE FROM keyless WHERE ctid = (SELECT max(ctid) FROM keyless WHERE a = 9)",
        "UPDATE keyless SET a = a + 1",
    )


def truncations(capture: Capture) -> None:
    """Before, between and after changes of rows in every partition."""
    for round_ in range(3):
        capture.execute(
            f"UPDATE emptied SET v = {round_ + 1}",
            "TRUNCATE emptied",
            f"INSERT INTO emptied SELECT g, {round_ * 10} FROM generate_series({round_ * 7}, {round_ * 7 + 90}) g",
        )
    capture.transaction(
        "INSERT INTO emptied VALUES (500, 1)",
        "TRUNCATE emptied",
        "INSERT INTO emptied VALUES (500, 2), (501, 3)",
    )
    capture.execute("DELETE FROM emptied WHERE id = 501")
