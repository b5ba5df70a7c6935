"""Connectors of MariaDB in production: a log that was purged or begun anew, a table read again while changes stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from confluent_kafka import Producer

from connectors import lifecycle, snapshots
from connectors.databases import need_source, prepare_source
from connectors.lifecycle import forget_offset, resume, source_offset, stop
from connectors.resnapshot import resnapshot
from connectors.supervise import Supervisor
from connectors.watch import Capture, Watch
from headrace.config import Settings
from headrace.errors import ConfigError, TerminalError
from headrace.kafka.client import confluent_options
from headrace.mysql import connect
from tests.integration.cdc.inventory import Inventory, inventory, until
from tests.integration.sinks.iceberg.shop import running


@pytest.fixture
def own(settings: Settings, mariadb_url: str, connect_url: str, tmp_path: Path) -> Iterator[Inventory]:
    with inventory(settings, mariadb_url, connect_url, tmp_path) as made:
        made.configure(
            **{
                "table.include.list": f"{made.name}\\.things,{made.name}\\.moves",
                "incremental.snapshot.chunk.size": "64",
                "heartbeat.interval.ms": "500",
            },
        )
        yield made


def look(watch: Watch, own: Inventory) -> Capture:
    return watch.look({own.name})[0]


def of_database(own: Inventory) -> dict[int, Any]:
    return dict(own.select("SELECT id, n FROM things"))  # type: ignore[arg-type] # two columns were asked for


def of_lake(own: Inventory) -> dict[int, Any]:
    return {row["id"]: row["n"] for row in own.landed("things")}


async def test_a_purged_log_is_told_and_mended_and_a_table_is_read_again(own: Inventory) -> None:
    """Rows go, come and change while the connector is away and its log is purged, and on while it begins anew."""
    mine = own.settings
    with closing(Watch(mine)) as watch:
        prepare_source(mine, own.connector)
        prepare_source(mine, own.connector)
        own.execute("INSERT INTO things (id, n) SELECT seq, 1 FROM seq_1_to_300")
        assert (await asyncio.to_thread(watch.connect.apply, own.connector)).running
        async with running(mine):
            await until(lambda: of_lake(own) == of_database(own))
            own.execute("UPDATE things SET n = 2 WHERE id = 1")
            await until(lambda: look(watch, own).log.lag_bytes is not None)  # type: ignore[union-attr] # asked above
            await until(lambda: look(watch, own).log.lag_bytes < 1 << 20)  # type: ignore[union-attr, operator]
            capture = look(watch, own)
            assert (capture.fault, capture.problems, capture.state) == ("", (), "RUNNING")
            assert capture.log is not None
            assert capture.log.kept_bytes == sum(capture.log.files.values()) > 0

            await asyncio.to_thread(stop, watch.connect, own.name)
            own.execute("DELETE FROM things WHERE id BETWEEN 10 AND 30", "UPDATE things SET n = 3 WHERE id = 40")
            lag = look(watch, own).log.lag_bytes  # type: ignore[union-attr] # the server answers
            assert lag is not None
            assert lag > 0
            await _purge(own)
            assert "has purged binlog." in look(watch, own).fault
            assert look(watch, own).remedy == f"headrace connect resnapshot {own.name}"
            resume(watch.connect, own.name)
            await until(lambda: look(watch, own).state == "FAILED")
            assert set(range(10, 31)) <= of_lake(own).keys(), "the loss is not there yet"
            supervisor = Supervisor(mine, clock=iter(range(0, 10_000_000, 1000)).__next__)
            for _ in range(3):
                supervisor.step()
            assert [one["restarts"] for one in supervisor.report()] == [0], "restarts cannot help"

            target = snapshots.find(watch, mine, "", own.name)
            work = asyncio.create_task(asyncio.to_thread(_begin_anew, mine, target))
            number = 1000
            while not work.done():
                number += 1
                own.execute(
                    f"INSERT INTO things (id, n) VALUES ({number}, 0)", "UPDATE things SET n = n + 1 WHERE id = 9"
                )
                own.execute(f"DELETE FROM things WHERE id = {number - 5} AND id > 1000")
                assert len(await asyncio.to_thread(of_lake, own)) >= 270, "no reader has seen the table empty"
                await asyncio.sleep(0.3)
            await work
            await until(lambda: of_lake(own) == of_database(own))
            assert look(watch, own).fault == ""
            assert (await asyncio.to_thread(own.check, "things")).offences == []

            # What the log does not tell, only a reading of the table can.
            with connect(own.url) as db, db.cursor() as cursor:
                cursor.execute("SET SESSION sql_log_bin = 0")
                cursor.execute("UPDATE things SET n = 77 WHERE id BETWEEN 100 AND 200")
                db.commit()
            assert of_lake(own)[100] == 1
            signal = await asyncio.to_thread(snapshots.execute, watch, mine, target, f"{own.name}.things")
            own.execute("UPDATE things SET n = 78 WHERE id = 150", "DELETE FROM things WHERE id = 151")
            seen: list[Any] = []
            done = await asyncio.to_thread(snapshots.follow, watch, target, signal, seen.extend)
            assert done.state == "completed"
            await until(lambda: of_lake(own) == of_database(own))
            assert of_lake(own)[100] == 77
            assert seen[-1].rows >= 270
            assert (await asyncio.to_thread(own.check, "things")).offences == []


async def test_a_log_begun_anew_is_told_and_mended_once_its_places_go_on(
    own: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = own.settings
    with closing(Watch(mine)) as watch:
        prepare_source(mine, own.connector)
        own.execute("INSERT INTO things (id, n) SELECT seq, 1 FROM seq_1_to_50")
        _keep_no_place(own)
        with pytest.raises(TerminalError, match="'file' parameter is missing"):
            await asyncio.to_thread(watch.connect.apply, own.connector)
        supervisor = Supervisor(mine, clock=iter(range(0, 10_000_000, 1000)).__next__)
        with monkeypatch.context() as killed:
            killed.setattr(lifecycle, "resume", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                await until(lambda: supervisor.step() and "is over")
        assert look(watch, own).state == "STOPPED"
        supervisor = Supervisor(mine)

        def runs() -> bool:
            supervisor.step()
            return supervisor.captures[0].state == "RUNNING"

        await until(runs)
        async with running(mine) as sink:
            _administer(own, "FLUSH BINARY LOGS")
            own.execute("UPDATE things SET n = 2 WHERE id <= 3")
            await until(lambda: of_lake(own) == of_database(own))
            await until(lambda: int(source_offset(watch.connect, own.name).get("file", ".0").rpartition(".")[2]) > 1)
            _administer(own, "RESET MASTER")
            own.execute("UPDATE things SET n = 3 WHERE id = 1", "DELETE FROM things WHERE id = 50")
            capture = look(watch, own)
            assert "does not reach binlog." in capture.fault
            assert "RESET MASTER" in capture.fault
            await until(lambda: look(watch, own).state == "FAILED")
            supervisor = Supervisor(mine, clock=iter(range(0, 10_000_000, 1000)).__next__)
            for _ in range(3):
                supervisor.step()
            assert [one["restarts"] for one in supervisor.report()] == [0], (
                "resumed by its GTID it would leave changes out"
            )

            target = snapshots.find(watch, mine, "", own.name)
            with pytest.raises(ConfigError, match="look like repeats") as e:
                await asyncio.to_thread(_begin_anew, mine, target)
            assert capture.remedy == f"{e.value.hint}; then headrace connect resnapshot {own.name}"
            assert look(watch, own).state == "FAILED", "nothing was done"

            _administer(own, "RESET MASTER TO " + e.value.hint.rpartition(" ")[2])
            # Debezium fails at a log without a transaction.
            own.execute("UPDATE things SET n = 5 WHERE id = 3")
            assert "has purged binlog." in look(watch, own).fault
            await asyncio.to_thread(_begin_anew, mine, target)
            own.execute("UPDATE things SET n = 4 WHERE id = 2", "DELETE FROM things WHERE id = 49")
            await until(lambda: of_lake(own) == of_database(own))
            assert look(watch, own).fault == ""
            assert (await asyncio.to_thread(own.check, "things")).offences == []
            assert sink.problems() == {}

            # Offsets that somebody else deletes let it begin anew below what was read: that is no repeat either.
            _administer(own, "RESET MASTER")
            await asyncio.to_thread(stop, watch.connect, own.name)
            own.execute("UPDATE things SET n = 6 WHERE id = 2")
            forget_offset(watch.connect, own.name)
            resume(watch.connect, own.name)
            await until(lambda: of_lake(own) == of_database(own))
            await until(lambda: look(watch, own).state == "RUNNING")
            await asyncio.sleep(1)
            own.execute("UPDATE things SET n = 7 WHERE id = 2")
            await until(lambda: "log was begun anew" in sink.problems().get("topics", ""))
            assert of_lake(own)[2] == 6
            received = max(own.landed("things", "bronze"), key=lambda row: row["_timestamp"])
            assert received["after"]["n"] == 7, "as received"


def _keep_no_place(own: Inventory) -> None:
    """What Connect may have kept of a connector when it is killed as the first snapshot begins."""
    producer = Producer(confluent_options(own.settings.kafka) | {"partitioner": "murmur2_random"})
    key = json.dumps([own.name, {"server": own.name}], separators=(",", ":"))
    producer.produce("connect.offsets", key=key, value="{}")
    assert producer.flush(30) == 0


def _administer(own: Inventory, statement: str) -> None:
    with connect(own.server) as db, db.cursor() as cursor:
        cursor.execute(statement)


async def _purge(own: Inventory) -> None:
    """The server keeps a file that it still sends to somebody, and it notices late that he has gone."""

    def purged() -> bool:
        with connect(own.server) as db, db.cursor() as cursor:
            cursor.execute("FLUSH BINARY LOGS")
            cursor.execute("SHOW BINARY LOGS")
            newest = cursor.fetchall()[-1][0]
            cursor.execute(f"PURGE BINARY LOGS TO '{newest}'")
            cursor.execute("SHOW BINARY LOGS")
            return len(cursor.fetchall()) == 1

    await until(purged)


def _begin_anew(settings: Settings, target: snapshots.Target) -> None:
    with closing(Watch(settings)) as watch:
        resnapshot(watch, settings, target, lambda _: None, lambda _: None)


def test_what_the_server_refuses_is_said(own: Inventory) -> None:
    source = need_source(own.settings, own.name, own.connector.config)
    with pytest.raises(ConfigError, match="doesn't exist"):
        source.signal(f"{own.name}.headrace_signal", "headrace-1", "execute-snapshot", {})
    own.execute("INSERT INTO moves (thing) SELECT seq FROM seq_1_to_100", "ANALYZE TABLE moves")
    assert source.estimated_rows(f"{own.name}.moves") == 100
    assert source.estimated_rows(f"{own.name}.nothing") is None
