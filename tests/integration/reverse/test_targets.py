"""What every target must do; a new one needs a harness here and passes."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from confluent_kafka import Consumer, TopicPartition
from starlette.responses import Response

from headrace.config import KafkaSettings, Settings
from headrace.errors import ConfigError, FencedError, TerminalError
from headrace.kafka.admin import TopicSpec, ensure_topics
from sinks.reverse.declaration import Sync
from sinks.reverse.fold import Change, change_id, fingerprint, key_text
from sinks.reverse.targets import Done, Failed, Refused, Target, make_target
from tests.integration.reverse.conftest import App

BASE: dict[str, Any] = {
    "target": "there",
    "mode": "mirror",
    "key": ["id"],
    "timeout": 3.0,
    "sources": [{"topic": "t", "key": {"id": "id"}, "columns": ["name", "email"]}],
}


def change(key: int, row: dict[str, Any] | None, version: int) -> Change:
    op = "delete" if row is None else "upsert"
    whole = {"id": key} | (row or {})
    print_ = None if row is None else fingerprint(whole)
    name = change_id("s", key, op, version, print_)
    return Change(name, op, {"id": key}, whole, version, key_text((key,)), print_, f"t-0-{version}", 0)  # type: ignore[arg-type]


class Harness(ABC):
    """A target that can be looked into from outside. `bad` is a row that it refuses."""

    sync: Sync
    settings: Settings
    dead: str
    bad: dict[str, Any]

    @abstractmethod
    async def rows(self) -> dict[str, Any]: ...

    def make(self) -> Target:
        return make_target(self.sync, self.settings)

    def make_dead(self) -> Target:
        return make_target(self.sync, self.settings.model_copy(update={"targets": {"there": self.dead}}))


class HttpHarness(Harness):
    dead = "http://127.0.0.1:1"
    bad = {"name": "x", "email": "nowhere"}  # noqa: RUF012

    def __init__(self, app: App) -> None:
        body = {"name": "{name}", "email": "{email}"}
        self.sync = Sync.model_validate(
            BASE | {"name": "s", "type": "http", "http": {"path": "/customers/{id}", "body": body}}
        )
        self.settings = Settings(targets={"there": app.url})
        self.app = app

    async def rows(self) -> dict[str, Any]:
        return self.app.customers()


class SqlHarness(Harness):
    dead = "postgresql://nobody@127.0.0.1:1/none"
    bad = {"name": "far too long", "email": None}  # noqa: RUF012

    def __init__(self, url: str) -> None:
        prepare = 'CREATE TABLE IF NOT EXISTS "People" (id bigint PRIMARY KEY, name varchar(10), email text)'
        self.sync = Sync.model_validate(
            BASE | {"name": "s", "type": "sql", "sql": {"table": "People", "prepare": prepare}}
        )
        self.settings = Settings(targets={"there": url})
        self.url = url

    async def rows(self) -> dict[str, Any]:
        async with await psycopg.AsyncConnection.connect(self.url) as db:
            found = await db.execute('SELECT id, name, email FROM "People"')
            return {str(i): {"name": name, "email": email} async for i, name, email in found}


class KafkaHarness(Harness):
    dead = "kafka://127.0.0.1:1"
    bad = {"name": "x" * 1_100_000, "email": None}  # noqa: RUF012

    def __init__(self, kafka: KafkaSettings) -> None:
        self.topic = f"t{uuid4().hex[:10]}"
        ensure_topics(kafka, {self.topic: TopicSpec(2)})
        self.sync = Sync.model_validate(BASE | {"name": self.topic, "type": "kafka", "kafka": {"topic": self.topic}})
        self.settings = Settings(kafka=kafka)

    async def rows(self) -> dict[str, Any]:
        consumer = Consumer(
            {
                "bootstrap.servers": self.settings.kafka.bootstrap_servers,
                "group.id": uuid4().hex,
                "enable.partition.eof": True,
            }
        )
        rows: dict[str, Any] = {}
        for partition in (0, 1):
            consumer.assign([TopicPartition(self.topic, partition, 0)])
            while (message := consumer.poll(10)) is not None and message.error() is None:
                key = str(json.loads(message.key())["id"])
                assert dict(message.headers())["idempotency-key"]
                if message.value() is None:
                    rows.pop(key, None)
                else:
                    rows[key] = {k: v for k, v in json.loads(message.value()).items() if k != "id"}
            assert message is not None
        consumer.close()
        return rows


@pytest.fixture(params=["http", "sql", "kafka"])
def harness(request: pytest.FixtureRequest) -> Harness:
    if request.param == "http":
        return HttpHarness(request.getfixturevalue("app"))
    if request.param == "sql":
        return SqlHarness(request.getfixturevalue("database"))
    return KafkaHarness(request.getfixturevalue("settings").kafka)


@pytest.fixture
async def target(harness: Harness) -> AsyncIterator[Target]:
    made = harness.make()
    await made.open()
    yield made
    await made.close()


async def test_it_becomes_the_fold_however_often_it_is_told(harness: Harness, target: Target) -> None:
    first = [change(n, {"name": f"é{n}", "email": "a@b" if n % 2 else None}, 1) for n in range(20)]
    second = [change(3, {"name": "again", "email": None}, 2), change(4, None, 2), change(99, None, 2)]
    for changes in (first, second, second):
        assert await target.send(changes) == [Done()] * len(changes)
    rows = await harness.rows()
    expected = {str(c.row["id"]): {"name": c.row["name"], "email": c.row["email"]} for c in first}
    expected["3"] = {"name": "again", "email": None}
    del expected["4"]
    assert rows == expected


async def test_changes_of_one_key_keep_their_order(harness: Harness, target: Target) -> None:
    names = [f"v{n}" for n in range(10)]
    changes = [change(1, {"name": name, "email": None}, n) for n, name in enumerate(names)]
    changes.insert(5, change(1, None, 50))
    assert await target.send(changes) == [Done()] * 11
    assert await harness.rows() == {"1": {"name": "v9", "email": None}}


async def test_a_row_that_it_refuses_holds_no_other_up(harness: Harness, target: Target) -> None:
    good = {"name": "x", "email": None}
    outcomes = await target.send([change(1, good, 1), change(2, harness.bad, 1), change(3, good, 1)])
    assert [type(outcome) for outcome in outcomes] == [Done, Refused, Done]
    assert isinstance(outcomes[1], Refused)
    assert 0 < len(outcomes[1].response) < 600
    assert set(await harness.rows()) == {"1", "3"}


async def test_away_is_not_refused(harness: Harness) -> None:
    dead = harness.make_dead()
    outcomes = await dead.send([change(1, {"name": "x", "email": None}, 1)] * 2)
    assert [type(outcome) for outcome in outcomes] == [Failed, Failed]
    assert not any(outcome.counts for outcome in outcomes if isinstance(outcome, Failed))
    await dead.close()


async def test_http_statuses(app: App) -> None:
    target = HttpHarness(app).make()
    expected = {
        429: Failed("HTTP 429", 2.0),
        503: Failed("HTTP 503", 2.0),
        500: Failed("HTTP 500", counts=True),
        401: Failed("HTTP 401: the application does not accept the credentials"),
        404: Refused("HTTP 404: no"),
        302: Refused("HTTP 302: no"),
    }
    for status, outcome in expected.items():
        app.answers.append(Response("no", status, {"retry-after": "2"}))
        assert await target.send([change(1, {"name": "x", "email": None}, 1)]) == [outcome]
    app.answers.append(Response("", 404))
    assert await target.send([change(1, None, 1)]) == [Done()], "what is not there need not be deleted"
    await target.close()


async def test_http_keeps_the_order_of_a_key_when_one_fails(app: App) -> None:
    target = HttpHarness(app).make()
    app.answers.append(Response("", 503))
    rows = [change(1, {"name": name, "email": None}, n) for n, name in enumerate("abc")]
    outcomes = await target.send(rows)
    assert [type(outcome) for outcome in outcomes] == [Failed] * 3
    assert len(app.requests) == 1
    await target.close()


async def test_sql_fences_who_comes_late_and_survives_a_lost_connection(database: str) -> None:
    harness = SqlHarness(database)
    zombie, current = harness.make(), harness.make()
    await zombie.open()
    await current.open()
    assert await current.send([change(1, {"name": "new", "email": None}, 8)]) == [Done()]
    with pytest.raises(FencedError):
        await zombie.send([change(1, {"name": "old", "email": None}, 7)])
    assert await harness.rows() == {"1": {"name": "new", "email": None}}
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                   " AND datname = current_database()")  # fmt: skip
    outcomes = await current.send([change(2, {"name": "x", "email": None}, 9)])
    if outcomes != [Done()]:
        assert isinstance(outcomes[0], Failed)
        assert await current.send([change(2, {"name": "x", "email": None}, 9)]) == [Done()]
    await zombie.close()
    await current.close()


async def test_kafka_fences_who_comes_late(settings: Settings) -> None:
    harness = KafkaHarness(settings.kafka)
    zombie, current = harness.make(), harness.make()
    row = {"name": "old", "email": None}
    assert await zombie.send([change(1, row, 1)]) == [Done()]
    assert await current.send([change(1, row | {"name": "new"}, 2)]) == [Done()]
    with pytest.raises(FencedError):
        await zombie.send([change(1, row, 1)])
    assert await harness.rows() == {"1": row | {"name": "new"}}
    await current.close()
    await zombie.close()


async def test_sql_says_when_the_declaration_does_not_fit(database: str) -> None:
    harness = SqlHarness(database)
    wrong = harness.sync.model_dump() | {"sql": {"table": "nothing"}}
    target = make_target(Sync.model_validate(wrong), harness.settings)
    with pytest.raises(TerminalError) as e:
        await target.send([change(1, {"name": "x", "email": None}, 1)])
    assert "nothing" in e.value.what
    await target.close()


def test_a_target_needs_its_setting() -> None:
    sync = Sync.model_validate(BASE | {"name": "s", "type": "sql", "sql": {"table": "t"}})
    for targets in ({}, {"there": "http://x"}):
        with pytest.raises(ConfigError) as e:
            make_target(sync, Settings(targets=targets))
        assert e.value.where == "targets.there"
    http = Sync.model_validate(BASE | {"name": "s", "type": "http", "http": {"path": "/{id}"}})
    assert make_target(http, Settings(endpoints={"there": "http://x"})) is not None
