"""The process `merger`: reads the changelogs, adds partitions up, publishes what changed to `kpi.values`.

It keeps nothing of its own: on restart it reads the changelogs again and publishes only what differs from the last
values in `kpi.values`. A revision is higher than all before it, over restarts too; two mergers at once (a rollout) do
no harm, since each value is exact at the cut that it names and readers keep the highest revision.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import pyarrow as pa
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from headrace import metrics
from headrace.config import Settings
from headrace.errors import TerminalError, TransientError, UnavailableError
from headrace.kafka import Chunk, ColumnarConsumer, ColumnarProducer
from headrace.kafka.admin import TopicSpec, end_offsets, ensure_topics, partitions
from headrace.kafka.client import consumer_options, producer_options
from headrace.kafka.errors import from_client
from headrace.logs import get_logger
from headrace.process import Lifecycle
from schemas.codec import ChunkDecoder, Encoder, arrow_schema
from schemas.contracts import load_contracts
from schemas.kpis import load_kpis
from schemas.names import subject
from schemas.registry import Registry
from streams.kpi.changelog import Writer, changelog_topic, value_key
from streams.kpi.contributions import Key
from streams.kpi.totals import Publication, Totals

log = get_logger("merger")

TOPIC = "kpi.values"
PUBLISH_SECONDS = 0.5
REFRESH_SECONDS = 3.0
EXPIRE_SECONDS = 300.0
SLICE = 50_000
"""Values of one encoded batch."""

# Values older than a week are in the lake; a KPI without windows that stood still for so long is published again.
_SPEC = TopicSpec(1, {"cleanup.policy": "compact,delete", "retention.ms": str(7 * 86_400_000)})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

T = TypeVar("T")


def instant(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)


def record_key(name: str, key: Key) -> bytes:
    """`kpi|window start|group`, "all" for a KPI without windows."""
    start = "all" if key[0] is None else instant(key[0]).isoformat()
    return f"{name}|{start}|{key[1]}".encode()


def rows(publications: Sequence[Publication], revision: int, schema: pa.Schema) -> pa.RecordBatch:
    """Records of `kpi.values`; all of them belong to one revision."""
    now = datetime.now(UTC)
    found = []
    for p in publications:
        start = p.key[0]
        found.append(
            {
                "kpi": p.kpi.name,
                "window_start": instant(start) if start is not None else None,
                "window_end": instant(start + (p.kpi.window_us or 0)) if start is not None else None,
                "group": p.key[1],
                "value": p.value,
                "unit": p.kpi.unit,
                "final": p.final,
                "revision": revision,
                "cut": p.cut,
                "source_topic": p.kpi.source,
                "updated_at": now,
            }
        )
    return pa.RecordBatch.from_pylist(found, schema=schema)


class Merger:
    """One instance adds up all KPIs. `run` works until the process is asked to stop."""

    def __init__(self, settings: Settings, lifecycle: Lifecycle) -> None:
        self._kafka = settings.kafka
        self._lifecycle = lifecycle
        self._application = settings.worker.application
        self._registry = Registry(settings.registry.url, settings.state / "schemas")
        self._contract = load_contracts([]).by_topic[TOPIC]
        self._totals = Totals(load_kpis(settings.content).values())
        self._sources = {
            changelog_topic(self._application, kpi.source): kpi.source for kpi in self._totals.kpis.values()
        }
        self._positions: dict[TopicPartition, int] = {}
        self._revision = 0
        self._trouble: str | None = None
        lifecycle.checks["kafka"] = lambda: self._trouble

    async def run(self) -> None:
        schema_id = await self._patiently(self._register)
        self._encoder = Encoder(self._contract.avro, schema_id)
        await self._patiently(lambda: asyncio.to_thread(ensure_topics, self._kafka, {TOPIC: _SPEC}))
        self._consumer = ColumnarConsumer(headers=False, **consumer_options(self._kafka))
        self._producer = ColumnarProducer(**producer_options(self._kafka))
        try:
            await self._patiently(lambda: _start(self._consumer))
            await self._patiently(lambda: _start(self._producer))
            await self._recall()
            await self._merge()
        except KafkaError as e:
            raise from_client(e, where="merger") from e
        finally:
            await self._consumer.stop()
            await self._producer.stop()
            self._registry.close()

    async def _register(self) -> int:
        return await asyncio.to_thread(self._registry.register, subject(TOPIC, "value"), self._contract.avro)

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try until it works; the health page says what is missing. Raises `TerminalError` when asked to stop."""
        pause = 0.1
        while True:
            try:
                found = await attempt()
                self._trouble = None
                return found
            except TransientError as e:
                self._trouble = str(e)
                if await self._lifecycle.sleep(pause):
                    raise TerminalError("stopped before it could start", where="merger") from e
                pause = min(2 * pause, 5.0)

    async def _recall(self) -> None:
        """Learn what was published before, and the highest revision."""
        tp = TopicPartition(TOPIC, 0)
        decoder = ChunkDecoder(self._registry.schema, arrow_schema(self._contract.avro))

        def take(chunk: Chunk) -> None:
            batch = decoder.decode(chunk.values).batch
            starts = batch.column("window_start").cast(pa.int64()).to_pylist()
            columns = (batch.column(n).to_pylist() for n in ("kpi", "group", "value", "final", "revision"))
            for start, name, group, value, final, revision in zip(starts, *columns, strict=True):
                self._totals.recall(name, (start, group), value, final=final)
                self._revision = max(self._revision, revision)

        self._consumer.assign([tp])
        await self._read_all([tp], take)
        self._positions = {}

    async def _read_all(self, tps: list[TopicPartition], take: Callable[[Chunk], None]) -> None:
        """From the beginnings to where the logs end now."""
        ends = await self._consumer.end_offsets(tps)
        position = await self._consumer.beginning_offsets(tps)
        for tp, at in position.items():
            self._consumer.seek(tp, at)
        while any(position[tp] < ends[tp] for tp in tps):
            for tp, chunks in (await self._consumer.getmany(timeout_ms=500)).items():
                for chunk in chunks:
                    await asyncio.to_thread(take, chunk)
                    position[tp] = chunk.next_offset
        self._positions = position

    def _take(self, chunk: Chunk) -> None:
        if not len(chunk):
            return
        at = int(chunk.timestamps[-1]) / 1000
        self._totals.feed(self._sources[chunk.topic], chunk.partition, chunk.keys, chunk.values, at)
        metrics.ROWS_IN.labels("merger", chunk.topic).inc(len(chunk))

    async def _merge(self) -> None:
        await self._patiently(self._refresh)
        await self._read_all(list(self._positions), self._take)
        self._lifecycle.ready()
        log.info("rebuilt", kpis=len(self._totals.kpis), partitions=len(self._positions), revision=self._revision)
        refreshed = expired = time.monotonic()
        published = 0.0
        while not self._lifecycle.stopping.is_set():
            if time.monotonic() - refreshed > REFRESH_SECONDS:
                await self._try_refresh()
                refreshed = time.monotonic()
            if time.monotonic() - published >= PUBLISH_SECONDS:
                published = time.monotonic()
                await self._publish()
            if time.monotonic() - expired > EXPIRE_SECONDS:
                await self._expire()
                expired = time.monotonic()
            await self._poll(max(0.02, PUBLISH_SECONDS - (time.monotonic() - published)))
        await self._publish()

    async def _poll(self, seconds: float) -> None:
        if not self._positions:
            await self._lifecycle.sleep(seconds)
            return
        for tp, chunks in (await self._consumer.getmany(timeout_ms=int(1000 * seconds))).items():
            for chunk in chunks:
                self._take(chunk)
                self._positions[tp] = chunk.next_offset

    async def _try_refresh(self) -> None:
        try:
            await self._refresh()
            self._trouble = None
        except UnavailableError as e:
            self._trouble = str(e)

    async def _refresh(self) -> None:
        """Find changelogs and partitions that are new, and where the sources end."""
        known = await asyncio.to_thread(partitions, self._kafka)
        present = {TopicPartition(topic, p) for topic in self._sources for p in range(known.get(topic, 0))}
        if present - self._positions.keys():
            self._positions = {tp: self._positions.get(tp, 0) for tp in present}
            self._consumer.assign(list(present))
            for tp, at in self._positions.items():
                self._consumer.seek(tp, at)
        sources = [source for source in set(self._sources.values()) if source in known]
        self._totals.ends(await asyncio.to_thread(end_offsets, self._kafka, sources))

    async def _publish(self) -> None:
        changed = self._totals.changed(time.time())
        if not changed:
            return
        self._revision = max(self._revision + 1, time.time_ns() // 1_000_000)
        schema = arrow_schema(self._contract.avro)
        sent = []
        for first in range(0, len(changed), SLICE):
            part = changed[first : first + SLICE]
            values = self._encoder.encode(rows(part, self._revision, schema))
            keys = pa.array([record_key(p.kpi.name, p.key) for p in part], pa.binary())
            sent += await self._producer.send_columns(TOPIC, 0, keys, values)
        await asyncio.gather(*sent)
        self._totals.keep(changed)
        metrics.ROWS_OUT.labels("merger", TOPIC).inc(len(changed))
        metrics.LAST_RECORD.labels("merger", TOPIC).set(time.time())

    async def _expire(self) -> None:
        """Take contributions out that no value needs any more."""
        found: dict[tuple[str, int], list[tuple[Writer, Key]]] = self._totals.expired()
        sent = []
        for (source, partition), entries in found.items():
            keys = pa.array([value_key(writer, key) for writer, key in entries], pa.binary())
            topic = changelog_topic(self._application, source)
            sent += await self._producer.send_columns(topic, partition, keys, pa.nulls(len(entries), pa.binary()))
        await asyncio.gather(*sent)
        if found:
            log.info("expired", contributions=sum(map(len, found.values())))


async def _start(client: ColumnarConsumer | ColumnarProducer) -> None:
    try:
        await client.start()
    except (KafkaError, OSError) as e:
        raise from_client(e, where="merger") from e


async def run(settings: Settings, lifecycle: Lifecycle) -> None:
    """Publish until the process is asked to stop. Raises `ContractError` for malformed declarations."""
    await Merger(settings, lifecycle).run()
