"""A small shop's change topic, written as Debezium would, and a sink to land it."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
from pyiceberg.catalog import Catalog

from headrace.config import Settings
from headrace.kafka import ColumnarProducer, admin
from headrace.kafka.admin import TopicSpec
from headrace.kafka.client import producer_options
from headrace.process import Lifecycle
from schemas.codec import Encoder
from schemas.names import subject
from schemas.registry import Registry
from sinks.iceberg.catalog import find_table, open_catalog
from sinks.iceberg.service import run

PARTITIONS = 3
# When the source commits its first change; each is a millisecond later than the one before.
EPOCH_MS = 1_700_000_000_000


def row_schema(name: str, *extra: dict[str, Any]) -> dict[str, Any]:
    fields = [{"name": "id", "type": "long"}, {"name": "name", "type": ["null", "string"], "default": None}]
    return {"type": "record", "name": name, "fields": [*fields, *extra]}


def envelope(topic: str, *extra: dict[str, Any]) -> dict[str, Any]:
    source = [{"name": n, "type": "string"} for n in ("schema", "table")]
    source += [{"name": "lsn", "type": ["null", "long"], "default": None}]
    source += [{"name": "sequence", "type": ["null", "string"], "default": None}]
    source += [{"name": "ts_ms", "type": ["null", "long"], "default": None}]
    transaction = [{"name": "id", "type": "string"}, {"name": "total_order", "type": "long"}]
    return {
        "type": "record",
        "name": "Envelope",
        "namespace": topic,
        "fields": [
            {"name": "before", "type": ["null", row_schema("Value", *extra)], "default": None},
            {"name": "after", "type": ["null", "Value"], "default": None},
            {"name": "source", "type": {"type": "record", "name": "Source", "fields": source}},
            {"name": "op", "type": "string"},
            {
                "name": "transaction",
                "type": ["null", {"type": "record", "name": "Block", "fields": transaction}],
                "default": None,
            },
        ],
    }


KEY = {"type": "record", "name": "Key", "fields": [{"name": "id", "type": "long"}]}


@dataclass
class Shop:
    """Writes changes of table `things`, and remembers the state that they lead to."""

    settings: Settings
    prefix: str
    producer: ColumnarProducer
    state: dict[int, str | None] = field(default_factory=dict)
    sent: int = 0
    _lsn: int = 0
    _catalog: Catalog | None = None
    _encoders: dict[str, Encoder] = field(default_factory=dict)

    @property
    def topic(self) -> str:
        return f"{self.prefix}.public.things"

    @property
    def bronze(self) -> str:
        return f"bronze.{self.prefix}_public_things"

    @property
    def current(self) -> str:
        return f"silver.{self.prefix}_public_things"

    def event(self, op: str, number: int, name: str | None = None, **more: Any) -> dict[str, Any]:
        self._lsn += 1
        row = {"id": number, "name": name, **more}
        if op == "d":
            self.state.pop(number, None)
        else:
            self.state[number] = name
        return {
            "before": row if op == "d" else None,
            "after": None if op == "d" else row,
            "source": {
                "schema": "public",
                "table": "things",
                "sequence": f'["{self._lsn}","{self._lsn}"]',
                "lsn": 1,
                "ts_ms": EPOCH_MS + self._lsn,
            },
            "op": op,
            "transaction": {"id": "1", "total_order": 1},
        }

    async def send(self, events: Sequence[dict[str, Any]], schema: dict[str, Any] | None = None) -> None:
        """Each event to the partition of its key."""
        encode = await asyncio.to_thread(self._encoder, "value", schema or envelope(self.topic))
        keys = await asyncio.to_thread(self._encoder, "key", KEY | {"namespace": self.topic})
        sent = []
        for partition in range(PARTITIONS):
            mine = [e for e in events if (e["after"] or e["before"])["id"] % PARTITIONS == partition]
            if mine:
                ids = pa.RecordBatch.from_pylist([{"id": (e["after"] or e["before"])["id"]} for e in mine])
                values = encode.encode(pa.RecordBatch.from_pylist(mine, schema=encode.schema))
                sent += await self.producer.send_columns(self.topic, partition, keys.encode(ids), values)
        await asyncio.gather(*sent)
        self.sent += len(events)

    async def send_raw(self, partition: int, values: list[bytes | None]) -> None:
        column = pa.array(values, pa.binary())
        await asyncio.gather(*await self.producer.send_columns(self.topic, partition, None, column))
        self.sent += len(values)

    def _encoder(self, part: Any, schema: dict[str, Any]) -> Encoder:
        name = json.dumps(schema)
        if name not in self._encoders:
            registry = Registry(self.settings.registry.url)
            schema_id = registry.register(subject(self.topic, part), schema)
            registry.close()
            self._encoders[name] = Encoder(schema, schema_id)
        return self._encoders[name]

    def rows(self, table: str, *columns: str) -> list[tuple[Any, ...]]:
        self._catalog = self._catalog or open_catalog(self.settings.lake)
        found = find_table(self._catalog, table)
        if found is None:
            return []
        return [tuple(row.values()) for row in found.scan().to_arrow().select(list(columns)).to_pylist()]

    def state_landed(self) -> bool:
        """Both tables hold exactly what was sent."""
        bronze = self.rows(self.bronze, "_kafka_partition", "_offset")
        if len(bronze) < self.sent:
            return False
        assert len(bronze) == len(set(bronze)) == self.sent
        current = self.rows(self.current, "id", "name")
        assert len(current) == len({number for number, _ in current})
        return dict(current) == self.state

    async def until_landed(self, seconds: float = 30) -> None:
        async with asyncio.timeout(seconds):
            while not await asyncio.to_thread(self.state_landed):  # noqa: ASYNC110
                await asyncio.sleep(0.2)


class Proxy:
    """Carries one server's connections, or none, or requests without their answers."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.mode = "pass"
        self.cut = 0
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._close()

    def set(self, mode: str) -> None:
        self.mode = mode
        if mode == "refuse":
            self._close()

    def _close(self) -> None:
        self.cut += len(self._open)
        for writer in list(self._open):
            writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode == "refuse":
            writer.close()
            return
        back, forth = await asyncio.open_connection("127.0.0.1", self._target)
        mine = {writer, forth}
        self._open |= mine

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter, *, answers: bool) -> None:
            with suppress(OSError):
                while data := await source.read(1 << 16):
                    if answers and self.mode == "swallow":
                        self.cut += 1
                        break
                    target.write(data)
                    await target.drain()
            for each in mine:
                each.close()

        await asyncio.gather(pump(reader, forth, answers=False), pump(back, writer, answers=True))
        self._open -= mine


def made_settings(settings: Settings, folder: Path, prefix: str, **sink: Any) -> Settings:
    """The session's servers, with a content folder and a catalog database of the test's own."""
    connectors = folder / "connectors" / "debezium"
    connectors.mkdir(parents=True)
    (connectors / f"{prefix}.json").write_text(json.dumps({"name": prefix, "config": {"topic.prefix": prefix}}))
    with psycopg.connect(settings.postgres.url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{prefix}"')
    address, _, _ = settings.postgres.url.replace("postgresql://", "postgresql+psycopg://").rpartition("/")
    lake = settings.lake.model_copy(
        update={"uri": f"{address}/{prefix}", "warehouse": f"file://{folder}/warehouse", "properties": {}}
    )
    options = {"freshness_seconds": 0.3, "compact_every": 4, "exclude": ["kpi[.]values.*", "ops[.]quarantine.+"]}
    return settings.model_copy(
        update={
            "home": folder / "home",
            "content": [folder],
            "lake": lake,
            "sink": settings.sink.model_copy(update=options | sink),
        }
    )


@asynccontextmanager
async def opened_shop(settings: Settings, folder: Path, **sink: Any) -> AsyncIterator[Shop]:
    prefix = f"s{uuid.uuid4().hex[:8]}"
    mine = made_settings(settings, folder, prefix, **sink)
    await asyncio.to_thread(admin.ensure_topics, mine.kafka, {f"{prefix}.public.things": TopicSpec(PARTITIONS)})
    producer = ColumnarProducer(**producer_options(mine.kafka))
    await producer.start()
    try:
        yield Shop(mine, prefix, producer)
    finally:
        await producer.stop()
        with psycopg.connect(settings.postgres.url, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{prefix}" WITH (FORCE)')


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Lifecycle]:
    """The sink in this process, drained at the end; what it raises is raised here."""
    lifecycle = Lifecycle()
    task = asyncio.create_task(run(settings, lifecycle))
    try:
        yield lifecycle
        lifecycle.stopping.set()
        await asyncio.wait_for(task, 40)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(true: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until it is so; asked in a thread."""
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(true):  # noqa: ASYNC110  # what is asked for sets no event
            await asyncio.sleep(0.2)
