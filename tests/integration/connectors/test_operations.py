"""Connectors in production, against real Connect, Debezium, Postgres and the sink."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from confluent_kafka import Consumer, TopicPartition
from prometheus_client import REGISTRY

from connectors import snapshots
from connectors.connect import load_connector
from connectors.databases import need_source, prepare_source
from connectors.lifecycle import forget_offset, resume, source_offset, stop
from connectors.restarts import LONGEST_SECONDS
from connectors.supervise import Supervisor
from connectors.watch import Capture, Progress, Watch
from headrace.config import Settings
from headrace.errors import TerminalError
from headrace.kafka import admin
from schemas import baseline
from sinks.iceberg.catalog import find_table, open_catalog
from stack.state import read_children
from stack.testing import SessionStack
from tests.integration.connectors.commands import Operator
from tests.integration.connectors.conftest import Source
from tests.integration.sinks.iceberg.shop import made_settings, running

PARTITIONS = "3"


def of_database(source: Source) -> dict[int, Any]:
    with psycopg.connect(source.url) as db:
        return dict(db.execute("SELECT id, price FROM things").fetchall())  # type: ignore[arg-type]


class Lake:
    """The current-state table as pyiceberg reads it."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._catalog = open_catalog(settings.lake)
        self._name = f"silver.{name}_public_things"

    def rows(self) -> dict[int, Any]:
        found = find_table(self._catalog, self._name)
        if found is None:
            return {}
        rows = found.scan().to_arrow().select(["id", "price"]).to_pylist()
        assert len(rows) == len({row["id"] for row in rows})
        return {row["id"]: row["price"] for row in rows}


async def until(true: Callable[[], object], seconds: float = 40) -> None:
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(true):  # noqa: ASYNC110
            await asyncio.sleep(0.2)


@contextmanager
def lake_of(settings: Settings, folder: Path, source: Source) -> Iterator[Settings]:
    mine = made_settings(settings, folder, f"l{source.name}", exclude=["kpi[.]values.*", "ops[.]quarantine.+"])
    (folder / "connectors" / "debezium" / f"l{source.name}.json").unlink()
    source.file = folder / "connectors" / "debezium" / "one.json"
    try:
        yield mine.model_copy(update={"databases": {source.name: source.url}})
    finally:
        with psycopg.connect(settings.postgres.url, autocommit=True) as admin:
            admin.execute(f'DROP DATABASE "l{source.name}" WITH (FORCE)')


def look(watch: Watch, source: Source) -> Capture:
    return watch.look({source.name})[0]


async def test_a_lost_slot_is_told_and_mended_with_its_deletes(
    settings: Settings, connect_url: str, source: Source, tmp_path: Path, postgres_url: str
) -> None:
    """Rows go, come and change while the slot is gone, and change on while the new snapshot is taken."""
    with lake_of(settings, tmp_path, source) as mine, closing(Watch(mine)) as watch:
        lake = Lake(mine, source.name)
        file = source.write(**{"topic.creation.default.partitions": PARTITIONS})
        prepare_source(mine, load_connector(file))
        assert watch.connect.apply(load_connector(file)).running
        with psycopg.connect(source.url, autocommit=True) as db:
            db.execute("INSERT INTO things SELECT n, n FROM generate_series(2, 60) n")
            async with running(mine):
                await until(lambda: lake.rows() == of_database(source))
                await until(lambda: look(watch, source).log.lag_bytes < 1 << 20)  # type: ignore[union-attr, operator]
                operator = Operator.of(mine, tmp_path)
                capture = look(watch, source)
                assert (capture.fault, capture.problems, capture.state) == ("", (), "RUNNING")
                assert capture.last_events["public.things"] > time.time() - 60
                await until(lambda: (look(watch, source).heartbeat or 0) > time.time() - 10)

                gone = range(10, 31)
                await asyncio.to_thread(stop, watch.connect, source.name)
                with psycopg.connect(postgres_url, autocommit=True) as admin:
                    db.execute("DELETE FROM things WHERE id = ANY(%s)", (list(gone),))
                    db.execute("INSERT INTO things VALUES (100, 1)")
                    db.execute("UPDATE things SET price = -1 WHERE id = 55")
                    await _lose(watch, source, admin)
                assert look(watch, source).remedy == f"headrace connect resnapshot {source.name}"
                assert set(gone) <= lake.rows().keys(), "the loss is not there yet"

                supervisor = Supervisor(mine, clock=iter(range(0, 10_000_000, 1000)).__next__)
                for _ in range(3):
                    supervisor.step()
                assert [one["restarts"] for one in supervisor.report()] == [0], "restarts cannot help"
                assert sample("headrace_cdc_changes_missing", connector=source.name) == 1

                counts: list[int] = []
                again = operator.start("cli.main", "connect", "resnapshot", source.name, "--yes")
                number = 200
                while again.poll() is None:
                    number += 1
                    db.execute("INSERT INTO things VALUES (%s, 0)", (number,))
                    db.execute("UPDATE things SET price = %s WHERE id = 50", (number,))
                    db.execute("DELETE FROM things WHERE id = %s", (number - 5,))
                    counts.append(await asyncio.to_thread(lambda: len(lake.rows())))
                _, said = again.communicate()
                assert again.returncode == 0, said
                assert [f"{source.name}: {words}" in said for words in ("stopping", "beginning anew")] == [True] * 2
                assert re.search(r"public[.]things: completed, [0-9]+ rows", said)
                await until(lambda: lake.rows() == of_database(source))
                assert min(counts) >= 38, "no reader has seen the table empty"
                assert look(watch, source).fault == ""


async def _lose(watch: Watch, source: Source, admin: psycopg.Connection) -> None:
    """In all ways that a slot is lost."""
    admin.execute("SELECT pg_drop_replication_slot(%s)", (source.name,))
    resume(watch.connect, source.name)
    await until(lambda: look(watch, source).state == "FAILED")
    assert "is gone" in look(watch, source).fault
    with psycopg.connect(source.url) as db:
        db.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (source.name,))
    assert "made anew" in look(watch, source).fault
    admin.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '16MB'")
    try:
        admin.execute("SELECT pg_reload_conf()")
        for _ in range(4):
            admin.execute("SELECT pg_logical_emit_message(false, '', ''), pg_switch_wal()")
        admin.execute("CHECKPOINT")
        assert "is lost: the database has removed log" in look(watch, source).fault
    finally:
        admin.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
        admin.execute("SELECT pg_reload_conf()")


async def test_a_snapshot_while_its_rows_change_and_connect_is_killed(
    settings: Settings, connect_url: str, source: Source, tmp_path: Path, stack: SessionStack
) -> None:
    """Every row changes once, somewhere around its chunk is read: a read row that overwrote a change would stay."""
    rows = 8_000
    with lake_of(settings, tmp_path, source) as mine, closing(Watch(mine)) as watch:
        lake = Lake(mine, source.name)
        file = source.write(
            **{"topic.creation.default.partitions": PARTITIONS, "incremental.snapshot.chunk.size": "32"}
        )
        prepare_source(mine, load_connector(file))
        with psycopg.connect(source.url, autocommit=True) as db:
            db.execute("INSERT INTO things SELECT n, 0 FROM generate_series(2, %s) n", (rows,))
            db.execute("ANALYZE things")
        assert watch.connect.apply(load_connector(file)).running
        target = snapshots.find(watch, mine, "public.things", source.name)
        async with running(mine):
            await until(lambda: len(lake.rows()) == rows)
            # Killed before Connect has kept its place, it would begin with another initial snapshot.
            await until(lambda: "lsn_proc" in source_offset(watch.connect, source.name))
            seen: list[Progress] = []
            enough = threading.Event()

            def show(parts: list[Progress]) -> None:
                seen.extend(parts)
                if parts and parts[0].rows > rows // 10:
                    enough.set()

            writer = asyncio.create_task(asyncio.to_thread(_change_every_row, source, rows))
            number = snapshots.execute(watch, mine, target, "public.things")
            await until(lambda: number in watch.notices.snapshots(target.notices))
            with pytest.raises(TerminalError, match="is running"):
                snapshots.execute(watch, mine, target, "public.things")
            await until(lambda: show(look(watch, source).snapshots) or enough.is_set())  # type: ignore[func-returns-value, arg-type]
            assert not watch.notices.snapshots(target.notices)[number].over, "the kill comes in the middle"
            os.kill(read_children(stack.home)["connect"].pid, signal.SIGKILL)
            await writer
            await until(lambda: _answers(watch), 90)
            done = await asyncio.to_thread(snapshots.follow, watch, target, number, show)
            assert done.state == "completed"
            assert {part.total for part in seen if part.kind == "incremental" and part.state == "running"} == {rows}
            await until(lambda: lake.rows() == of_database(source))
            assert set(of_database(source).values()) == {1}


def _change_every_row(source: Source, rows: int) -> None:
    order = list(range(1, rows + 1))
    random.Random(7).shuffle(order)
    with psycopg.connect(source.url, autocommit=True) as db:
        for start in range(0, rows, 50):
            db.execute("UPDATE things SET price = 1 WHERE id = ANY(%s)", (order[start : start + 50],))


def _answers(watch: Watch) -> bool:
    try:
        return watch.look() != []
    except Exception:
        return False


def until_true(what: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_snapshot_that_debezium_has_dropped_is_asked_for_again(
    settings: Settings, connect_url: str, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does so when the database goes away between two chunks; what is left of it is taken out of its place here."""
    source.file = tmp_path / "connectors" / "debezium" / "one.json"
    source.file.parent.mkdir(parents=True)
    mine = settings.model_copy(update={"content": [tmp_path], "databases": {source.name: source.url}})
    connector = load_connector(source.write(**{"incremental.snapshot.chunk.size": "4"}))
    prepare_source(mine, connector)
    with psycopg.connect(source.url, autocommit=True) as db:
        db.execute("INSERT INTO things SELECT n, 0 FROM generate_series(2, 9000) n")
    supervisor = Supervisor(mine, patience=8.0)
    watch, connect = supervisor.watch, supervisor.watch.connect
    connect.apply(connector)
    target = snapshots.find(watch, mine, "public.things", source.name)
    number = snapshots.execute(watch, mine, target, "public.things", "id > 5")

    def keeps_it() -> bool:
        return any(name.startswith("incremental_snapshot") for name in source_offset(connect, source.name))

    until_true(lambda: number in watch.notices.snapshots(target.notices) and keeps_it())
    stop(connect, source.name)
    place = connect.call("GET", f"/connectors/{source.name}/offsets")["offsets"]
    for one in place:
        kept = one["offset"].items()
        one["offset"] = {name: value for name, value in kept if not name.startswith("incremental_snapshot")}
    connect.call("PATCH", f"/connectors/{source.name}/offsets", body={"offsets": place})
    resume(connect, source.name)
    chunks = watch.notices.snapshots(target.notices)[number].updated
    begun = time.monotonic()
    until_true(lambda: connect.status(source.name).running)
    with pytest.raises(TerminalError, match="is running"):
        snapshots.execute(watch, mine, target, "public.things")
    monkeypatch.setattr(snapshots, "LOST_SECONDS", 0.0)
    with pytest.raises(TerminalError, match="no snapshot is under way"):
        snapshots.steer(watch, mine, target, "stop")
    while not watch.notices.known(target.notices)[number].over:
        assert time.monotonic() - begun < 200
        supervisor.step()
        if time.monotonic() - begun < 6:
            assert watch.notices.known(target.notices)[number].updated == chunks, "Debezium has forgotten it"
        time.sleep(0.2)
    done = watch.notices.known(target.notices)[number]
    assert (done.state, done.repeated) == ("completed", True)
    assert {table: scan.rows for table, scan in done.tables.items()} == {"public.things": 8995}
    watch.close()


def sample(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def test_a_failed_task_is_restarted_until_it_runs(
    settings: Settings, connect_url: str, source: Source, postgres_url: str, tmp_path: Path
) -> None:
    """The slot belongs to another database; each restart fails until it is gone."""
    source.file = tmp_path / "connectors" / "debezium" / "one.json"
    source.file.parent.mkdir(parents=True)
    connector = load_connector(source.write())
    now = 0.0
    mine = settings.model_copy(update={"content": [tmp_path], "databases": {source.name: source.url}})
    supervisor = Supervisor(mine, clock=lambda: now)

    def state(wanted: str) -> None:
        deadline = time.monotonic() + 30
        while supervisor.watch.connect.status(source.name).state != wanted:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    with psycopg.connect(postgres_url, autocommit=True) as db:
        db.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (source.name,))
        with pytest.raises(TerminalError):
            supervisor.watch.connect.apply(connector)
        supervisor.step()
        supervisor.step()
        assert supervisor.report()[0]["restarts"] == 0, "not before its time"
        now += LONGEST_SECONDS
        supervisor.step()
        assert supervisor.report()[0]["restarts"] == 1
        time.sleep(1.0)
        state("FAILED")
        operator = Operator.of(mine, tmp_path)
        rows, _ = operator.run("connect", "status", status=1)
        (row,) = (line.split("\t") for line in rows.splitlines() if line.startswith(source.name))
        assert row[1] == "FAILED"
        reason = supervisor.watch.connect.status(source.name).reason
        assert reason in row[-1]
        told, _ = operator.run("connect", "status", "--json", status=1)
        assert {one["name"]: one["state"] for one in json.loads(told)}[source.name] == "FAILED"
        trace, _ = operator.run("connect", "status", "--trace", source.name)
        assert "Caused by" in trace
        assert "\tat io.debezium." in trace, "whole"
        assert trace.strip() == supervisor.watch.connect.traces(source.name).strip()
        assert sample("headrace_cdc_connector_state", connector=source.name, state="FAILED") == 1
        db.execute("SELECT pg_drop_replication_slot(%s)", (source.name,))
    supervisor.step()
    now += LONGEST_SECONDS
    supervisor.step()
    state("RUNNING")
    supervisor.step()
    assert supervisor.report()[0]["restarts"] == 2, "running a moment is not running well"
    assert sample("headrace_cdc_restarts_total", connector=source.name) == 2
    assert sample("headrace_cdc_connector_state", connector=source.name, state="RUNNING") == 1
    now += LONGEST_SECONDS
    supervisor.step()
    assert supervisor.report()[0]["restarts"] == 0
    supervisor.watch.close()


def test_a_snapshot_that_connect_repeats_by_itself_is_stated_too(
    settings: Settings, connect_url: str, source: Source, tmp_path: Path
) -> None:
    """As after a crash between a snapshot and the first record of its place: Connect knows of nothing, begins anew."""
    source.file = tmp_path / "connectors" / "debezium" / "one.json"
    source.file.parent.mkdir(parents=True)
    connector = load_connector(source.write())
    mine = settings.model_copy(update={"content": [tmp_path], "databases": {source.name: source.url}})
    supervisor = Supervisor(mine)
    connect, topic = supervisor.watch.connect, f"{source.name}.public.things"
    connect.apply(connector)
    supervisor.step()
    stop(connect, source.name)
    end = admin.end_offsets(mine.kafka, [topic])[topic, 0]
    need_source(mine, source.name, connector.config).forget()
    forget_offset(connect, source.name)
    resume(connect, source.name)
    deadline = time.monotonic() + 40
    while admin.end_offsets(mine.kafka, [topic])[topic, 0] < end + 2:
        assert time.monotonic() < deadline
        supervisor.step()
        time.sleep(0.2)
    supervisor.step()
    consumer = Consumer({"bootstrap.servers": mine.kafka.bootstrap_servers, "group.id": uuid4().hex})
    consumer.assign([TopicPartition(topic, 0, end)])
    found = []
    while len(found) < 2:
        found += consumer.consume(10, 0.5)
        assert time.monotonic() < deadline
    consumer.close()
    assert [message.value() is None for message in found] == [False, True], "one row, one baseline"
    assert baseline.offset_of(found[1].key()) == end
    supervisor.watch.close()
