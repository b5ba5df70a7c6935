"""kill -9 of each Java server: it comes back by itself and has kept what it acknowledged."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import paho.mqtt.client as mqtt
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from headrace.config import Settings
from stack.testing import SessionStack
from tests.integration.stack.test_supervision import kill, until


@pytest.fixture(scope="module")
def own() -> Iterator[SessionStack]:
    """A stack of this module's own: its servers get killed."""
    session = SessionStack()
    try:
        session.need("kafka", "registry", "artemis")
        yield session
    finally:
        session.close()


@pytest.fixture
def at(own: SessionStack) -> Settings:
    return own.settings()


def test_kafka_keeps_acknowledged_records(own: SessionStack, at: Settings) -> None:
    servers = {"bootstrap.servers": at.kafka.bootstrap_servers}
    topic = f"kept-{uuid.uuid4()}"
    admin = AdminClient(servers)
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(30)
    producer = Producer({**servers, "acks": "all"})
    for n in range(1000):
        producer.produce(topic, str(n))
    assert producer.flush(30) == 0
    kill(own.home, "kafka")
    consumer = Consumer({**servers, "group.id": topic, "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    found = [message.value() for message in consumer.consume(1000, timeout=60)]
    consumer.close()
    assert found == [str(n).encode() for n in range(1000)]


def test_the_registry_keeps_its_ids(own: SessionStack, at: Settings) -> None:
    def register(subject: str, name: str) -> int:
        schema = json.dumps({"type": "record", "name": name, "fields": [{"name": "a", "type": "long"}]})
        answer = httpx.post(f"{at.registry.url}/subjects/{subject}/versions", json={"schema": schema}, timeout=30)
        return int(answer.raise_for_status().json()["id"])

    ids = {name: register(f"{name}-value", name) for name in ("One", "Two", "Three")}
    kill(own.home, "registry")
    assert {name: register(f"{name}-value", name) for name in ids} == ids
    assert register("Four-value", "Four") not in ids.values()
    for name, number in ids.items():
        assert name in httpx.get(f"{at.registry.url}/schemas/ids/{number}", timeout=30).json()["schema"]


def test_mqtt_gives_again_what_was_not_acknowledged(own: SessionStack, at: Settings) -> None:
    """QoS 1 over kill -9 of the broker, for a subscriber that had received and for one that was away."""
    url, client, topic = urlsplit(at.mqtt.url), f"bridge-{uuid.uuid4()}", f"kept/{uuid.uuid4()}"
    got: list[bytes] = []

    def subscriber(acknowledge: bool) -> mqtt.Client:
        found = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=client, clean_session=False, manual_ack=True)
        found.on_connect = lambda c, *_: c.subscribe(topic, 1)

        def received(c: mqtt.Client, _: object, message: mqtt.MQTTMessage) -> None:
            got.append(message.payload)
            if acknowledge:
                c.ack(message.mid, message.qos)

        found.on_message = received
        found.connect(url.hostname or "", url.port or 0)
        found.loop_start()
        return found

    def publish(numbers: range) -> None:
        publisher = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        publisher.connect(url.hostname or "", url.port or 0)
        publisher.loop_start()
        for sent in [publisher.publish(topic, str(n), 1) for n in numbers]:
            sent.wait_for_publish(30)
        publisher.disconnect()
        publisher.loop_stop()

    silent = subscriber(acknowledge=False)
    until(silent.is_connected)
    time.sleep(0.3)
    publish(range(100))
    until(lambda: got)
    silent.disconnect()
    silent.loop_stop()
    publish(range(100, 200))
    kill(own.home, "artemis")
    got.clear()
    back = subscriber(acknowledge=True)
    until(lambda: len(set(got)) == 200)
    back.disconnect()
    back.loop_stop()
    assert {int(value) for value in got} == set(range(200))
