"""The process `kpi-sink`: keeps Redis, Prometheus and alerts as `kpi.values` says.

The place to read on from lies in Redis, beside the values it belongs to. While Redis is away nothing is read; when it
is back, work goes on from the place that is stored there, the beginning if nothing is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import TypeVar

import redis.exceptions
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from headrace import metrics
from headrace.config import Settings
from headrace.errors import HeadraceError, TransientError, UnavailableError
from headrace.kafka import Chunk, ColumnarConsumer
from headrace.kafka.admin import topic_ids
from headrace.kafka.client import consumer_options
from headrace.kafka.errors import from_client
from headrace.logs import get_logger
from headrace.process import Lifecycle
from schemas.codec import ChunkDecoder, arrow_schema
from schemas.contracts import load_contracts
from schemas.kpis import load_kpis
from schemas.registry import Registry
from sinks.kpi.board import Board
from sinks.kpi.store import Place, Store, Value

log = get_logger("kpi-sink")

TOPIC = "kpi.values"
FLOW = "kpi-sink"
PIECE = 500
"""Values that one run of the script writes: Redis serves nobody else meanwhile."""

LOOK_SECONDS = 5.0

T = TypeVar("T")

_PASSING = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.TryAgainError,
    OSError,
)


class Moved(Exception):
    """The place stored in Redis is not the one that was read up to."""


class KpiSink:
    def __init__(self, settings: Settings, lifecycle: Lifecycle) -> None:
        self._kafka = settings.kafka
        self._lifecycle = lifecycle
        self._kpis = load_kpis(settings.content)
        self._registry = Registry(settings.registry.url, settings.state / "schemas")
        self._decoder = ChunkDecoder(self._registry.schema, arrow_schema(load_contracts([]).by_topic[TOPIC].avro))
        self._redis = Redis.from_url(settings.redis.url, socket_timeout=10, socket_connect_timeout=5)
        self._store = Store(self._redis)
        self._tp = TopicPartition(TOPIC, 0)
        self._trouble: str | None = None
        lifecycle.checks["servers"] = lambda: self._trouble

    async def run(self) -> None:
        """Until the process is asked to stop."""
        self._consumer = ColumnarConsumer(headers=False, **consumer_options(self._kafka))
        try:
            if await self._patiently(self._start_consumer) is None:
                return
            while not self._lifecycle.stopping.is_set():
                board = Board(self._kpis)
                if await self._patiently(lambda b=board: self._begin(b)) is None:  # type: ignore[misc]
                    return
                REGISTRY.register(board)
                try:
                    self._lifecycle.ready()
                    await self._follow(board)
                except Moved:
                    log.warning("the place in Redis has moved; reading on from there")
                finally:
                    REGISTRY.unregister(board)
        except KafkaError as e:
            raise from_client(e, where=FLOW) from e
        finally:
            await self._consumer.stop()
            await self._redis.aclose()
            self._registry.close()

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T | None:
        """Try until it works; None when the process is asked to stop meanwhile."""
        pause = 0.1
        while True:
            try:
                found = await attempt()
                self._trouble = None
                return found
            except (TransientError, *_PASSING) as e:
                trouble = str(e) if isinstance(e, HeadraceError) else f"Redis: {type(e).__name__}"
                if self._trouble is None:
                    log.warning("will try again", what=trouble)
                self._trouble = trouble
                if await self._lifecycle.sleep(pause):
                    return None
                pause = min(2 * pause, 5.0)

    async def _start_consumer(self) -> bool:
        try:
            await self._consumer.start()
        except (KafkaError, OSError) as e:
            raise from_client(e, where=FLOW) from e
        return True

    async def _begin(self, board: Board) -> bool:
        """Find the place to read from, and take up what Redis holds."""
        identity = (await asyncio.to_thread(topic_ids, self._kafka, [TOPIC])).get(TOPIC)
        if identity is None:
            raise UnavailableError("nothing is published yet", where=TOPIC, hint="is the merger running?")
        self._place = await self._store.place()
        if self._place.next is not None and self._place.topic != identity:
            log.warning("kpi.values was created anew: values of the old one are removed")
            await self._store.clear(self._kpis)
            self._place = Place()
        self._identity = identity
        await self._store.declare(self._kpis.values())
        for name in self._kpis:
            board.put(await self._store.values(name))
        self._active = await self._store.alerting()
        self._consumer.assign([self._tp])
        begin = (await self._consumer.beginning_offsets([self._tp]))[self._tp]
        self._consumer.seek(self._tp, max(begin, self._place.next or 0))
        return True

    async def _follow(self, board: Board) -> None:
        """Raises `Moved` when Redis says that reading stands elsewhere."""
        looked = time.monotonic()
        while not self._lifecycle.stopping.is_set():
            if time.monotonic() - looked > LOOK_SECONDS:
                # A Redis that came back empty must not stay so until something changes.
                if await self._patiently(self._look) is None:
                    return
                looked = time.monotonic()
            fetched = await self._consumer.getmany(self._tp, timeout_ms=200)
            for chunk in fetched.get(self._tp, []):
                decoded = await self._patiently(lambda c=chunk: asyncio.to_thread(self._decode, c))  # type: ignore[misc]
                if decoded is None:
                    return
                for values, reached in self._pieces(chunk, *decoded):
                    if await self._patiently(lambda v=values, r=reached: self._write(v, r)) is None:  # type: ignore[misc]
                        return
                    board.put(values)
                self._measure(chunk)
            if fetched and await self._patiently(lambda: self._alert(board)) is None:
                return

    def _pieces(self, chunk: Chunk, values: list[Value], offsets: list[int]) -> Iterator[tuple[list[Value], Place]]:
        for first in range(0, max(len(values), 1), PIECE):
            last = first + PIECE >= len(values)
            reached = chunk.next_offset if last else offsets[first + PIECE]
            yield values[first : first + PIECE], Place(reached, self._identity)

    def _decode(self, chunk: Chunk) -> tuple[list[Value], list[int]]:
        decoded = self._decoder.decode(chunk.values)
        names = [name for name in Value.__dataclass_fields__]
        columns = [decoded.batch.column(name).to_pylist() for name in names]
        values = [Value(*row) for row in zip(*columns, strict=True)]
        dropped = len(decoded.bad) + len(decoded.nulls)
        if dropped:
            metrics.ROWS_DROPPED.labels(FLOW, TOPIC, "undecodable").inc(dropped)
        return values, chunk.offsets[decoded.rows].tolist()

    async def _write(self, values: list[Value], reached: Place) -> bool:
        """Raises `Moved`. After an unknown outcome the place tells whether it was written."""
        if not await self._store.write(self._place, reached, values) and await self._store.place() != reached:
            raise Moved
        self._place = reached
        return True

    async def _look(self) -> bool:
        """Raises `Moved`."""
        if await self._store.place() != self._place:
            raise Moved
        return True

    async def _alert(self, board: Board) -> bool:
        fired, over = board.alerts(self._active, datetime.now(UTC))
        if fired or over:
            await self._store.record_alerts(fired, over)
            self._active = {k: v for k, v in self._active.items() if k not in over} | fired
            for event in (*fired.values(), *over.values()):
                log.info("alert", state=event["state"], kpi=event["kpi"], severity=event["severity"])
        return True

    def _measure(self, chunk: Chunk) -> None:
        metrics.ROWS_IN.labels(FLOW, TOPIC).inc(len(chunk))
        metrics.ROWS_OUT.labels(FLOW, TOPIC).inc(len(chunk))
        end = self._consumer.highwater(self._tp)
        metrics.LAG.labels(FLOW, TOPIC).set(max(0, (end or 0) - chunk.next_offset))
        if len(chunk):
            newest = int(chunk.timestamps[-1]) / 1000
            metrics.LAST_RECORD.labels(FLOW, TOPIC).set(newest)
            metrics.FRESHNESS.labels(FLOW, TOPIC).observe(max(0.0, time.time() - newest))


async def run(settings: Settings, lifecycle: Lifecycle) -> None:
    """Sink `kpi.values` until the process is asked to stop. Raises `ContractError` for malformed declarations."""
    await KpiSink(settings, lifecycle).run()
