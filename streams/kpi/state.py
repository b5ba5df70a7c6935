"""The state agent: keeps the contributions of a source's partitions to its KPIs, exact after any kill.

State lives in memory and in the source's changelog. When a partition arrives, its changelog is read back, contributions
and progress together, and the source is read from that progress on, whatever the group has committed; a KPI that is new
or was declared anew begins at the start of the log while the others skip what they have had. After each chunk one
record batch is written, and only when the broker has acknowledged it does memory follow.

Nobody fences a worker that lost its partition and does not know: it may still write. The broker says at which offset
each batch landed, so a writer that finds one not where its own last batch ended reads the changelog again, goes on from
the furthest state in it, and repeats what an older value has been written over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from headrace import metrics
from headrace.config import Settings
from headrace.errors import ContractError, IdentityError, TerminalError
from headrace.kafka import BatchTooLargeError, Chunk, ColumnarConsumer, ColumnarProducer
from headrace.kafka.admin import begin_offsets, end_offsets, topic_ids
from headrace.kafka.client import consumer_options, producer_options
from headrace.kafka.errors import from_client
from headrace.logs import get_logger
from schemas.codec import ChunkDecoder
from schemas.kpis import Kpi
from schemas.registry import Registry
from streams.kpi.changelog import MAX_BATCH_BYTES, Fold, changelog_topic, encode, ensure_changelog, value_key
from streams.kpi.contributions import Change, Events, Key, Meter, Progress, Share, is_closed
from streams.processor import Committed, Processor

log = get_logger("kpi")

TOMBSTONES = 1000
"""Records of an earlier declaration that one batch takes out beside what it is for."""

_ENDLESS = 2**62


class Changelog:
    """Writes one source's changelog and reads it back."""

    def __init__(self, settings: Settings, source: str) -> None:
        self._kafka = settings.kafka
        self._application = settings.worker.application
        self._source = source
        self.topic = changelog_topic(settings.worker.application, source)
        self._producer: ColumnarProducer | None = None

    async def start(self) -> None:
        """Raises `UnavailableError` when Kafka does not answer."""
        producer = ColumnarProducer(**producer_options(self._kafka) | {"max_request_size": MAX_BATCH_BYTES})
        try:
            await producer.start()
        except (KafkaError, OSError) as e:
            await producer.stop()
            raise from_client(e, where=self.topic) from e
        self._producer = producer

    async def stop(self) -> None:
        if self._producer is not None:
            producer, self._producer = self._producer, None
            await producer.stop()

    async def ensure(self) -> None:
        await asyncio.to_thread(ensure_changelog, self._kafka, self._application, self._source)

    async def write(self, partition: int, keys: pa.BinaryArray, values: pa.BinaryArray) -> int:
        """Append one record batch; returns its first offset once all replicas have it.

        Raises `BatchTooLargeError` before anything is sent, and `TerminalError` for a batch that may or may not be in
        the log: whoever starts anew finds out.
        """
        if self._producer is None:
            raise TerminalError("not started", where=self.topic)
        try:
            (sent,) = await self._producer.send_columns(self.topic, partition, keys, values, atomic=True)
            return int((await sent).offset)
        except KafkaError as e:
            raise TerminalError(
                f"state was not acknowledged: {type(e).__name__}", where=f"{self.topic}-{partition}"
            ) from e

    async def read(self, partition: int) -> tuple[Fold, int]:
        """All of a partition's changelog and the offset that the next batch should get. Raises `UnavailableError`."""
        fold, position = Fold(), 0
        async for chunk in self._chunks(partition, None):
            fold.feed(chunk.keys, chunk.values)
            position = chunk.next_offset
        return fold, position

    async def only_tombstones(self, partition: int, start: int, stop: int) -> bool:
        """Whether all records from `start` to before `stop` are tombstones. Raises `UnavailableError`."""
        async for chunk in self._chunks(partition, start):
            mine = chunk.slice(0, int(np.searchsorted(chunk.offsets, stop)))
            if mine.values.null_count < len(mine):
                return False
            if chunk.next_offset >= stop:
                break
        return True

    async def _chunks(self, partition: int, start: int | None) -> AsyncIterator[Chunk]:
        """Chunks up to where the log ends now, from `start` or from its beginning."""
        tp = TopicPartition(self.topic, partition)
        consumer = ColumnarConsumer(headers=False, **consumer_options(self._kafka))
        try:
            await consumer.start()
            consumer.assign([tp])
            end = (await consumer.end_offsets([tp]))[tp]
            position = (await consumer.beginning_offsets([tp]))[tp] if start is None else start
            consumer.seek(tp, position)
            while position < end:
                for chunk in (await consumer.getmany(tp, timeout_ms=500)).get(tp, []):
                    position = chunk.next_offset
                    yield chunk
        except (KafkaError, OSError) as e:
            raise from_client(e, where=f"{self.topic}-{partition}") from e
        finally:
            await consumer.stop()


@dataclass
class _Partition:
    """`next` is where the next batch should land; `dirty` are keys to repeat, `gone` records to take out."""

    next: int
    shares: dict[str, Share]
    dirty: dict[str, set[Key]]
    gone: list[bytes] = field(default_factory=list)


class KpiProcessor(Processor):
    """Computes the KPIs of one source topic."""

    def __init__(self, settings: Settings, source: str, kpis: Iterable[Kpi], registry: Registry) -> None:
        self.name = f"kpi:{source}"
        self.source = source
        self.kpis = {kpi.name: kpi for kpi in kpis}
        self._settings = settings
        self._registry = registry
        self._changelog = Changelog(settings, source)
        self._meters = {name: Meter(kpi) for name, kpi in self.kpis.items()}
        self._decoder = ChunkDecoder(registry.schema)
        self._partitions: dict[int, _Partition] = {}
        self._identity = ""

    @property
    def flow(self) -> str:
        return "kpi"

    async def start(self) -> None:
        await self._changelog.start()

    async def stop(self) -> None:
        await self._changelog.stop()

    async def assigned(self, partition: int, committed: Committed | None) -> int | None:
        """Read the partition's state back; the lowest offset that one of the KPIs has not had."""
        await self._changelog.ensure()
        kafka = self._settings.kafka
        begin = (await asyncio.to_thread(begin_offsets, kafka, [self.source]))[self.source, partition]
        end = (await asyncio.to_thread(end_offsets, kafka, [self.source]))[self.source, partition]
        self._identity = (await asyncio.to_thread(topic_ids, kafka, [self.source]))[self.source]
        await self._load(partition, begin, end)
        return min(share.progress.next for share in self._partitions[partition].shares.values())

    async def _load(self, partition: int, begin: int, end: int) -> None:
        fold, at = await self._changelog.read(partition)
        state = _Partition(at, {}, {})
        for name, kpi in self.kpis.items():
            folded = fold.kpis.get((name, kpi.fingerprint))
            progress = folded.progress if folded else None
            if folded is None or progress is None:
                state.shares[name], state.dirty[name] = Share(Progress(next=begin, topic=self._identity)), set()
                continue
            values = {k: v for k, (_, v) in folded.values.items() if not is_closed(kpi, k, progress.watermark)}
            state.shares[name] = Share(self._checked(kpi, partition, progress, begin, end), values)
            state.dirty[name] = folded.stale & values.keys()
        for writer, folded in fold.kpis.items():
            # Counts of an earlier declaration of the same KPI. Those of a KPI that is not declared at all are kept.
            if writer[0] in self.kpis and writer[1] != self.kpis[writer[0]].fingerprint:
                keys = folded.values.keys() | folded.pending.keys()
                state.gone += [value_key(writer, key) for key in keys] + [value_key(writer, None)]
        self._partitions[partition] = state
        log.info(
            "state read back", source=self.source, partition=partition,
            groups=sum(len(s.values) for s in state.shares.values()),
            next=min((s.progress.next for s in state.shares.values()), default=begin),
        )  # fmt: skip

    def _checked(self, kpi: Kpi, partition: int, progress: Progress, begin: int, end: int) -> Progress:
        """Raises `IdentityError` when the progress is in another topic than the one there is."""
        where = f"kpi {kpi.name}: {self.source}-{partition}@{progress.next}"
        if progress.topic != self._identity or progress.next > end:
            raise IdentityError(
                "the source topic was created anew since this was counted", where=where,
                hint=f"delete the topic {self._changelog.topic} to count anew",
            )  # fmt: skip
        if progress.next >= begin:
            return progress
        lost = begin - progress.next
        log.error("retention took records that were never counted", where=where, records=lost)
        metrics.ROWS_DROPPED.labels(self.flow, self.source, "retention gap").inc(lost)
        return replace(progress, next=begin, lost=progress.lost + lost)

    def revoked(self, partition: int) -> None:
        self._partitions.pop(partition, None)

    async def process(self, chunk: Chunk) -> None:
        """Raises `UnavailableError` while the registry does not know an id yet and cannot be asked."""
        decoded = await asyncio.to_thread(self._decoder.decode, chunk.values)
        rows = decoded.rows
        events = Events(decoded.batch, chunk.offsets[rows], chunk.timestamps[rows], chunk.next_offset)
        if len(decoded.bad):
            metrics.ROWS_DROPPED.labels(self.flow, self.source, "undecodable").inc(len(decoded.bad))
        waiting = [events]
        while waiting:
            events = waiting.pop()
            try:
                await self._apply(chunk.partition, events)
            except BatchTooLargeError as e:
                if len(events) < 2:
                    raise ContractError(
                        "the groups that one record changes do not fit one record batch", where=e.where, hint=e.what
                    ) from e
                first, second = events.halves()
                waiting += [second, first]
        metrics.ROWS_OUT.labels(self.flow, self.source).inc(len(decoded.rows))

    async def _apply(self, partition: int, events: Events) -> None:
        state = self._partitions[partition]
        changes = list(self._changes(state, events))
        if not changes:
            return
        keys, values = encode((kpi, change) for kpi, change in changes)
        gone = state.gone[:TOMBSTONES]
        keys = pa.concat_arrays([keys, pa.array(gone, pa.binary())])
        values = pa.concat_arrays([values, pa.nulls(len(gone), pa.binary())])
        at = await self._changelog.write(partition, keys, values)
        # The merger's tombstones may lie between; anything else is another writer's.
        if at != state.next and not await self._changelog.only_tombstones(partition, state.next, at):
            log.warning("another writer was here", source=self.source, partition=partition, expected=state.next, got=at)
            await self._load(partition, 0, _ENDLESS)
            return
        for kpi, change in changes:
            self._report(state.shares[kpi.name].progress, change.progress)
            state.shares[kpi.name].keep(kpi, change)
            state.dirty[kpi.name].clear()
        state.next = at + len(keys)
        del state.gone[: len(gone)]

    def _changes(self, state: _Partition, events: Events) -> Iterator[tuple[Kpi, Change]]:
        for name, kpi in self.kpis.items():
            share = state.shares[name]
            if events.next <= share.progress.next:
                continue
            change = self._meters[name].contribute(share, events)
            again = {key: share.values[key] for key in state.dirty[name] if key in share.values}
            yield kpi, Change(change.progress, again | dict(change.values))

    def _report(self, before: Progress, after: Progress) -> None:
        left_out = (
            ("late", after.late - before.late),
            ("no event time", after.untimed - before.untimed),
            ("incremental snapshot or truncation", after.ignored - before.ignored),
        )
        for rule, rows in left_out:
            if rows:
                metrics.ROWS_DROPPED.labels(self.flow, self.source, rule).inc(rows)


def kpi_processors(settings: Settings, kpis: Iterable[Kpi], registry: Registry) -> list[KpiProcessor]:
    """One processor for each topic that KPIs read."""
    by_source: dict[str, list[Kpi]] = {}
    for kpi in kpis:
        by_source.setdefault(kpi.source, []).append(kpi)
    return [KpiProcessor(settings, source, found, registry) for source, found in by_source.items()]
