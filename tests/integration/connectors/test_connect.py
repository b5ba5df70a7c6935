from __future__ import annotations

import io
import json
import time
from typing import Any
from uuid import uuid4

import fastavro
import httpx
import psycopg
import pytest
from confluent_kafka import Consumer

from connectors.connect import Connect, load_connector
from headrace.errors import ConfigError, ContractError, TerminalError
from tests.integration.connectors.conftest import Source


def test_a_bad_file_gets_connects_own_words_and_the_field(source: Source, connect_url: str) -> None:
    client = Connect(connect_url)
    for setting, value, words in (
        ("slot.name", "A-B", "must contain only digits"),
        ("database.hostname", "${env:NO_SUCH_VARIABLE}", "Connect knows no 'NO_SUCH_VARIABLE'"),
        ("database.dbname", "no_such_database", "does not exist"),
        ("connector.class", "io.debezium.Nothing", "has no plugin"),
    ):
        with pytest.raises(ContractError) as e:
            client.apply(load_connector(source.write(**{setting: value})))
        assert words in e.value.what
        assert e.value.where.startswith(f"{source.file}:")
        if setting != "database.dbname":
            assert e.value.where == f"{source.file}:{setting}"
    with pytest.raises(ConfigError):
        client.status(source.name)


def test_from_a_file_to_changes_with_their_order(
    source: Source, connect_url: str, kafka: str, registry_url: str
) -> None:
    client, connector = Connect(connect_url), load_connector(source.write())
    assert client.plan(connector) == "create"
    assert client.apply(connector).running
    assert client.plan(connector) == "none"
    assert client.apply(connector).running
    with psycopg.connect(source.url) as db:
        db.execute("UPDATE things SET price = 0.07")
        db.execute("INSERT INTO things VALUES (2, NULL, NULL)")
        db.execute("DELETE FROM things WHERE id = 1")
        before = db.execute("SELECT confirmed_flush_lsn FROM pg_replication_slots").fetchall()
    events = _read(kafka, f"{source.name}.public.things", 5)
    decoded = [_decode(registry_url, value) for value in events]
    assert [d and (d["op"], (d["after"] or d["before"])["id"]) for d in decoded] == [
        ("r", 1),
        ("u", 1),
        ("c", 2),
        ("d", 1),
        None,
    ]
    assert str(decoded[1]["before"]["price"]) == "12.30"
    assert [d["transaction"]["total_order"] for d in decoded[1:4]] == [1, 2, 3]
    _await_flush(source, before)
    assert len(_read(kafka, f"{source.name}.public.things", 5)) == 5, "heartbeats are no events"


def test_a_task_that_fails_is_told_and_restarted(source: Source, connect_url: str, postgres_url: str) -> None:
    client, connector = Connect(connect_url), load_connector(source.write())
    with psycopg.connect(postgres_url, autocommit=True) as db:
        db.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (source.name,))
        with pytest.raises(TerminalError) as e:
            client.apply(connector)
        assert e.value.where == f"connector {source.name}"
        assert client.status(source.name).state == "FAILED"
        db.execute("SELECT pg_drop_replication_slot(%s)", (source.name,))
    client.restart(source.name)
    deadline = time.monotonic() + 30
    while not client.status(source.name).running:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    client.remove(source.name)
    with pytest.raises(ConfigError):
        client.status(source.name)


def _read(kafka: str, topic: str, count: int) -> list[bytes | None]:
    """Everything in the topic, once `count` records are there."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka,
            "group.id": uuid4().hex,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([topic])
    found: list[bytes | None] = []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and len(found) < count:
        found += [m.value() for m in consumer.consume(100, 0.5) if m.error() is None]
    found += [m.value() for m in consumer.consume(100, 0.5) if m.error() is None]
    consumer.close()
    return found


def _decode(registry_url: str, value: bytes | None) -> Any:
    if value is None:
        return None
    answer = httpx.get(f"{registry_url}/schemas/ids/{int.from_bytes(value[1:5], 'big')}").json()
    return fastavro.schemaless_reader(io.BytesIO(value[5:]), fastavro.parse_schema(json.loads(answer["schema"])), None)


def _await_flush(source: Source, before: list[tuple[object, ...]]) -> None:
    """The heartbeat moves the slot although the table is idle."""
    deadline = time.monotonic() + 20
    with psycopg.connect(source.url, autocommit=True) as db:
        while db.execute("SELECT confirmed_flush_lsn FROM pg_replication_slots").fetchall() == before:
            assert time.monotonic() < deadline
            time.sleep(0.2)
