"""A content folder for each test, the worker as a real process, and an oracle that shares no code with it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastavro
import httpx
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from headrace.config import Settings
from headrace.kafka.admin import TopicSpec, ensure_topics

PARTITIONS = 4

READING: dict[str, Any] = {
    "type": "record",
    "name": "Reading",
    "owner": "tests",
    "key": ["device_id"],
    "event_time": "measured_at",
    "fields": [
        {"name": "device_id", "type": "string"},
        {"name": "seq", "type": "long", "rules": ["min 0"]},
        {"name": "measured_at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "temperature", "type": "double", "rules": ["between -60 90"]},
    ],
}

AGENT = """
from streams.agent import Agent
from streams.steps import deduplicate
{extra}
agent = Agent(
    name="{name}", source="{source}", output="{output}", steps=({steps})
)
"""


@dataclass
class Site:
    """One test's names and folder."""

    folder: Path
    settings: Settings
    tag: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    @property
    def source(self) -> str:
        return f"t{self.tag}.readings"

    @property
    def output(self) -> str:
        return f"t{self.tag}.clean"

    @property
    def agent(self) -> str:
        return f"clean{self.tag}"

    def write(self, *, steps: str = "", extra: str = "", once: bool = True) -> None:
        steps += 'deduplicate(keys=["device_id"], order="seq"),' if once else ""
        contracts = self.folder / "schemas" / "contracts"
        agents = self.folder / "streams" / "agents"
        for folder in (contracts, agents):
            folder.mkdir(parents=True, exist_ok=True)
        fields = [*READING["fields"], {"name": "source_offset", "type": "long"}]
        clean = {**READING, "name": "Clean", "topic": self.output, "fields": fields, "derived_from": [self.source]}
        (contracts / "reading.avsc").write_text(json.dumps({**READING, "topic": self.source}))
        (contracts / "clean.avsc").write_text(json.dumps(clean))
        (agents / "clean.py").write_text(
            AGENT.format(name=self.agent, source=self.source, output=self.output, steps=steps, extra=extra)
        )
        ensure_topics(self.settings.kafka, {self.source: TopicSpec(PARTITIONS)})

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "HEADRACE_HOME": str(self.folder / "home"),
            "HEADRACE_CONTENT": str(self.folder),
            "HEADRACE_KAFKA__BOOTSTRAP_SERVERS": self.settings.kafka.bootstrap_servers,
            "HEADRACE_REGISTRY__URL": self.settings.registry.url,
            "HEADRACE_WORKER__APPLICATION": f"g{self.tag}",
            "HEADRACE_WORKER__SESSION_TIMEOUT_SECONDS": "6",
            "HEADRACE_LOG_LEVEL": "INFO",
        }

    @contextlib.contextmanager
    def worker(self, name: str = "worker") -> Iterator[Worker]:
        worker = Worker(self, name)
        try:
            yield worker
        finally:
            worker.end()


class Worker:
    """`headrace run worker` as a process."""

    def __init__(self, site: Site, name: str) -> None:
        self.site = site
        self.log = site.folder / f"{name}-{uuid.uuid4().hex[:4]}.log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "cli.processes", "worker"],
                cwd=site.folder,
                env=site.environment(),
                stderr=out,
                stdout=out,
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()

    def wait_exit(self, seconds: float = 60) -> int:
        return self.process.wait(seconds)

    def text(self) -> str:
        return self.log.read_text()


def framed(schema_id: int, schema: Any, value: Mapping[str, Any]) -> bytes:
    out = io.BytesIO(b"\0" + schema_id.to_bytes(4, "big"))
    out.seek(5)
    fastavro.schemaless_writer(out, schema, value)
    return out.getvalue()


def _end(consumer: Consumer, place: TopicPartition) -> int:
    deadline = time.monotonic() + 30
    while True:
        try:
            end: int = consumer.get_watermark_offsets(place, 30)[1]
            return end
        except KafkaException as e:
            # A partition that was made a moment ago.
            if e.args[0].name() != "NOT_LEADER_FOR_PARTITION" or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


class Oracle:
    """Reads and writes topics with confluent-kafka, fastavro and the registry's HTTP API."""

    def __init__(self, settings: Settings) -> None:
        self.bootstrap = settings.kafka.bootstrap_servers
        self.registry = settings.registry.url
        self._schemas: dict[int, Any] = {}
        # The quarantine is everybody's: what was there before the test is not its business.
        ensure_topics(settings.kafka, {"ops.quarantine": TopicSpec()})
        self._quarantine_from = self.ends("ops.quarantine")

    def register(self, topic: str, schema: Mapping[str, Any]) -> int:
        answer = httpx.post(
            f"{self.registry}/subjects/{topic}-value/versions", json={"schema": json.dumps(schema)}, timeout=30
        )
        answer.raise_for_status()
        return int(answer.json()["id"])

    def schema(self, schema_id: int) -> Any:
        if schema_id not in self._schemas:
            answer = httpx.get(f"{self.registry}/schemas/ids/{schema_id}", timeout=30).raise_for_status()
            self._schemas[schema_id] = fastavro.parse_schema(json.loads(answer.json()["schema"]))
        return self._schemas[schema_id]

    def produce(self, topic: str, records: list[tuple[int, bytes | None, bytes | None]]) -> None:
        """(partition, key, value) each."""
        failed: list[str] = []

        def delivered(error: Any, _: Any) -> None:
            if error is not None:
                failed.append(error.str())

        producer = Producer({"bootstrap.servers": self.bootstrap, "linger.ms": 5, "compression.type": "lz4"})
        for partition, key, value in records:
            while True:
                try:
                    producer.produce(topic, value, key, partition, on_delivery=delivered)
                    break
                except BufferError:
                    producer.poll(0.1)
        assert producer.flush(60) == 0
        assert not failed, failed[0]

    def ends(self, topic: str) -> list[int]:
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": uuid.uuid4().hex})
        try:
            parts = consumer.list_topics(topic, 30).topics[topic].partitions
            return [_end(consumer, TopicPartition(topic, p)) for p in sorted(parts)]
        finally:
            consumer.close()

    def read(self, topic: str, starts: list[int] | None = None) -> list[tuple[int, int, bytes | None, dict[str, Any]]]:
        """(partition, offset, key, decoded value) of every record that is there, or from these offsets on."""
        consumer = Consumer(
            {"bootstrap.servers": self.bootstrap, "group.id": uuid.uuid4().hex, "enable.auto.commit": False}
        )
        found: list[tuple[int, int, bytes | None, dict[str, Any]]] = []
        try:
            ends = self.ends(topic)
            starts = starts or [0] * len(ends)
            left = {p for p, end in enumerate(ends) if end > starts[p]}
            consumer.assign([TopicPartition(topic, p, starts[p]) for p in left])
            while left:
                for message in consumer.consume(2000, 0.1):
                    assert message.error() is None, message.error()
                    value = message.value()
                    row = fastavro.schemaless_reader(
                        io.BytesIO(value[5:]), self.schema(int.from_bytes(value[1:5], "big")), None
                    )
                    found.append((message.partition(), message.offset(), message.key(), row))
                    if message.offset() + 1 >= ends[message.partition()]:
                        left.discard(message.partition())
            return found
        finally:
            consumer.close()

    def quarantined(self, stage: str) -> list[dict[str, Any]]:
        """Rows of the quarantine from one stage, repeats dropped as readers do: by their coordinates."""
        highest: dict[tuple[str, int], int] = {}
        rows = []
        for _, _, _, row in sorted(self.read("ops.quarantine", self._quarantine_from), key=lambda r: r[:2]):
            if row["stage"] != stage:
                continue
            lane = (row["source_topic"], row["source_partition"])
            if row["source_offset"] > highest.get(lane, -1):
                highest[lane] = row["source_offset"]
                rows.append(row)
        return rows


def readings(count: int, *, devices: int = 50, first: int = 0) -> list[dict[str, Any]]:
    now = int(time.time() * 1e6)
    return [
        {
            "device_id": f"d{i % devices:03d}",
            "seq": first + i // devices,
            "measured_at": now + i,
            "temperature": (i % 1000) / 10 - 40,
        }
        for i in range(count)
    ]


def accounted(oracle: Oracle, site: Site) -> tuple[Counter[tuple[int, int]], Counter[tuple[int, int]]]:
    """Coordinates in the output and coordinates in the quarantine."""
    out = Counter((partition, row["source_offset"]) for partition, _, _, row in oracle.read(site.output))
    refused = oracle.quarantined(f"agent:{site.agent}")
    return out, Counter((row["source_partition"], row["source_offset"]) for row in refused)


def wait_until_accounted(oracle: Oracle, site: Site, seconds: float = 60) -> None:
    """Returns when every record of the source is in the output or in the quarantine."""
    deadline = time.monotonic() + seconds
    while True:
        out, refused = accounted(oracle, site)
        ends = oracle.ends(site.source)
        left = sum(ends) - len(out.keys() | refused.keys())
        if not left:
            return
        assert time.monotonic() < deadline, f"{left} of {sum(ends)} records are nowhere"
        time.sleep(0.5)


def wait_until_ready(worker: Worker, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while '"ready"' not in worker.text():
        assert worker.process.poll() is None, worker.text()
        assert time.monotonic() < deadline, worker.text()
        time.sleep(0.1)
