from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import orjson
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from connectors.mqtt import Bridge, routes
from connectors.payloads import Message
from headrace.process import Lifecycle
from schemas.contracts import load_contracts
from tests.integration.connectors.conftest import Own


def reading(device: int, seq: int) -> dict[str, Any]:
    return {
        "device_id": f"fr-{device:04d}",
        "seq": seq,
        "measured_at": 1700000000000 + seq,
        "temperature": 4.5,
        "door_open": False,
    }


class Publisher:
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2)
        self.client.max_inflight_messages_set(500)
        self.client.connect(str(parts.hostname), parts.port or 1883)
        self.client.loop_start()
        self.last: mqtt.MQTTMessageInfo | None = None

    def send(self, topic: str, payload: bytes) -> None:
        self.last = self.client.publish(topic, payload, qos=1)

    def close(self) -> None:
        if self.last is not None:
            self.last.wait_for_publish(30)
        self.client.disconnect()
        self.client.loop_stop()


def seqs(records: Iterable[Any]) -> Counter[int]:
    return Counter(r.row["seq"] for r in records if r.row)


async def until_ready(lifecycle: Lifecycle, work: asyncio.Task[None]) -> None:
    while lifecycle.problems():
        assert not work.done(), work.result()
        await asyncio.sleep(0.02)


async def test_messages_become_records_and_nothing_that_is_wrong_is_lost(own: Own, mqtt_url: str) -> None:
    """Each device's records are in the order in which the broker handed its messages over, which may not be that in
    which they were sent (ARTEMIS-6191): docs/adr/0011-artemis-as-mqtt-broker.md."""

    class Watched(Bridge):
        def _on_message(self, client: mqtt.Client, userdata: Any, message: mqtt.MQTTMessage) -> None:
            handed_over.append(bytes(message.payload))
            super()._on_message(client, userdata, message)

    handed_over: list[bytes] = []
    bridge = Watched(own.settings, routes(load_contracts(own.settings.content), {}), own.name)
    lifecycle = Lifecycle()
    work = asyncio.create_task(bridge.run(lifecycle))
    await asyncio.wait_for(until_ready(lifecycle, work), 30)
    publisher = Publisher(mqtt_url)
    for seq in range(200):
        publisher.send(f"{own.name}/fr-{seq % 7:04d}/reading", orjson.dumps(reading(seq % 7, seq)))
    publisher.send(f"{own.name}/x/reading", b'{"device_id": "fr-')
    publisher.send(f"{own.name}/x/reading", b'{"device_id": 5}')
    publisher.send(f"{own.name}/x/reading", b"y" * 1_100_000)
    publisher.send(f"{own.name}/x/other", b"not subscribed")
    await asyncio.to_thread(publisher.close)
    records = await asyncio.to_thread(own.read, lambda found: len(found) >= 203)
    lifecycle.stopping.set()
    await asyncio.wait_for(work, 15)
    assert seqs(records) == Counter(range(200))
    raw = [r for r in records if r.row is None]
    assert sorted(r.value[:18] for r in raw) == [b"1100000 bytes from", b'{"device_id": "fr-', b'{"device_id": 5}']
    arrived = [orjson.loads(payload)["seq"] for payload in handed_over if b'"seq"' in payload]
    assert sorted(arrived) == list(range(200)), "the broker sent nothing twice"
    for device in range(7):
        mine = [r for r in records if r.key == f"fr-{device:04d}".encode()]
        assert len({r.partition for r in mine}) == 1
        assert [r.row["seq"] for r in mine if r.row] == [s for s in arrived if s % 7 == device]


async def test_what_kafka_has_but_the_broker_was_not_told_comes_again(own: Own, mqtt_url: str) -> None:
    """Dies between Kafka's acknowledgement and PUBACK; then lives; then finds nothing left."""

    class Dying(Bridge):
        def _acknowledge(self, messages: Iterable[Message]) -> None:
            acknowledged.extend(messages)

    acknowledged: list[Message] = []
    filters = routes(load_contracts(own.settings.content), {})
    lifecycle = Lifecycle()
    first = Dying(own.settings, filters, own.name)
    work = asyncio.create_task(first.run(lifecycle))
    await asyncio.wait_for(until_ready(lifecycle, work), 30)
    publisher = Publisher(mqtt_url)
    for seq in range(100):
        publisher.send(f"{own.name}/d/reading", orjson.dumps(reading(1, seq)))
    await asyncio.to_thread(publisher.close)
    records = await asyncio.to_thread(own.read, lambda found: len(found) >= 100)
    assert seqs(records) == Counter(range(100)), "the fault did happen after Kafka had them"
    assert len(acknowledged) == 100
    lifecycle.stopping.set()
    await asyncio.wait_for(work, 15)

    for expected in (200, 200):
        lifecycle = Lifecycle()
        work = asyncio.create_task(Bridge(own.settings, filters, own.name).run(lifecycle))
        await asyncio.wait_for(until_ready(lifecycle, work), 30)
        records = await asyncio.to_thread(own.read, lambda found: len(found) >= 200)
        await asyncio.sleep(1)
        lifecycle.stopping.set()
        await asyncio.wait_for(work, 15)
        assert seqs(records) == Counter({seq: 2 for seq in range(100)}), expected


def test_no_message_is_lost_to_sigkill(own: Own, mqtt_url: str) -> None:
    environment = os.environ | {
        "HEADRACE_KAFKA__BOOTSTRAP_SERVERS": own.settings.kafka.bootstrap_servers,
        "HEADRACE_REGISTRY__URL": own.settings.registry.url,
        "HEADRACE_MQTT__URL": mqtt_url,
        "HEADRACE_WORKER__APPLICATION": own.name,
        "HEADRACE_CONTENT": json.dumps([str(own.settings.content[0])]),
        "HEADRACE_HOME": str(own.folder),
    }
    program = (
        "import sys, connectors.mqtt as m, headrace.config as c, headrace.process as p;"
        "s = c.load_settings(); sys.exit(p.run_process(lambda l: m.run(s, l), s.process))"
    )
    log = (own.folder / "bridge.log").open("wb")

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=log, stdout=log)

    process = start()
    assert own.read(lambda _: "subscribed" in (own.folder / "bridge.log").read_text()) == []
    publisher = Publisher(mqtt_url)
    total = 6000
    for seq in range(total):
        publisher.send(f"{own.name}/d/reading", orjson.dumps(reading(seq % 50, seq)))
        if seq in (1500, 3500):
            time.sleep(0.3)
            process.kill()
            process.wait()
            process = start()
        if seq % 50 == 0:
            time.sleep(0.02)
    publisher.close()
    records = own.read(lambda found: len(seqs(found)) == total, 60)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0, (own.folder / "bridge.log").read_text()
    found = seqs(records)
    assert set(found) == set(range(total))
    assert all(r.row for r in records)
