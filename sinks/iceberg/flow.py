"""One topic on its way into its tables: decoded, buffered a while, landed by each table on its own.

Nothing here is kept that a restart would miss: where a table is, its own properties say. What fails because a server is
away is tried again until it is back, with the same rows; meanwhile buffers fill, and the topic is paused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from aiokafka.errors import KafkaError

from headrace import metrics
from headrace.errors import HeadraceError, TransientError, UnavailableError
from headrace.kafka import Chunk
from headrace.kafka.errors import from_client
from headrace.logs import get_logger
from sinks.iceberg.applicable import KEY_RULE
from sinks.iceberg.gather import ENOUGH_BYTES, Gatherer, batches
from sinks.iceberg.marks import LOG_RULE
from sinks.iceberg.owned import TYPE_RULE, OwnedTable, Prepared, Source
from sinks.iceberg.quarantine import Quarantine
from sinks.iceberg.reader import TopicReader
from sinks.iceberg.slices import Slice

FIRST_WAIT, LONGEST_WAIT = 0.2, 10.0
# A table is committed before its freshness target by this share of it, which is left for the commit itself.
EARLY = 0.2
MAX_COMMIT_BYTES = 64 << 20
# Decoded records of one topic: one commit under way and the next one filling.
MAX_DECODED_BYTES = 2 * MAX_COMMIT_BYTES

# Rules that records break because their source has changed: so will those that follow.
CHANGED_RULES = (TYPE_RULE, LOG_RULE, KEY_RULE)

log = get_logger("sink")


@dataclass(frozen=True)
class Workers:
    """Where blocking work runs: decoding beside writing. One writer: commits of different tables take turns."""

    decoder: Executor
    writer: Executor


@dataclass(eq=False)
class TableFlow:
    """A table and the slices that wait for its next commit. `freshness` in seconds."""

    table: OwnedTable
    freshness: float
    max_rows: int
    next: dict[int, int] = field(default_factory=dict)
    waiting: list[Slice] = field(default_factory=list)
    rows: int = 0
    nbytes: int = 0
    due_bytes: int = MAX_COMMIT_BYTES
    since: float | None = None
    trouble: str | None = None
    # Why the last batch lost rows to the quarantine, if their source has changed.
    refused: str | None = None

    @property
    def flow(self) -> tuple[str, str]:
        """Labels of its metrics."""
        return f"sink {self.table.name}", self.table.topic

    def add(self, part: Slice, since: float) -> None:
        """Buffer what of `part` the table has not had yet; `since`: when it was there to be decoded (monotonic)."""
        mine = part.after(self.next.get(part.partition, part.start))
        if mine.next_offset <= self.next.get(part.partition, -1):
            return
        self.next[part.partition] = mine.next_offset
        self.waiting.append(mine)
        self.rows += len(mine)
        self.nbytes += mine.nbytes
        if self.since is None:
            self.since = since
        metrics.ROWS_IN.labels(*self.flow).inc(len(mine))

    def due_in(self) -> float | None:
        """Seconds until a commit is due, 0 for now; None when nothing waits."""
        if self.since is None:
            return None
        if self.rows >= self.max_rows or self.nbytes >= self.due_bytes:
            return 0.0
        return max(0.0, self.since + self.freshness * (1 - EARLY) - time.monotonic())

    def take(self) -> list[Slice]:
        """Everything that waits; the table must land it before anything else."""
        slices, self.waiting = self.waiting, []
        self.rows, self.since = 0, None
        return slices


class TopicFlow:
    """One topic's reader and tables, as tasks that run until `close` or a failure, which `failed` gets."""

    def __init__(
        self,
        topic: str,
        tables: list[TableFlow],
        reader: TopicReader,
        quarantine: Quarantine,
        workers: Workers,
        failed: Callable[[TopicFlow, BaseException], None],
    ) -> None:
        self.topic = topic
        self.tables = tables
        self.identity = ""
        self._topic_id = ""
        self.begin: dict[int, int] = {}
        # Next offset by partition: to be fed, and to be decoded.
        self.fed: dict[int, int] = {}
        self._read: dict[int, int] = {}
        self._reader = reader
        self._quarantine = quarantine
        self._workers = workers
        self._failed = failed
        self._chunks = Gatherer(min(flow.max_rows for flow in tables))
        # What was read is decoded once its commit is due.
        self._patience = (1 - EARLY) * min(flow.freshness for flow in tables)
        self._arrived = asyncio.Event()
        self._decoded = asyncio.Event()
        self._landed = asyncio.Event()
        self._room = MAX_DECODED_BYTES
        # Records in Kafka that have not been read, as of a moment ago.
        self.unread = 0
        self._tasks: list[asyncio.Task[None]] = []
        self.trouble: str | None = None

    async def open(self, source: Source) -> None:
        """Open the tables and start. Raises as `OwnedTable.open`, after all have been tried: each records its gaps."""
        loop = asyncio.get_running_loop()
        errors = []
        for flow in self.tables:
            try:
                flow.next = await loop.run_in_executor(self._workers.writer, flow.table.open, source)
            except HeadraceError as e:
                errors.append(e)
        if errors:
            raise errors[0]
        self.identity, self._topic_id = source.identity, source.topic_id
        self._start_at(source.begin)
        self._tasks = [asyncio.create_task(self._guard(self._decode()))]
        self._tasks += [asyncio.create_task(self._guard(self._land_all(flow))) for flow in self.tables]

    def admit(self, begin: Mapping[int, int]) -> None:
        """Take partitions that the topic has got since, from their beginning."""
        for flow in self.tables:
            for partition, offset in begin.items():
                flow.next[partition] = flow.table.admit(partition, offset)
        self._start_at(begin)

    def _start_at(self, begin: Mapping[int, int]) -> None:
        start = {p: min(flow.next[p] for flow in self.tables) for p in begin}
        self.begin |= begin
        self.fed |= start
        self._read |= start

    @property
    def nbytes(self) -> int:
        """Memory held by records that are not landed yet."""
        return self._chunks.nbytes + max((flow.nbytes for flow in self.tables), default=0)

    @property
    def full(self) -> bool:
        """Whether so much waits to be decoded that no more should be fed. What is full is decoded without waiting for
        more, and landed: it does not stay so."""
        return self._chunks.waiting_bytes >= 2 * self._chunks.enough_bytes

    @property
    def hungry(self) -> bool:
        """Whether little waits to be decoded."""
        return self._chunks.waiting_bytes < self._chunks.enough_bytes

    @property
    def problems(self) -> list[str]:
        """What keeps the topic from moving, if anything."""
        found = [self.trouble, *(text for flow in self.tables for text in (flow.trouble, flow.refused))]
        return [text for text in found if text]

    def limit(self, nbytes: int) -> None:
        """Hold no more than about `nbytes` of decoded records; commits come early where that is little."""
        self._room = min(nbytes, MAX_DECODED_BYTES)
        self._chunks.enough_bytes = max(1, min(ENOUGH_BYTES, nbytes // 4))
        for flow in self.tables:
            flow.due_bytes = self._room // 2

    def feed(self, chunk: Chunk) -> None:
        """Take the next chunk of a partition."""
        self._chunks.put(chunk)
        self.fed[chunk.partition] = chunk.next_offset

    def landed(self) -> dict[int, int]:
        """Next offset by partition that every table has committed."""
        offsets = [flow.table.offsets for flow in self.tables]
        return {p: min(o[p] for o in offsets) for p in self.begin if all(p in o for o in offsets)}

    async def close(self, patience: float) -> None:
        """Land what was fed, for at most `patience` seconds, then stop; what is not landed is read again next time."""
        self._chunks.end()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience)
        await self.cancel()

    async def cancel(self) -> None:
        """Stop at once, after the step that a worker thread is in."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _guard(self, work: Awaitable[None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except BaseException as e:
            self._failed(self, e)

    async def _decode(self) -> None:
        try:
            while True:
                since, chunks = await self._chunks.take(self._patience)
                if not chunks:
                    return
                for batch in batches(chunks):
                    await self._until_room()
                    slices = await self._read_batch(batch)
                    for flow in self.tables:
                        for part in slices:
                            flow.add(part, since)
                    self._arrived.set()
        finally:
            self._decoded.set()
            self._arrived.set()

    async def _read_batch(self, batch: list[Chunk]) -> list[Slice]:
        """Tried until it succeeds."""
        loop, wait = asyncio.get_running_loop(), FIRST_WAIT
        chunks = [(chunk, self._read[chunk.partition]) for chunk in batch]
        while True:
            try:
                slices = await loop.run_in_executor(self._workers.decoder, self._reader.read_all, chunks)
                break
            except TransientError as e:
                wait = await self._rest(wait, e, self)
        self.trouble = None
        self._read |= {chunk.partition: chunk.next_offset for chunk in batch}
        return slices

    async def _until_room(self) -> None:
        """Columns take several times the memory of the bytes that they are decoded from: those wait, these do not."""
        while max((flow.nbytes for flow in self.tables), default=0) >= self._room:
            self._arrived.set()
            self._landed.clear()
            await self._landed.wait()

    async def _land_all(self, flow: TableFlow) -> None:
        while True:
            due = flow.due_in()
            if self._decoded.is_set() and due is None:
                return
            if due is not None and (due == 0 or self._decoded.is_set()):
                landed = await self._land_in_stages(flow)
                await self._care(flow, busy=self.unread > landed)
                continue
            self._arrived.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), due)

    async def _land_in_stages(self, flow: TableFlow) -> int:
        """Land what waits; returns how many records that were."""
        landed = flow.rows
        for stage in flow.table.stages(flow.take()):
            await self._land(flow, stage)
        return landed

    async def _land(self, flow: TableFlow, slices: list[Slice]) -> None:
        """The numbered order for one batch; tried until it succeeds."""
        loop, writer = asyncio.get_running_loop(), self._workers.writer
        prepared: Prepared | None = None
        quarantined = False
        wait = FIRST_WAIT
        while True:
            started = time.perf_counter()
            try:
                if prepared is None:
                    prepared = await loop.run_in_executor(writer, flow.table.prepare, slices)
                if prepared.rejects and not quarantined:
                    await self._quarantine.send(prepared.rejects, self._topic_id)
                    quarantined = True
                await loop.run_in_executor(writer, flow.table.commit, prepared)
                break
            except TransientError as e:
                wait = await self._rest(wait, e, flow)
            except KafkaError as e:
                error = from_client(e, where="quarantine")
                if not isinstance(error, TransientError):
                    raise error from e
                wait = await self._rest(wait, error, flow)
        flow.trouble = None
        flow.nbytes -= sum(part.nbytes for part in slices)
        self._landed.set()
        self._measure(flow, prepared, time.perf_counter() - started)

    async def _care(self, flow: TableFlow, *, busy: bool) -> None:
        care = partial(flow.table.care, busy=busy)
        try:
            await asyncio.get_running_loop().run_in_executor(self._workers.writer, care)
        except UnavailableError as e:
            log.warning("maintenance put off", table=flow.table.name, reason=str(e))

    async def _rest(self, wait: float, error: TransientError, where: TableFlow | TopicFlow) -> float:
        """Wait before the next attempt; returns how long to wait after that one."""
        if where.trouble is None:
            log.warning("waiting for a server", topic=self.topic, reason=str(error))
        where.trouble = str(error)
        await asyncio.sleep(wait)
        return min(LONGEST_WAIT, wait * 2)

    def _measure(self, flow: TableFlow, prepared: Prepared, seconds: float) -> None:
        now, name = time.time(), flow.table.name
        metrics.COMMIT_SECONDS.labels(name).observe(seconds)
        metrics.LAST_COMMIT.labels(name).set(now)
        metrics.BATCH_ROWS.labels(*flow.flow).observe(sum(len(part) for part in prepared.slices))
        refused = 0
        changed = next((r.reasons[0] for r in prepared.rejects if r.rule in CHANGED_RULES and r.reasons), None)
        if changed is not None and flow.refused is None:
            log.error("rows go to the quarantine, as their source has changed", table=name, reason=changed)
        flow.refused = changed and f"rows go to the quarantine: {changed}"
        for reject in prepared.rejects:
            refused += len(reject.rows)
            metrics.ROWS_QUARANTINED.labels(*flow.flow, reject.rule).inc(len(reject.rows))
        for rule, dropped in (("replay", prepared.dropped), ("stale", prepared.stale)):
            metrics.ROWS_DROPPED.labels(*flow.flow, rule).inc(dropped)
        taken = sum(len(part) for part in prepared.slices)
        metrics.ROWS_OUT.labels(*flow.flow).inc(max(0, taken - refused - prepared.dropped - prepared.stale))
        newest = max((int(part.timestamps[-1]) for part in prepared.slices if len(part)), default=0) / 1000
        oldest = min((int(part.timestamps[0]) for part in prepared.slices if len(part)), default=0) / 1000
        if newest > 0:
            metrics.LAST_RECORD.labels(*flow.flow).set(newest)
            metrics.FRESHNESS.labels(*flow.flow).observe(max(0.0, now - oldest))
