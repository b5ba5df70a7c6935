"""The process `headrace run sink`: every topic that has a table is read from its table's offsets and landed.

One consumer reads all partitions (assigned by hand: tables, not the group, say where), and each topic flows on its own.
New topics, partitions and connector files are found while running. A topic whose offsets no longer make sense (its log
was recreated, records were lost) halts alone, with its reason in the readiness page, until somebody decides; losing a
table to another writer ends the process.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from pyiceberg.catalog import Catalog

from headrace import metrics
from headrace.config import Settings
from headrace.errors import FencedError, HeadraceError, TransientError, unforeseen
from headrace.kafka import ColumnarConsumer, CorruptBatchError, DecompressionLimitError, admin
from headrace.kafka.client import consumer_options
from headrace.kafka.errors import from_client
from headrace.logs import get_logger
from headrace.process import Lifecycle
from schemas import codec
from schemas.captured import change_prefixes
from schemas.contracts import load_contracts
from schemas.registry import Registry
from sinks.iceberg.budget import IndexBudget
from sinks.iceberg.catalog import open_catalog
from sinks.iceberg.flow import TopicFlow, Workers
from sinks.iceberg.landings import holder, table_flow
from sinks.iceberg.memory import give_back
from sinks.iceberg.owned import Source
from sinks.iceberg.plan import Landing, clash, plan, shared
from sinks.iceberg.quarantine import Quarantine
from sinks.iceberg.reader import TopicReader

GROUP = "headrace-sink"

# What a fetch waits for: so many bytes, or this share of the shortest freshness target.
FETCH_BYTES, FETCHING, LONGEST_FETCH_WAIT = 512 << 10, 0.1, 0.5
DISCOVERY_SECONDS = 3.0
REPORT_SECONDS = 1.0
RETRY_SECONDS = 10.0
DRAIN_SECONDS = 20.0
# Memory of records read and not landed yet, of all topics together; beyond it the fullest topics are paused.
MAX_BUFFERED_BYTES = 96 << 20

log = get_logger("sink")


async def run(settings: Settings, lifecycle: Lifecycle) -> None:
    """Land topics until asked to stop, then land what was read and leave.

    Raises `FencedError` when another sink has taken a table, `ConfigError` for what is wrong from the start.
    """
    give_back()
    sink = Sink(settings, lifecycle)
    try:
        await sink.run()
    finally:
        await sink.close()


def fetch_wait(targets: Iterable[float]) -> float:
    """Seconds for which the broker may wait for more to send, given the freshness targets of all that one consumer
    reads: each answer costs as much as a thousand records in it."""
    return min(LONGEST_FETCH_WAIT, FETCHING * min(targets))


class Sink:
    """The running process: a consumer, the flows by topic, and why topics are halted."""

    def __init__(self, settings: Settings, lifecycle: Lifecycle) -> None:
        self._settings = settings
        self._lifecycle = lifecycle
        self._contracts = load_contracts(settings.content)
        self._prefixes = change_prefixes(settings.content)
        plan((), self._contracts, self._prefixes, settings.sink.exclude)
        self._registry = Registry(settings.registry.url, settings.state / "schemas")
        self._quarantine = Quarantine(settings.kafka, self._registry)
        self._decoder = ThreadPoolExecutor(1, "decode")
        self._writer = ThreadPoolExecutor(1, "write")
        self._consumer = self._new_consumer()
        self._catalog: Catalog | None = None
        self._budget = IndexBudget(settings.sink.max_index_bytes)
        self._flows: dict[str, TopicFlow] = {}
        # Reasons by topic; under "" why topics cannot be looked for.
        self._halted: dict[str, str] = {}
        self._retry_at: dict[str, float] = {}
        # Topics whose table is another's.
        self._clashing: set[str] = set()
        self._paused: set[TopicPartition] = set()
        # How often partitions were assigned.
        self._assigned = 0
        self._committed: dict[TopicPartition, int] = {}
        self._fatal: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        lifecycle.checks["topics"] = self._problems

    def _new_consumer(self) -> ColumnarConsumer:
        stated = (contract.freshness for contract in self._contracts.by_topic.values())
        wait = fetch_wait([self._settings.sink.freshness_seconds, *filter(None, stated)])
        return ColumnarConsumer(
            group_id=GROUP,
            client_id=self._settings.process.name,
            headers=False,
            **consumer_options(self._settings.kafka)
            | {"fetch_min_bytes": FETCH_BYTES, "fetch_max_wait_ms": int(wait * 1000)},
        )

    async def run(self) -> None:
        await asyncio.to_thread(codec.warm)
        if not await self._started():
            return
        work = [asyncio.create_task(part) for part in (self._discover(), self._read(), self._report())]
        stopping = asyncio.create_task(self._lifecycle.stopping.wait())
        try:
            ends: list[asyncio.Future[Any]] = [*work, stopping, self._fatal]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for done in (*work, self._fatal):
                if done.done():
                    done.result()
        finally:
            for task in (*work, stopping):
                task.cancel()
            await asyncio.gather(*work, stopping, return_exceptions=True)
        await self._drain()

    async def close(self) -> None:
        await asyncio.gather(*(flow.cancel() for flow in self._flows.values()))
        await self._consumer.stop()
        await self._quarantine.close()
        await asyncio.to_thread(self._writer.shutdown)
        await asyncio.to_thread(self._decoder.shutdown)
        self._registry.close()

    async def _started(self) -> bool:
        """Wait for Kafka and the catalog; false when asked to stop meanwhile."""
        while True:
            try:
                if self._catalog is None:
                    self._catalog = await asyncio.to_thread(open_catalog, self._settings.lake)
                await self._consumer.start()
                return True
            except (TransientError, KafkaError) as e:
                log.warning("waiting for a server", reason=str(e))
                await self._consumer.stop()
                self._consumer = self._new_consumer()
                if await self._lifecycle.sleep(1.0):
                    return False

    async def _discover(self) -> None:
        while True:
            try:
                try:
                    # What a file said counts until the process ends: its topics may hold changes that are not landed.
                    self._prefixes |= await asyncio.to_thread(change_prefixes, self._settings.content)
                finally:
                    await self._look_for_topics()
                self._halted.pop("", None)
                self._lifecycle.ready()
            except HeadraceError as e:
                if self._halted.get("") != str(e):
                    log.warning("cannot look for topics", reason=str(e))
                self._halted[""] = str(e)
            await asyncio.sleep(DISCOVERY_SECONDS)

    async def _look_for_topics(self) -> None:
        kafka = self._settings.kafka
        partitions = await asyncio.to_thread(admin.partitions, kafka)
        planned = plan(partitions, self._contracts, self._prefixes, self._settings.sink.exclude)
        await self._part(planned)
        cluster = await asyncio.to_thread(admin.cluster_id, kafka)
        ids = await asyncio.to_thread(admin.topic_ids, kafka, planned)
        gone = [t for t, flow in self._flows.items() if flow.identity != f"{cluster}/{ids.get(t)}"]
        for topic in gone:
            log.warning("the topic is not the one that was read", topic=topic)
            await self._drop(topic)
        if gone:
            # What is still being fetched is of the topic that was, and must not reach the new flow.
            self._assign()
        fresh = [topic for topic in ids if self._wants(topic, partitions[topic])]
        if not fresh and not gone:
            return
        begin, end = await asyncio.gather(
            asyncio.to_thread(admin.begin_offsets, kafka, fresh), asyncio.to_thread(admin.end_offsets, kafka, fresh)
        )
        for topic in fresh:
            source = Source(cluster, ids[topic], _of(topic, begin), _of(topic, end))
            await self._open(topic, planned[topic], source)
        self._assign()

    async def _part(self, planned: dict[str, tuple[Landing, ...]]) -> None:
        """Take out topics whose table is another's: they rest until it is gone."""
        assert self._catalog is not None
        loop, clashes = asyncio.get_running_loop(), dict[str, HeadraceError]()
        for table, topics in shared(planned).items():
            mine = await loop.run_in_executor(self._writer, holder, self._catalog, table, topics, self._flows)
            clashes |= {topic: clash(table, mine, topic) for topic in topics if topic != mine}
        for topic in self._clashing - clashes.keys():
            self._halted.pop(topic, None)
        self._clashing = set(clashes)
        for topic, error in clashes.items():
            planned.pop(topic)
            self._halt(topic, error)

    def _wants(self, topic: str, partitions: int) -> bool:
        """Whether a topic is new here, has got partitions, or was halted a while ago."""
        flow = self._flows.get(topic)
        if flow is not None:
            return len(flow.begin) < partitions
        return time.monotonic() >= self._retry_at.get(topic, 0.0)

    async def _open(self, topic: str, landings: tuple[Landing, ...], source: Source) -> None:
        flow = self._flows.get(topic)
        if flow is not None:
            flow.admit({p: offset for p, offset in source.begin.items() if p not in flow.begin})
            return
        assert self._catalog is not None
        sink = self._settings.sink
        tables = [table_flow(self._catalog, topic, landing, sink, self._budget) for landing in landings]
        keyed = any(landing.kind in ("current", "history") for landing in landings)
        reader = TopicReader(self._registry.schema, changes_of=topic if keyed else "")
        flow = TopicFlow(topic, tables, reader, self._quarantine, Workers(self._decoder, self._writer), self._failed)
        try:
            await flow.open(source)
        except HeadraceError as e:
            self._halt(topic, e)
            return
        self._halted.pop(topic, None)
        self._flows[topic] = flow
        log.info("landing", topic=topic, tables=[landing.table for landing in landings])

    def _assign(self) -> None:
        """Read every partition of every flow from where it is; aiokafka forgets positions when it is assigned anew."""
        at = {TopicPartition(t, p): offset for t, f in self._flows.items() for p, offset in f.fed.items()}
        self._consumer.assign(list(at))
        for tp, offset in at.items():
            self._consumer.seek(tp, offset)
        self._paused.clear()
        self._assigned += 1

    async def _read(self) -> None:
        while True:
            if not self._consumer.assignment():
                await asyncio.sleep(0.1)
                continue
            assigned = self._assigned
            try:
                fetched = await self._consumer.getmany(timeout_ms=200)
            except OffsetOutOfRangeError as e:
                for topic in {tp.topic for tp in e.args[0]}:
                    log.warning("offsets are not in the log any more", topic=topic)
                    await self._drop(topic)
                self._assign()
                continue
            except (CorruptBatchError, DecompressionLimitError) as e:
                await self._unreadable(e)
                continue
            except KafkaError as e:
                error = from_client(e)
                if not isinstance(error, TransientError):
                    raise error from e
                log.warning("waiting for Kafka", reason=str(error))
                await asyncio.sleep(1.0)
                continue
            # Let the next fetch leave before the chunks of this one are decoded.
            await asyncio.sleep(0)
            if assigned != self._assigned:
                # Partitions were put back meanwhile to what the flows had: these records are read once more.
                self._assign()
                continue
            for tp, chunks in fetched.items():
                flow = self._flows.get(tp.topic)
                if flow is not None:
                    for chunk in chunks:
                        flow.feed(chunk)
            self._balance()

    async def _unreadable(self, error: HeadraceError) -> None:
        """A batch that cannot be read halts its topic; a corrupt one is fetched again first."""
        topic = next((t for t in self._flows if error.where.startswith(f"{t}-")), None)
        if topic is None:
            raise error
        log.error("unreadable records", **error.as_dict())
        await self._drop(topic)
        self._halt(topic, error)
        self._assign()

    def _balance(self) -> None:
        """Pause the topics whose records come faster than they are decoded, until those that wait are few."""
        busy = [flow for flow in self._flows.values() if flow.nbytes]
        share = MAX_BUFFERED_BYTES / max(1, len(busy))
        assigned = self._consumer.assignment()
        for flow in self._flows.values():
            flow.limit(int(share))
            mine = {TopicPartition(flow.topic, p) for p in flow.begin} & assigned
            if flow.full and not mine <= self._paused:
                self._consumer.pause(*mine)
                self._paused |= mine
            elif flow.hungry and mine & self._paused:
                self._consumer.resume(*mine)
                self._paused -= mine

    async def _report(self) -> None:
        """Step 3 of the numbered order, for lag monitoring alone, and the lag itself."""
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            self._balance()
            self._measure_lag()
            await self._commit_group()

    def _measure_lag(self) -> None:
        assigned = self._consumer.assignment()
        for flow in self._flows.values():
            places = {p: TopicPartition(flow.topic, p) for p in flow.begin}
            # A halted topic is not assigned for a while: the client refuses to be asked about it.
            ends = {p: self._consumer.highwater(place) for p, place in places.items() if place in assigned}
            flow.unread = sum(max(0, end - flow.fed[p]) for p, end in ends.items() if end is not None)
            for table in flow.tables:
                have = table.table.offsets
                behind = sum(max(0, end - have.get(p, flow.begin[p])) for p, end in ends.items() if end is not None)
                metrics.LAG.labels(*table.flow).set(behind)

    async def _commit_group(self) -> None:
        landed = {TopicPartition(t, p): o for t, flow in self._flows.items() for p, o in flow.landed().items()}
        moved = {tp: offset for tp, offset in landed.items() if self._committed.get(tp) != offset}
        if not moved:
            return
        try:
            await self._consumer.commit(moved)
            self._committed |= moved
        except KafkaError as e:
            log.info("the group's offsets were not committed", reason=str(e))

    async def _drain(self) -> None:
        await asyncio.gather(*(flow.close(DRAIN_SECONDS) for flow in self._flows.values()))
        await self._commit_group()
        if self._fatal.done():
            self._fatal.result()

    async def _drop(self, topic: str) -> None:
        flow = self._flows.pop(topic, None)
        if flow is not None:
            await flow.cancel()

    def _failed(self, flow: TopicFlow, error: BaseException) -> None:
        """A flow's task has ended with an error: its topic halts, unless the error says that the process must end."""
        if isinstance(error, Exception) and not isinstance(error, FencedError | MemoryError):
            # What nobody foresaw concerns this topic alone as well: the others go on, and it is begun anew.
            self._halt(flow.topic, error if isinstance(error, HeadraceError) else unforeseen(error, where=flow.topic))
            self._flows.pop(flow.topic, None)
            _background(flow.cancel())
            self._assign()
        elif not self._fatal.done():
            self._fatal.set_exception(error)

    def _halt(self, topic: str, error: HeadraceError) -> None:
        """The topic rests for a while; its reason is logged once, and shown until it flows again."""
        if self._halted.get(topic) != str(error):
            log.error("topic halted", topic=topic, **error.as_dict())
        self._halted[topic] = str(error)
        self._retry_at[topic] = time.monotonic() + RETRY_SECONDS

    def _problems(self) -> str | None:
        found = defaultdict(list)
        for topic, reason in self._halted.items():
            found[topic].append(reason)
        for topic, flow in self._flows.items():
            found[topic] += flow.problems
        return "; ".join(f"{t}: {', '.join(r)}" if t else ", ".join(r) for t, r in sorted(found.items()) if r) or None


def _of(topic: str, offsets: Mapping[tuple[str, int], int]) -> dict[int, int]:
    return {partition: offset for (name, partition), offset in offsets.items() if name == topic}


_running: set[asyncio.Future[None]] = set()


def _background(work: Any) -> None:
    """Run to the end without waiting for it."""
    task = asyncio.ensure_future(work)
    _running.add(task)
    task.add_done_callback(_running.discard)
