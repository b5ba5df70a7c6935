"""The state agent: keeps the contributions of a source's partitions to its KPIs, exact after any kill.

State lives in memory and in the source's changelog. When a partition arrives, its changelog is read back, contributions
and progress together, and the source is read from that progress on, whatever the group has committed; a KPI that is new
or was declared anew begins at the start of the log while the others skip what they have had. After each chunk one
record batch is written, and only when the broker has acknowledged it does memory follow. A KPI that begins on change
events writes nothing until it has read what was there, because the log may be compacted (see `Events.first`).

Nobody fences a worker that lost its partition and does not know: it may still write. The broker says at which offset
each batch landed, so a writer that finds one not where its own last batch ended reads the changelog again, goes on from
the furthest state in it, and repeats what an older value has been written over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from headrace import metrics
from headrace.config import Settings
from headrace.errors import ContractError, IdentityError, TerminalError
from headrace.kafka import BatchTooLargeError, Chunk
from headrace.kafka.admin import begin_offsets, end_offsets, topic_ids
from headrace.logs import get_logger
from schemas import envelope
from schemas.codec import ChunkDecoder
from schemas.envelope import NOWHERE, Position, is_envelope
from schemas.kpis import Kpi
from schemas.left_out import LeftOut
from schemas.own import own_schemas
from schemas.registered import registered
from schemas.registry import Registry
from streams.kpi.changelog import Folded, encode, encode_values, value_key
from streams.kpi.contributions import Change, Key, Meter, Share, is_closed, used_columns
from streams.kpi.events import Events, Progress
from streams.kpi.partials import Mask, Partial
from streams.kpi.store import Changelog, after_last_record
from streams.processor import Committed, Processor

log = get_logger("kpi")

SLICE = 10_000
"""Records of a batch where batches need not be whole."""


@dataclass
class _ReadIn:
    """KPIs that begin on change events, until they have read what was there when they began.

    Nothing of them is written before, so a kill lets them begin anew; `values` are all that they have come to by then.
    """

    until: int
    values: dict[str, dict[Key, Partial]]
    # Up to where changes were read: of each key, and of all.
    known: dict[bytes, Position] = field(default_factory=dict)
    mark: Position = NOWHERE
    newest: int = -1
    repeating: bool = False

    def judge(self, keys: pa.BinaryArray, batch: pa.RecordBatch) -> tuple[Mask, Mask]:
        """Which of these changes are the first of their key, and which are no repeats: that is told key by key, since
        compaction may have left a repeat alone. Records without a key are taken as they are."""
        high, low = envelope.positions(batch)
        first, fresh = np.zeros(len(keys), np.bool_), envelope.after_position(high, low, self.mark)
        places = list(map(Position, high.tolist(), low.tolist()))
        for row, (key, place) in enumerate(zip(keys.to_pylist(), places, strict=True)):
            if key is None:
                continue
            before = self.known.get(key)
            first[row] = before is None
            fresh[row] = before is None or place == NOWHERE or place > before
            self.known[key] = place if before is None else max(before, place)
        self.mark = envelope.highest(high, low, self.mark)
        placed = np.flatnonzero(high >= 0)
        if len(placed):
            *before, last = envelope.source_time(batch)[placed].tolist()
            # One that is newer than all before it is no repeat, whatever its place: its log is another one.
            self.newest = max([self.newest, *before])
            self.repeating = places[placed[-1]] < self.mark and last <= self.newest
            self.newest = max(self.newest, last)
        return first, fresh


@dataclass
class _Partition:
    """`next` is where the next batch should land; `dirty` are keys to repeat."""

    next: int
    shares: dict[str, Share]
    dirty: dict[str, set[Key]]
    read_in: _ReadIn | None = None


class KpiProcessor(Processor):
    """Computes the KPIs of one source topic."""

    def __init__(
        self, settings: Settings, source: str, kpis: Iterable[Kpi], registry: Registry, *, captured: bool = False
    ) -> None:
        self.name = f"kpi:{source}"
        self.source = source
        self.kpis = {kpi.name: kpi for kpi in kpis}
        self._settings = settings
        self._registry = registry
        self._changelog = Changelog(settings, source)
        self._meters = {name: Meter(kpi) for name, kpi in self.kpis.items()}
        used = dict.fromkeys(name for kpi in self.kpis.values() for name in used_columns(kpi))
        self._decoder = ChunkDecoder(own_schemas(source, registry.schema, captured=captured), used=tuple(used))
        self._left_out = LeftOut(self.flow, source, whole=True)
        self._partitions: dict[int, _Partition] = {}
        self._identity = ""

    @property
    def flow(self) -> str:
        return "kpi"

    async def start(self) -> None:
        await asyncio.to_thread(self._learn)
        await self._changelog.start()

    def _learn(self) -> None:
        if self._decoder.learn(registered(self._registry, self.source)):
            for name in self._decoder.unknown:
                self._left_out.tell(f"no schema of the topic has the field {name}: it is null in every row")

    async def stop(self) -> None:
        await self._changelog.stop()

    async def assigned(self, partition: int, committed: Committed | None) -> int | None:
        """Read the partition's state back; the lowest offset that one of the KPIs has not had."""
        await self._changelog.ensure()
        self._identity = (await asyncio.to_thread(topic_ids, self._settings.kafka, [self.source]))[self.source]
        new, begin, end = await self._load(partition)
        state = self._partitions[partition]
        if new:
            until = await after_last_record(self._settings.kafka, self.source, partition, begin, end)
            state.read_in = _ReadIn(until, {name: {} for name in new}) if until > begin else None
        return min(share.progress.next for share in state.shares.values())

    async def _load(self, partition: int) -> tuple[list[str], int, int]:
        """Read the state back; returns the KPIs that have none, and where the source begins and ends."""
        while True:
            fold, at = await self._changelog.read(partition)
            # Asked after the state was read: whoever wrote it last may have just read to the end.
            begin, end = await self._bounds(partition)
            state, new = _Partition(at, {}, {}), []
            gone: list[bytes] = []
            for name, kpi in self.kpis.items():
                writer = (name, kpi.fingerprint)
                folded = fold.kpis.get(writer, Folded())
                if folded.progress is None:
                    new.append(name)
                    gone += [value_key(writer, key) for key in folded.pending]
                    state.shares[name], state.dirty[name] = Share(Progress(next=begin, topic=self._identity)), set()
                else:
                    progress = self._checked(kpi, partition, folded.progress, begin, end)
                    state.shares[name] = Share(progress, open_values(kpi, folded, progress.watermark))
                    state.dirty[name] = folded.stale & state.shares[name].values.keys()
            for writer, folded in fold.kpis.items():
                # Counts of an earlier declaration of the same KPI. Those of a KPI that is not declared are kept.
                if writer[0] in self.kpis and writer[1] != self.kpis[writer[0]].fingerprint:
                    keys = folded.values.keys() | folded.pending.keys()
                    gone += [value_key(writer, key) for key in keys] + [value_key(writer, None)]
            if await self._take_out(partition, state, gone):
                break
        self._partitions[partition] = state
        log.info(
            "state read back", source=self.source, partition=partition, new=len(new),
            groups=sum(len(s.values) for s in state.shares.values()),
            next=min(s.progress.next for s in state.shares.values()),
        )  # fmt: skip
        return new, begin, end

    async def _bounds(self, partition: int) -> tuple[int, int]:
        kafka, place = self._settings.kafka, (self.source, partition)
        begins = await asyncio.to_thread(begin_offsets, kafka, [self.source])
        ends = await asyncio.to_thread(end_offsets, kafka, [self.source])
        return begins[place], ends[place]

    async def _take_out(self, partition: int, state: _Partition, gone: list[bytes]) -> bool:
        """Put tombstones on records that nobody counts any more; false when somebody else has written meanwhile."""
        for start in range(0, len(gone), SLICE):
            keys = pa.array(gone[start : start + SLICE], pa.binary())
            at = await self._changelog.write(partition, keys, pa.nulls(len(keys), pa.binary()))
            if at != state.next:
                return False
            state.next = at + len(keys)
        return True

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
        self._left_out.count("undecodable", len(decoded.bad))
        self._left_out.undecoded(decoded.reasons)
        rows, batch = decoded.rows, decoded.batch
        if is_envelope(batch.schema) and (keep := self._left_out.countable(batch)) is not None:
            rows, batch = rows[keep], batch.filter(pa.array(keep))
        events = Events(batch, chunk.offsets[rows], chunk.timestamps[rows], chunk.next_offset)
        state = self._partitions[chunk.partition]
        # A chunk of which nothing was decoded, as one of tombstones, does not say what the topic holds.
        if state.read_in is not None and len(decoded.rows) and not is_envelope(batch.schema):
            state.read_in = None
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
        state = self._partitions[chunk.partition]
        if state.read_in is not None:
            judged = state.read_in.judge(chunk.keys.take(pa.array(rows)), batch) if len(rows) else ()
            events = Events(batch, chunk.offsets[rows], chunk.timestamps[rows], chunk.next_offset, *judged)
            await self._read_in(chunk.partition, state, state.read_in, events)
        metrics.ROWS_OUT.labels(self.flow, self.source).inc(len(rows))

    async def _apply(self, partition: int, events: Events) -> None:
        state = self._partitions[partition]
        changes = list(self._changes(state, events))
        if not changes:
            return
        keys, values = encode(changes)
        at = await self._changelog.write(partition, keys, values)
        # The merger's tombstones may lie between; anything else is another writer's.
        if at != state.next and not await self._changelog.only_tombstones(partition, state.next, at):
            log.warning("another writer was here", source=self.source, partition=partition, expected=state.next, got=at)
            await self._reload(partition, state, events.next)
            return
        for kpi, change in changes:
            self._report(state.shares[kpi.name].progress, change.progress)
            state.shares[kpi.name].keep(kpi, change)
            state.dirty[kpi.name].clear()
        state.next = at + len(keys)

    async def _reload(self, partition: int, old: _Partition, reached: int) -> None:
        """Take the state from the changelog, where this writer's own is too."""
        await self._load(partition)
        state, state.read_in = self._partitions[partition], old.read_in
        for name in state.read_in.values if state.read_in else ():
            state.shares[name] = old.shares[name]
        if any(share.progress.next < reached for name, share in state.shares.items() if name not in self._new(state)):
            raise TerminalError("the changelog has lost what was written", where=f"{self._changelog.topic}-{partition}")

    @staticmethod
    def _new(state: _Partition) -> Iterable[str]:
        return state.read_in.values if state.read_in else ()

    async def _read_in(self, partition: int, state: _Partition, read_in: _ReadIn, events: Events) -> None:
        """Count without writing; when all is read that was there, and Connect has repeated what it began to repeat,
        write everything, the progress last."""
        for name, values in read_in.values.items():
            change = self._meters[name].contribute(state.shares[name], events)
            self._report(state.shares[name].progress, change.progress)
            state.shares[name].keep(self.kpis[name], change)
            values.update(change.values)
        if events.next < read_in.until or read_in.repeating:
            return
        last = []
        for name, values in read_in.values.items():
            kpi, progress, items = self.kpis[name], state.shares[name].progress, list(values.items())
            last.append((kpi, Change(progress, {})))
            for start in range(0, len(items), SLICE):
                keys, texts = encode_values(kpi, progress.next, dict(items[start : start + SLICE]))
                await self._changelog.write(partition, pa.array(keys, pa.binary()), pa.array(texts, pa.binary()))
        keys, texts = encode(last)
        await self._changelog.write(partition, keys, texts)
        state.read_in = None
        # Whoever else has written meanwhile: the log says what counts.
        await self._reload(partition, state, events.next)

    def _changes(self, state: _Partition, events: Events) -> Iterator[tuple[Kpi, Change]]:
        for name, kpi in self.kpis.items():
            share = state.shares[name]
            if events.next <= share.progress.next or name in self._new(state):
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


def open_values(kpi: Kpi, folded: Folded, watermark: int | None) -> dict[Key, Partial]:
    """Contributions to windows that rows can still change."""
    return {key: value for key, (_, value) in folded.values.items() if not is_closed(kpi, key, watermark)}


def kpi_processors(
    settings: Settings, kpis: Iterable[Kpi], registry: Registry, captured: Container[str] = ()
) -> list[KpiProcessor]:
    """One processor for each topic that KPIs read."""
    by_source: dict[str, list[Kpi]] = {}
    for kpi in kpis:
        by_source.setdefault(kpi.source, []).append(kpi)
    return [
        KpiProcessor(settings, source, found, registry, captured=source in captured)
        for source, found in by_source.items()
    ]
