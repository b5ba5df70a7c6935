"""The cold chain: refrigerated units that publish their readings over MQTT, as imperfectly as devices do.

Most messages are fine. Now and then a unit overheats, loses its network and sends what it kept later, repeats itself,
or sends nonsense; now and then an unknown unit speaks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from urllib.parse import unquote, urlsplit

import orjson
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from prometheus_client import Counter

from demo.model import Unit, fleet
from demo.options import options
from headrace.config import Settings
from headrace.errors import ConfigError
from headrace.logs import get_logger
from headrace.process import Lifecycle

PUBLISHED = Counter("headrace_demo_readings_published", "Messages of the simulated devices", ("kind",))


@dataclass
class Device:
    """One unit. `seq` counts its readings and starts at the epoch's milliseconds, so a restart repeats none."""

    unit: Unit
    random: Random
    seq: int
    temperature: float = field(init=False)
    battery: float = field(init=False)
    excursion: float = 0.0
    offline_until: float = 0.0
    kept: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.temperature = (self.unit.low + self.unit.high) / 2
        self.battery = self.random.uniform(40, 100)

    def measure(self, now: float) -> dict[str, object]:
        """Advance the unit's physics by one reading at `now` (seconds since the epoch)."""
        unit, random = self.unit, self.random
        if self.excursion <= 0.01 and random.random() < 0.002:
            self.excursion = (unit.high - unit.low) * random.uniform(0.8, 2.0)
        self.excursion *= 0.97
        middle = (unit.low + unit.high) / 2
        self.temperature += 0.1 * (middle + self.excursion - self.temperature) + random.gauss(0, 0.08)
        self.battery = self.battery - 0.002 if self.battery > 5 else 100.0
        self.seq += 1
        return {
            "device_id": unit.id,
            "seq": self.seq,
            "measured_at": round(now * 1000),
            "temperature": round(self.temperature, 2),
            "humidity": round(55 + 10 * math.sin(now / 600) + random.gauss(0, 1), 1),
            "door_open": random.random() < (0.3 if self.excursion > 1 else 0.02),
            "battery": round(self.battery, 1),
        }

    def publish(self, now: float) -> Iterator[tuple[str, str, bytes]]:
        """What the unit sends now: (kind, topic, payload) a message; nothing while its network is away."""
        topic, random = f"coldchain/{self.unit.id}/reading", self.random
        reading = self.measure(now)
        draw = random.random()
        if draw < 0.002:
            reading |= {"temperature": random.choice((-273.0, 250.0))}
            yield "out_of_range", topic, orjson.dumps(reading)
        elif draw < 0.004:
            yield "malformed", topic, orjson.dumps(reading)[: random.randint(1, 60)]
        elif draw < 0.006:
            yield "malformed", topic, orjson.dumps(reading | {"temperature": "warm"})
        elif draw < 0.008:
            yield "unknown", "coldchain/zz-0000/reading", orjson.dumps(reading | {"device_id": "zz-0000"})
        elif now < self.offline_until or draw < 0.0085:
            if not self.kept:
                self.offline_until = now + random.uniform(20, 90)
            self.kept.append(orjson.dumps(reading))
        else:
            yield from (("late", topic, payload) for payload in self.kept)
            self.kept.clear()
            payload = orjson.dumps(reading)
            yield "reading", topic, payload
            if draw > 0.995:
                yield "repeated", topic, payload


def connect(url: str, client_id: str) -> mqtt.Client:
    """A client that connects (and reconnects) in its own thread. Raises `ConfigError` when the URL is no mqtt one."""
    parts = urlsplit(url)
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
        raise ConfigError("must be mqtt://host:port or mqtts://host:port", where="mqtt.url")
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=False)
    if parts.username:
        client.username_pw_set(unquote(parts.username), unquote(parts.password or ""))
    if parts.scheme == "mqtts":
        client.tls_set()
    client.reconnect_delay_set(1, 5)
    client.max_queued_messages_set(100_000)
    client.connect_async(parts.hostname, parts.port or (8883 if parts.scheme == "mqtts" else 1883))
    return client


async def run(settings: Settings, lifecycle: Lifecycle) -> None:
    """Publish at QoS 1 until the process stops. What the broker has not taken waits in memory, a bounded number."""
    plan, log = options(), get_logger("demo.devices")
    random = Random(plan.seed)
    first = time.time_ns() // 10**6
    devices = [Device(unit, Random(random.random()), first) for unit in fleet(plan.devices, plan.customers, plan.seed)]
    client = connect(settings.mqtt.url, "headrace-demo-devices")
    lifecycle.checks["mqtt"] = lambda: None if client.is_connected() else "broker is away"
    client.loop_start()
    lifecycle.ready()
    log.info("publishing", devices=len(devices), rate=plan.device_rate)
    interval, due, turn = 1 / plan.device_rate, time.monotonic(), 0
    last: mqtt.MQTTMessageInfo | None = None
    while not lifecycle.stopping.is_set():
        device = devices[turn % len(devices)]
        turn += 1
        for kind, topic, payload in device.publish(time.time()):
            last = client.publish(topic, payload, qos=1)
            PUBLISHED.labels(kind).inc()
        due = max(due + interval, time.monotonic() - 1)
        if due > time.monotonic():
            await lifecycle.sleep(due - time.monotonic())
    if last is not None and last.rc == mqtt.MQTT_ERR_SUCCESS and client.is_connected():
        last.wait_for_publish(2)
    client.disconnect()
    client.loop_stop()
