"""No password in a connector file, in Connect's topics, in a log."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition

from connectors.connect import Connect, load_connector
from headrace.config import Settings
from headrace.kafka import admin
from stack.testing import SessionStack
from tests.integration.cdc.inventory import inventory

# Values that have a secret inside of them, as files may say them.
SECRETS = {
    "schema.history.internal.producer.sasl.jaas.config": "org.apache.kafka.common.security.plain.PlainLoginModule "
    'required username="u" password="%s";',
    "value.converter.basic.auth.user.info": "u:%s",
    "value.converter.schema.registry.url": "https://u:%s@registry:8081/",
}


@pytest.mark.parametrize("engine", ["postgres", "mariadb"])
def test_no_password_reaches_files_topics_or_logs(
    engine: str,
    settings: Settings,
    connect_url: str,
    stack: SessionStack,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    reference = f"${{env:{engine.upper()}_PASSWORD}}"
    inside = {setting: value % reference for setting, value in SECRETS.items()}
    with ExitStack() as made:
        if engine == "postgres":
            url, source = settings.postgres.url, request.getfixturevalue("source")
            connector = load_connector(source.write(**inside))
            told = connector.name
        else:
            url = request.getfixturevalue("mariadb_url")
            own = made.enter_context(inventory(settings, url, connect_url, tmp_path))
            own.configure(**inside)
            connector = own.connector
            told = f"sid:{connector.config['database.server.id']}"
        Connect(connect_url).apply(connector)
        found, logs = topics_and_logs(settings, stack, connector.name, told)
    password = unquote(urlsplit(url).password or "").encode()
    assert len(password) > 8
    assert found.count(reference.encode()) >= 1 + len(SECRETS)
    places = {"topics": found, "logs": logs, "file": connector.path.read_bytes()}
    assert [place for place, text in places.items() if password in text] == []


def topics_and_logs(settings: Settings, stack: SessionStack, name: str, told: str) -> tuple[bytes, bytes]:
    """All that Connect keeps in Kafka, and what all servers log, once that is `told` there."""
    deadline = time.monotonic() + 30
    found = b""
    left = set(admin.end_offsets(settings.kafka, ["connect.configs", "connect.status", "connect.offsets"]))
    consumer = Consumer(
        {"bootstrap.servers": settings.kafka.bootstrap_servers, "group.id": uuid4().hex, "enable.partition.eof": True}
    )
    consumer.assign([TopicPartition(*place, 0) for place in left])
    while left:
        assert time.monotonic() < deadline, f"not read to their ends: {left}"
        for message in consumer.consume(500, 0.5):
            if message.error():
                assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                left.discard((message.topic(), message.partition()))
            else:
                found += (message.key() or b"") + (message.value() or b"")
    consumer.close()
    assert name.encode() in found
    while True:
        logs = b"".join(path.read_bytes() for path in (stack.home / "logs").glob("*.log*"))
        if told.encode() in logs:
            return found, logs
        assert time.monotonic() < deadline, f"no log has {told}"
        time.sleep(0.2)
