from __future__ import annotations

import asyncio
import io
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import fastavro
import psycopg
import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from starlette.responses import Response

from headrace.config import Settings
from headrace.kafka.admin import end_offsets
from headrace.process import Lifecycle
from schemas.contracts import BUILTIN
from sinks.reverse.declaration import load_syncs
from sinks.reverse.service import run
from sinks.reverse.state import OFFSETS, StateLog, settled_to_json
from sinks.reverse.status import SyncStatus, ask_replay, reset, sync_status
from tests.integration.reverse.conftest import App
from tests.integration.reverse.world import Sources, until


@pytest.fixture
def sources(settings: Settings, app: App, database: str, tmp_path: Path) -> Sources:
    changes = {"content": [tmp_path], "home": tmp_path, "targets": {"crm": app.url, "db": database}}
    return Sources(settings.model_copy(update=changes), f"t{uuid4().hex[:10]}", tmp_path)


@asynccontextmanager
async def running(sources: Sources) -> AsyncIterator[Lifecycle]:
    lifecycle = Lifecycle()
    work = asyncio.create_task(run(sources.settings, lifecycle))
    try:
        yield lifecycle
    finally:
        lifecycle.stopping.set()
        await asyncio.wait_for(work, 40)


def look(sources: Sources, name: str) -> SyncStatus:
    sync = load_syncs(sources.settings.content)[f"{sources.name}_{name}"]
    return sync_status(sync, sources.settings.kafka)


def quarantined(sources: Sources) -> list[dict[str, Any]]:
    """Records of these syncs in `ops.quarantine`, read with other code than wrote them."""
    kafka = sources.settings.kafka
    schema = fastavro.parse_schema(json.loads((BUILTIN / "quarantined.avsc").read_text()))
    end = end_offsets(kafka, ["ops.quarantine"])["ops.quarantine", 0]
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": uuid4().hex})
    consumer.assign([TopicPartition("ops.quarantine", 0, 0)])
    found = []
    for message in consumer.consume(end, 10) if end else []:
        # What others wrote may be of another version of the schema.
        if f"sync:{sources.name}".encode() in message.value():
            found.append(fastavro.schemaless_reader(io.BytesIO(message.value()[5:]), schema, None))
    consumer.close()
    return found


def empty(settings: Settings, topic: str) -> None:
    """Let go of everything in a topic, as retention does."""
    admin = AdminClient({"bootstrap.servers": settings.kafka.bootstrap_servers})
    ends = end_offsets(settings.kafka, [topic])
    for future in admin.delete_records([TopicPartition(t, p, end) for (t, p), end in ends.items()]).values():
        future.result(10)


SQL = {
    "target": "db",
    "type": "sql",
    "http": None,
    "sql": {
        "table": "customers",
        "prepare": "CREATE TABLE IF NOT EXISTS customers"
        " (customer_id bigint PRIMARY KEY, name text, email text, spend double precision)",
    },
}


def rows_of(database: str) -> dict[str, Any]:
    with psycopg.connect(database) as db:
        if db.execute("SELECT to_regclass('customers')").fetchone() == (None,):
            return {}
        found = db.execute("SELECT customer_id, name, email, spend FROM customers").fetchall()
    return {str(i): {"name": n, "email": e, "spend": s} for i, n, e, s in found}


async def test_two_targets_follow_the_sources_and_none_waits_for_the_other(sources: Sources, app: App) -> None:
    sources.declare("http")
    sources.declare("sql", **SQL)
    for key in range(30):
        sources.change(key, f"n{key}", "a@b")
        sources.spend(key, key * 1.5)
    sources.spend(999, 1.0)
    sources.flush()
    database = sources.settings.targets["db"]
    async with running(sources) as lifecycle:
        await asyncio.to_thread(until, lambda: app.customers() == rows_of(database) == sources.expected())
        assert app.customers() == rows_of(database) == sources.expected()
        assert lifecycle.problems() == {}
        assert app.counts() == {"writes": 30}, "one request a row, however many records made it"

        app.answers.extend([Response("", 503)] * 10_000)
        for key in range(10):
            sources.change(key, f"new{key}", "c@d")
        sources.change(11, None)
        sources.emit(None, {"id": 12, "name": "a repeat of Connect's", "email": None}, 1)
        sources.flush()
        await asyncio.to_thread(until, lambda: rows_of(database) == sources.expected())
        assert rows_of(database) == sources.expected()
        assert app.customers() != sources.expected()
        assert "HTTP 503" in lifecycle.problems()[f"sync {sources.name}_http"]
        app.answers.clear()
        await asyncio.to_thread(until, lambda: app.customers() == sources.expected())
        assert app.customers() == sources.expected()
        await asyncio.to_thread(until, lambda: look(sources, "http").lag == 0)
        status = look(sources, "http")
        assert (status.rows, status.due, status.lag, status.refused) == (29, 0, 0, ())

    requests = len(app.requests)
    sync = load_syncs(sources.settings.content)[f"{sources.name}_http"]
    await asyncio.to_thread(reset, sync, sources.settings)
    sources.change(5, "after the reset", "a@b")
    sources.flush()
    empty(sources.settings, sources.values)
    async with running(sources):
        await asyncio.to_thread(until, lambda: app.customers() == sources.expected())
    assert app.customers() == sources.expected()
    assert len(app.requests) == requests + 1, "read anew, but only the difference is sent"


async def test_a_refusal_is_quarantined_and_replayed(sources: Sources, app: App) -> None:
    sources.declare("http")
    for key in range(5):
        sources.change(key, "n", "nowhere" if key == 2 else "a@b")
    sources.flush()
    async with running(sources):
        await asyncio.to_thread(until, lambda: len(look(sources, "http").refused) == 1 and len(app.customers()) == 4)
        status = look(sources, "http")
        assert (status.rows, len(status.refused)) == (4, 1)
        (one,) = await asyncio.to_thread(quarantined, sources)
        assert one["disposition"] == "quarantined"
        assert "HTTP 422" in one["reason"]
        assert json.loads(one["value"])["email"] == "nowhere"

        app.answers.append(Response("{}", 200))
        sync = load_syncs(sources.settings.content)[f"{sources.name}_http"]
        ask_replay(sync, sources.settings.kafka, [status.refused[0].key])
        await asyncio.to_thread(until, lambda: not look(sources, "http").refused)
        assert look(sources, "http").rows == 5
        keys = [key for method, path, key in app.requests if path == "/customers/2"]
        assert len(set(keys)) == len(keys) == 2, "a replay is a new attempt, under a key of its own"


async def test_another_topic_of_the_same_name_halts_the_sync_alone(sources: Sources, app: App) -> None:
    sources.declare("http")
    sources.change(1, "n", "a@b")
    sources.flush()
    async with running(sources):
        await asyncio.to_thread(until, lambda: look(sources, "http").rows == 1)
    log = StateLog(sources.settings.kafka, f"{sources.name}_http")
    state = await log.open()
    assert state.settled is not None
    state.settled.topics[sources.customers] = "another"
    await log.write({OFFSETS: settled_to_json(state.settled)})
    async with running(sources) as lifecycle:
        await asyncio.to_thread(until, lambda: "was created anew" in str(lifecycle.problems()))
        (problem,) = lifecycle.problems().values()
        assert "was created anew" in problem
        assert "headrace sync reset" in problem


def test_death_and_resurrection_change_nothing(sources: Sources, app: App) -> None:
    """Of two processes the one at work is killed, the next one frozen and thawed: the target is the fold, and each
    idempotency key works once."""
    sources.declare("http", batch_size=20)
    environment = os.environ | {
        "HEADRACE_KAFKA__BOOTSTRAP_SERVERS": sources.settings.kafka.bootstrap_servers,
        "HEADRACE_REGISTRY__URL": sources.settings.registry.url,
        "HEADRACE_TARGETS__CRM": app.url,
        "HEADRACE_CONTENT": json.dumps([str(sources.folder)]),
        "HEADRACE_HOME": str(sources.folder),
    }
    program = (
        "import sys, sinks.reverse.service as m, headrace.config as c, headrace.process as p;"
        "s = c.load_settings(); sys.exit(p.run_process(lambda l: m.run(s, l), s.process))"
    )
    dice = random.Random(3)
    processes: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        with (sources.folder / f"{len(processes)}.log").open("wb") as log:
            processes.append(subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=log, stdout=log))

    def owner(*but: int) -> int:
        """The process at work, none of these."""
        found: list[int] = []

        def look() -> bool:
            logs = [(sources.folder / f"{i}.log").read_text() for i in range(len(processes))]
            found[:] = [i for i, log in enumerate(logs) if "has the lock" in log and i not in but]
            return bool(found)

        until(look)
        assert found, trouble()
        return found[-1]

    def trouble() -> str:
        return "\n".join((sources.folder / f"{i}.log").read_text() for i in range(len(processes)))

    def load() -> None:
        for _ in range(150):
            key = dice.randrange(40)
            sources.change(key, None if dice.random() < 0.15 else f"v{sources.lsn}", "a@b")
            sources.spend(dice.randrange(40), dice.random())
        before = len(app.requests)
        sources.flush()
        until(lambda: len(app.requests) > before + 5)
        assert len(app.requests) > before, trouble()

    start()
    first = owner()
    start()
    try:
        load()
        processes[first].kill()
        processes[first].wait()
        second = owner(first)
        start()
        load()
        processes[second].send_signal(signal.SIGSTOP)
        owner(first, second)
        load()
        processes[second].send_signal(signal.SIGCONT)
        load()
        until(lambda: app.customers() == sources.expected(), 60)
        assert app.customers() == sources.expected(), trouble()
        assert "key_conflicts" not in app.counts()
        until(lambda: look(sources, "http").lag == 0)
        assert look(sources, "http").due == 0
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(40) for process in processes]
    assert sorted(codes) == [-signal.SIGKILL, 0, 0], trouble()
