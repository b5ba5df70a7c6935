"""MariaDB through the real connector and the real sink: what is in the lake is what a SELECT says, whatever happens."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors.connect import Connect
from connectors.mysql import check_server
from governance.verify.kpis import recompute
from governance.verify.lake import Lake
from headrace.config import Settings
from headrace.errors import ContractError, UnavailableError
from headrace.lake import answer
from headrace.mysql import connect, require_row_log
from schemas.kpis import Kpi
from schemas.names import table_name
from stack.state import read_children
from stack.testing import SessionStack
from tests.integration.cdc.inventory import Inventory, Writer, inventory, placed, until
from tests.integration.sinks.iceberg.shop import running
from tests.integration.stack.test_supervision import kill


@pytest.fixture
def own(settings: Settings, mariadb_url: str, connect_url: str, tmp_path: Path) -> Iterator[Inventory]:
    with inventory(settings, mariadb_url, connect_url, tmp_path) as made:
        yield made


async def test_changes_over_a_kill_of_connect(own: Inventory, stack: SessionStack, connect_url: str) -> None:
    rows = ", ".join(f"({n}, 0, 'first', 1.50, '2024-01-02 03:04:05.123456', now(6), 4000000000)" for n in range(500))
    own.execute(f"INSERT INTO things VALUES {rows}", "INSERT INTO notes VALUES ('read', 0.1)")
    await asyncio.to_thread(Connect(connect_url).apply, own.connector)
    async with running(own.settings) as lifecycle:
        await until(lambda: own.count("things") >= 500)
        own.execute("INSERT INTO notes VALUES ('written', NULL), ('written', NULL)")
        writers = [Writer(own, seed) for seed in (1, 2)]
        for writer in writers:
            writer.start()
        await until(lambda: own.count("things") >= 1200)
        live = await asyncio.to_thread(own.check, "things")  # while it changes
        before = own.count("things")
        child = read_children(stack.home)["connect"]
        own.execute(
            "INSERT INTO things SELECT seq, 9, 'big', 1, now(6), NULL, 1 FROM seq_900000000_to_900005999",
            "UPDATE things SET n = 2 WHERE kind = 9 AND id < 900002000",
        )
        await until(lambda: own.count("things") > before + 2000)
        os.kill(child.pid, signal.SIGKILL)
        await until(lambda: read_children(stack.home)["connect"].pid != child.pid)
        for writer in writers:
            writer.stop()
        own.execute("DELETE FROM things WHERE id > 900004000", "UPDATE things SET id = -id WHERE kind = 9 LIMIT 50")
        wanted = sum(own.select("SELECT count(*) FROM things")[0])
        await until(lambda: len(own.landed("things")) == wanted, 150)
        checks = [live, *[await asyncio.to_thread(own.check, table) for table in ("things", "moves", "notes")]]
        assert lifecycle.problems() == {}
    assert [check.offences for check in checks] == [[]] * 4
    assert all(check.compared for check in checks)
    assert {row["text"] for row in own.landed("notes")} == {"read", "written"}

    changes = placed(own.events("things"))
    contents, partitions = defaultdict(set), defaultdict(list)
    for partition, place, content in changes:
        contents[place].add(content)
        partitions[partition].append(place)
    assert len(changes) > len(contents), "nothing came twice: the kill was no test"
    assert all(len(found) == 1 for found in contents.values()), "a place of two changes, or repeats that differ"
    for places in partitions.values():
        back = [n for n in range(1, len(places)) if places[n] <= places[n - 1]]
        assert len(back) <= 1, "but for where the repeats begin, places grow"

    lake = Lake(own.settings.lake)
    bronze = lake.table(table_name("bronze", own.topic("moves")))
    assert bronze is not None
    kpi = Kpi(name="moved", title="Moved", source=own.topic("moves"), measure="sum", field="amount")
    value = recompute(lake, bronze, kpi, bronze.offsets(own.topic("moves")))
    assert list(value.values()) == [float(own.select("SELECT sum(amount) FROM moves")[0][0])]


async def test_truncations_and_a_large_transaction(own: Inventory, connect_url: str) -> None:
    # In one partition: there the log's order and the topic's are the same.
    own.configure(**{"topic.creation.default.partitions": "1"})
    await asyncio.to_thread(Connect(connect_url).apply, own.connector)
    async with running(own.settings):
        for round_ in range(4):
            first = 100 * round_
            rows = ", ".join(f"({n}, 1, NULL, NULL, NULL, NULL, NULL)" for n in range(first, first + 20))
            own.execute(f"INSERT INTO things VALUES {rows}")
            own.execute("FLUSH BINARY LOGS")
            own.execute("TRUNCATE TABLE things")
        own.execute(
            "INSERT INTO things (id) VALUES (7), (8)",
            f"INSERT INTO things VALUES (9, {', '.join(['NULL'] * 6)})",
            "UPDATE things SET name = NULL, price = NULL, at = NULL, n = NULL WHERE id = 8",
        )
        await until(lambda: {row["id"] for row in own.landed("things")} == {7, 8, 9})
        assert own.check("things").offences == []
        own.execute("TRUNCATE TABLE things")
        await until(lambda: not own.landed("things"))
        assert own.check("things").offences == []
        assert [event["op"] for _, event in own.events("things")].count("t") == 5
        own.execute(
            "INSERT INTO things (id, kind) SELECT seq, 1 FROM seq_1_to_100000",
            "UPDATE things SET kind = 2, name = NULL WHERE id % 1000 = 0",
            "DELETE FROM things WHERE id % 1000 = 1",
        )
        count = f"SELECT count(*) FROM {table_name('silver', own.topic('things'))}"
        await until(lambda: answer(own.settings.lake, count).rows == [(99_900,)])
        assert own.check("things").offences == []


def test_a_server_whose_log_hides_places_is_refused_with_the_statement(own: Inventory) -> None:
    config, databases = own.connector.config, {own.name: own.url}
    check_server(config, databases)
    check_server(config, {})
    with connect(own.server) as db, db.cursor() as cursor:
        for variable, wrong, right in (
            ("binlog_legacy_event_pos", "OFF", "ON"),
            ("binlog_row_image", "MINIMAL", "FULL"),
            ("binlog_format", "MIXED", "ROW"),
        ):
            cursor.execute(f"SET GLOBAL {variable} = {wrong}")
            try:
                with pytest.raises(ContractError, match=f"SET GLOBAL {variable} = {right}"):
                    check_server(config, databases)
            finally:
                cursor.execute(f"SET GLOBAL {variable} = {right}")
    require_row_log(own.url)
    with pytest.raises(UnavailableError, match="cannot be reached"):
        require_row_log("mysql://root@127.0.0.1:1")


def test_mariadb_outlives_a_kill(own: Inventory, stack: SessionStack) -> None:
    own.execute("INSERT INTO moves (thing, amount) VALUES (1, 2)")
    kill(stack.home, "mariadb")
    assert own.select("SELECT thing, amount FROM moves") == [(1, 2)]
