"""From `kpi.values` to a Redis that dies and comes back empty, and what the command line shows of it."""

import asyncio
import contextlib
import json
import socket
import subprocess
import time
import uuid
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis
from typer.testing import CliRunner

from cli.kpi import app
from headrace.config import RedisSettings
from headrace.kafka import ColumnarProducer
from headrace.kafka.admin import TopicSpec, ensure_topics
from headrace.kafka.client import producer_options
from headrace.process import Lifecycle
from schemas.codec import Encoder, arrow_schema
from schemas.contracts import load_contracts
from schemas.registry import Registry
from sinks.kpi.service import TOPIC, KpiSink
from sinks.kpi.store import Store
from stack.servers.redis import BINARY

START = datetime(2026, 1, 1, tzinfo=UTC)


class RedisServer:
    """A Redis of this test's own, without anything on disk."""

    def __init__(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self):
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen([str(BINARY), *options], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        with contextlib.closing(socket.socket()) as probe:
            while probe.connect_ex(("127.0.0.1", self.port)):
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server():
    made = RedisServer()
    yield made
    made.kill()


class Publisher:
    """Writes to `kpi.values` as the merger does."""

    def __init__(self, settings, name):
        self.settings, self.name = settings, name
        self.avro = load_contracts([]).by_topic[TOPIC].avro
        registry = Registry(settings.registry.url)
        self.encoder = Encoder(self.avro, registry.register(f"{TOPIC}-value", self.avro))
        registry.close()
        ensure_topics(settings.kafka, {TOPIC: TopicSpec(1)})

    async def publish(self, values):
        """{(minute, country): value}"""
        rows = [
            {
                "kpi": self.name, "window_start": START + timedelta(minutes=minute),
                "window_end": START + timedelta(minutes=minute + 1), "group": json.dumps({"country": country}),
                "value": value, "unit": "EUR", "final": False, "revision": time.time_ns() // 1_000_000,
                "cut": '{"t":{"0":5}}', "source_topic": "t", "updated_at": START,
            }
            for (minute, country), value in values.items()
        ]  # fmt: skip
        encoded = self.encoder.encode(pa.RecordBatch.from_pylist(rows, schema=arrow_schema(self.avro)))
        keys = pa.array([f"{self.name}|{key}".encode() for key in values], pa.binary())
        producer = ColumnarProducer(**producer_options(self.settings.kafka))
        await producer.start()
        await asyncio.gather(*await producer.send_columns(TOPIC, 0, keys, encoded))
        await producer.stop()


@pytest.fixture
def site(tmp_path, settings, server):
    name = f"spend_{uuid.uuid4().hex[:8]}"
    folder = tmp_path / "streams" / "kpis"
    folder.mkdir(parents=True)
    (folder / f"{name}.toml").write_text(
        'title = "Spend"\nsource = "t"\nmeasure = "sum"\nfield = "amount"\ndimensions = ["country"]\nunit = "EUR"\n'
        'window = "1m"\nevent_time = "created_at"\n[[alerts]]\nop = ">"\nvalue = 100\nseverity = "critical"\n'
    )
    return settings.model_copy(
        update={"content": [tmp_path], "home": tmp_path / "home", "redis": RedisSettings(url=server.url)}
    ), name


async def kept(server, name):
    client = Redis.from_url(server.url)
    try:
        values = await Store(client).values(name)
        return {(v.window_start.minute, json.loads(v.group)["country"]): v.value for v in values}
    finally:
        await client.aclose()


async def until(check, seconds=30):
    deadline = time.monotonic() + seconds
    while not (found := await check()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    return found


async def test_redis_dies_and_comes_back_empty(site, server, monkeypatch):
    settings, name = site
    publisher = Publisher(settings, name)
    values = {(0, "DE"): 90.0, (0, "FR"): 120.5}
    await publisher.publish(values)
    lifecycle = Lifecycle()
    work = asyncio.ensure_future(KpiSink(settings, lifecycle).run())

    async def caught_up():
        assert not work.done(), work.result()
        return await kept(server, name) == values

    await until(caught_up)
    group = {"kpi": name, "group": "country=FR"}
    assert REGISTRY.get_sample_value("headrace_kpi_value", group) == 120.5
    client = Redis.from_url(server.url)
    alerts = await until(lambda: client.hgetall("kpi:alerting"))
    assert [json.loads(a)["severity"] for a in alerts.values()] == ["critical"]
    await client.aclose()

    server.kill()
    values |= {(0, "FR"): 80.0, (1, "DE"): 7.0}
    await publisher.publish({(0, "FR"): 80.0, (1, "DE"): 7.0})
    await until(lambda: asyncio.sleep(0, lifecycle.problems().get("servers")))
    server.start()
    await until(caught_up)
    assert "servers" not in lifecycle.problems()
    assert REGISTRY.get_sample_value("headrace_kpi_value", group) is None

    monkeypatch.setenv("HEADRACE_REDIS__URL", server.url)
    shown = await asyncio.to_thread(CliRunner().invoke, app, ["show", name, "--windows", "2", "--json"])
    assert [(v["group"]["country"], v["value"]) for v in json.loads(shown.output)["values"]] == [
        ("DE", 7.0), ("DE", 90.0), ("FR", 80.0),
    ]  # fmt: skip
    listed = json.loads((await asyncio.to_thread(CliRunner().invoke, app, ["list", "--json"])).output)
    assert [(row["name"], row["groups"], row["highest"]) for row in listed] == [(name, 1, 7.0)]

    lifecycle.stopping.set()
    await asyncio.wait_for(work, 10)
