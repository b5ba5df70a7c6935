"""What a sync reads: all partitions of its topics, from its own marks on, as events."""

from __future__ import annotations

import asyncio
from collections.abc import Container
from contextlib import suppress

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from headrace.config import KafkaSettings
from headrace.errors import OffsetGapError, UnavailableError
from headrace.kafka import Chunk, ColumnarConsumer, admin
from headrace.kafka.client import consumer_options
from headrace.metrics import LAG, ROWS_DROPPED, ROWS_IN
from schemas.codec import ChunkDecoder
from schemas.own import own_schemas
from schemas.registered import registered
from schemas.registry import Registry
from sinks.reverse.declaration import Sync
from sinks.reverse.fold import Event
from sinks.reverse.sources import Reader, Watermark, used_columns
from sinks.reverse.state import Partition

POLL_MS = 200


class Intake:
    """`marks` are how far each partition was turned into events, and what is needed to know repeats from there on."""

    def __init__(self, sync: Sync, kafka: KafkaSettings, registry: Registry, captured: Container[str]) -> None:
        self._sync = sync
        self._kafka = kafka
        self._flow = f"sync:{sync.name}"
        self._where = f"sync {sync.name}"
        self._registry = registry
        self._readers = {topic: Reader(sync, topic, self._decoder(topic, topic in captured)) for topic in sync.topics}
        self._consumer: ColumnarConsumer | None = None
        self.marks: dict[Partition, Watermark] = {}

    def _decoder(self, topic: str, captured: bool) -> ChunkDecoder:
        own = own_schemas(topic, self._registry.schema, captured=captured)
        return ChunkDecoder(own, used=used_columns(self._sync, topic))

    async def identities(self) -> tuple[str, dict[str, str]]:
        """Of the cluster and of each topic. Raises `UnavailableError` while a topic does not exist."""
        ids = await asyncio.to_thread(admin.topic_ids, self._kafka, self._sync.topics)
        missing = set(self._sync.topics) - ids.keys()
        if missing:
            raise UnavailableError("there is no such topic yet", where=f"{self._where}: {min(missing)}")
        return await asyncio.to_thread(admin.cluster_id, self._kafka), ids

    async def ends(self) -> dict[Partition, int]:
        return await asyncio.to_thread(admin.end_offsets, self._kafka, self._sync.topics)

    async def start(self, marks: dict[Partition, Watermark]) -> None:
        """Read on from the marks; partitions without one from the beginning, or from now on if that is declared."""
        await asyncio.to_thread(self.learn)
        self.marks = marks
        latest = self._sync.start == "latest" and not marks
        await self._assign(await self.ends() if latest else {})

    def learn(self) -> None:
        """Take what the registry knows of the topics' fields. Blocks; raises `ContractError` for a field that none has,
        and `UnavailableError`."""
        for topic, reader in self._readers.items():
            reader.learn(registered(self._registry, topic))

    async def _assign(self, starts: dict[Partition, int]) -> None:
        begins = await asyncio.to_thread(admin.begin_offsets, self._kafka, self._sync.topics)
        if self._consumer is None:
            group = f"headrace-sync-{self._sync.name}"
            self._consumer = ColumnarConsumer(**consumer_options(self._kafka), group_id=group)
            await self._consumer.start()
        self._consumer.assign([TopicPartition(*partition) for partition in sorted(begins)])
        for partition, begin in begins.items():
            mark = self.marks.setdefault(partition, Watermark(starts.get(partition, begin)))
            if mark.offset < begin:
                raise self._gap(f"records {mark.offset} to {begin - 1} of {partition[0]}-{partition[1]}")
            self._consumer.seek(TopicPartition(*partition), mark.offset)

    def _gap(self, what: str) -> OffsetGapError:
        hint = f"to read what is left anew: headrace sync reset {self._sync.name}"
        return OffsetGapError(f"{what} are gone and were never read", where=self._where, hint=hint)

    async def fetch(self) -> list[Chunk]:
        """What has arrived, within a moment. Raises `OffsetGapError` when retention was faster."""
        assert self._consumer is not None
        try:
            fetched = await self._consumer.getmany(timeout_ms=POLL_MS)
        except OffsetOutOfRangeError as e:
            raise self._gap("records") from e
        return [chunk for chunks in fetched.values() for chunk in chunks]

    def read(self, chunk: Chunk) -> list[Event]:
        """The chunk's events, repeats left out; moves the mark of its partition past it."""
        found = self._readers[chunk.topic].read(chunk, self.marks[chunk.topic, chunk.partition])
        ROWS_IN.labels(self._flow, chunk.topic).inc(len(chunk))
        for rule, count in found.dropped.items():
            ROWS_DROPPED.labels(self._flow, chunk.topic, rule).inc(count)
        return found.events

    async def is_past(self, goal: dict[Partition, int]) -> bool:
        """Whether all partitions were read up to the goal."""
        assert self._consumer is not None
        for partition, offset in goal.items():
            mark = self.marks.get(partition)
            if mark is not None and mark.offset < offset:
                # The last offsets may be no records: control records, or compacted away. The position passes them.
                position = await self._consumer.position(TopicPartition(*partition))
                mark.offset = max(mark.offset, position)
                if mark.offset < offset:
                    return False
        return True

    async def commit(self) -> None:
        """Tell the group's offsets, which are for whoever looks at lag and for nothing else."""
        assert self._consumer is not None
        with suppress(KafkaError):
            await self._consumer.commit({TopicPartition(*p): mark.offset for p, mark in self.marks.items()})

    def measure(self) -> None:
        assert self._consumer is not None
        lag = dict.fromkeys(self._sync.topics, 0)
        for (topic, partition), mark in self.marks.items():
            high = self._consumer.highwater(TopicPartition(topic, partition))
            lag[topic] += max(0, (high or 0) - mark.offset)
        for topic, records in lag.items():
            LAG.labels(self._flow, topic).set(records)

    async def watch_partitions(self) -> None:
        """Read partitions that were added meanwhile, from their beginning."""
        known = await asyncio.to_thread(admin.partitions, self._kafka)
        wanted = {(topic, number) for topic in self._sync.topics for number in range(known.get(topic, 0))}
        if wanted - self.marks.keys():
            await self._assign({})

    async def close(self) -> None:
        if self._consumer is not None:
            await self._consumer.stop()
