"""Faust's transport in columns: one Faust message per fetched chunk of a partition, not per record.

Registered by URL scheme (`headrace://`), so that nothing in Faust is touched. Group membership, security, table
changelogs and commits stay Faust's and its client library's; what differs, for topics whose schema is a
`ColumnarSchema`, is what a message holds, which offset may be committed, and what happens when partitions leave.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

import faust.streams
from aiokafka import TopicPartition
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import NoOffsetForPartitionError, OffsetOutOfRangeError
from aiokafka.structs import ConsumerRecord, OffsetAndMetadata
from faust.events import Event
from faust.serializers.schemas import Schema
from faust.transport.drivers import aiokafka as stock
from faust.types import ConsumerMessage
from faust.types.tuples import TP

from headrace.errors import ConfigError, OffsetGapError
from headrace.kafka.columns import Chunk
from headrace.kafka.consumer import ColumnarConsumer
from headrace.kafka.reader import ReadLimits
from headrace.logs import get_logger

log = get_logger("transport")

if getattr(faust.streams, "_CStreamIterator", None) is None:
    raise ConfigError(
        "Faust's compiled stream iterator is missing",
        where="faust-streaming",
        hint="its Python iterator acknowledges chunks that it skipped: install a wheel, not the source",
    )

REQUEST_TIMEOUT_MS = 40_000
# Seconds that chunks in hand are given to finish when partitions leave; what is not done then is read again.
DRAIN_SECONDS = 20.0
# Above this many records a second the fetch lingers, because many small chunks cost more than the wait is worth.
BUSY_RATE = 1000.0
# (longest wait in ms, bytes to wait for) of a fetch.
QUIET_FETCH = (500, 1)
BUSY_FETCH = (20, 1 << 20)
# Most rows of a chunk, so that none fills the memory or holds up a rebalance.
CHUNK_ROWS = 65_536
# Chunks taken from the fetcher at a time.
POLL_CHUNKS = 4
# Chunks that wait for an agent. Faust stops fetching for it at four fifths of them; the last fifth takes what was
# fetched already, or one agent that waits for something would hold up all others.
BUFFER_CHUNKS = 5 * POLL_CHUNKS


class Delivery:
    """What a columnar message holds: a chunk, `live` until its partition is revoked or sought.

    A delivery that is no longer live must not be worked on: its records come again, here or elsewhere.
    """

    __slots__ = ("chunk", "live")

    def __init__(self, chunk: Chunk, live: bool) -> None:
        self.chunk = chunk
        self.live = live


class ColumnarSchema(Schema):
    """Marks a topic as columnar: the values of its events are `Delivery` objects, their keys None."""

    columnar: ClassVar[bool] = True

    def loads_key(self, app: Any, message: Any, *, loads: Any = None, serializer: Any = None) -> Any:
        return None

    def loads_value(self, app: Any, message: Any, *, loads: Any = None, serializer: Any = None) -> Any:
        return message.value

    async def decode(self, app: Any, message: Any, *, propagate: bool = False) -> Event:
        return Event(app, None, message.value, {}, message)


class StartPolicy(Protocol):
    """Where reading starts, and what a commit says beside its offset. Without one: the group's offset, nothing."""

    def note(self, topic: str, partition: int, offset: int) -> str:
        """Text to store with a commit, at most 4000 bytes. Called in the consumer's thread."""

    async def starts(self, committed: Mapping[TP, OffsetAndMetadata]) -> Mapping[TP, int | None]:
        """Where to start reading each partition after a rebalance; None for the beginning of the log.

        `committed.offset` is -1 where the group has no offset.
        """

    def forget(self, partitions: Iterable[TP]) -> None:
        """These partitions are not read here any more, or will be told of again by `starts`."""


class GroupConsumer(ColumnarConsumer):
    """The client's consumer in the worker's group; its commits carry the policy's note."""

    policy: StartPolicy | None = None

    async def commit(self, offsets: Any = None) -> None:
        if offsets is not None and self.policy is not None:
            offsets = {
                tp: OffsetAndMetadata(at.offset, self.policy.note(tp.topic, tp.partition, at.offset))
                for tp, at in offsets.items()
            }
        await super().commit(offsets)

    async def committed_notes(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        """The group's offsets with their notes; offset -1 for none."""
        found: dict[TopicPartition, OffsetAndMetadata] = await self._coordinator.fetch_committed_offsets(
            list(partitions)
        )
        return {tp: found.get(tp, OffsetAndMetadata(-1, "")) for tp in partitions}


class ConsumerThread(stock.AIOKafkaConsumerThread):
    """Faust's consumer thread around the columnar consumer."""

    _fetched_at = 0.0

    def _create_worker_consumer(self, transport: Any) -> ColumnarConsumer:
        conf = self.app.conf
        # Faust's assignor knows which changelog goes with which source partition; without tables there are none.
        self._assignor = self.app.assignor if self.app.tables.changelog_topics else RoundRobinPartitionAssignor
        consumer = GroupConsumer(
            client_id=conf.broker_client_id,
            group_id=conf.id,
            group_instance_id=conf.consumer_group_instance_id,
            bootstrap_servers=stock.server_list(transport.url, transport.default_port),
            partition_assignment_strategy=[self._assignor],
            enable_auto_commit=False,
            # Positions are set on purpose after each rebalance; an offset that is gone must be an error, not a jump.
            auto_offset_reset="none",
            max_poll_interval_ms=int(conf.broker_max_poll_interval * 1000),
            max_partition_fetch_bytes=conf.consumer_max_fetch_size,
            limits=ReadLimits(max_chunk_rows=CHUNK_ROWS),
            fetch_max_wait_ms=QUIET_FETCH[0],
            fetch_min_bytes=QUIET_FETCH[1],
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            check_crcs=conf.broker_check_crcs,
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000),
            metadata_max_age_ms=conf.consumer_metadata_max_age_ms,
            connections_max_idle_ms=conf.consumer_connections_max_idle_ms,
            **stock.credentials_to_aiokafka_auth(conf.broker_credentials, conf.ssl_context),
        )
        consumer.policy = self.consumer.policy
        return consumer

    async def _fetch_records(
        self,
        consumer: Any,
        active_partitions: set[TP],
        timeout: float | None = None,
        max_records: int | None = None,
    ) -> dict[TP, list[Any]]:
        if not self.consumer.flow_active:
            return {}
        assigned = consumer.assignment()
        wanted = [tp for tp in (TopicPartition(*tp) for tp in active_partitions) if tp in assigned]
        try:
            fetched = await consumer.getmany(*wanted, timeout_ms=int((timeout or 0) * 1000), max_records=POLL_CHUNKS)
        except NoOffsetForPartitionError:
            # The client looked for a position before the policy gave one.
            return {}
        except OffsetOutOfRangeError as e:
            at = ", ".join(f"{tp.topic}-{tp.partition}@{offset}" for tp, offset in e.args[0].items())
            raise OffsetGapError(
                "the log does not hold the next offset to read: retention took it, or the topic was made anew",
                where=at,
                hint="to go on with what is there, stop the workers and set this topic's offsets of group "
                f"{self.app.conf.id}, as docs/operations.md shows under Topic halted",
            ) from e
        self._linger(consumer, sum(len(chunk) for chunks in fetched.values() for chunk in chunks))
        columnar = self.consumer.columnar_topics()
        return {
            TP(*tp): chunks if tp.topic in columnar else [r for chunk in chunks for r in records(chunk)]
            for tp, chunks in fetched.items()
        }

    def _linger(self, consumer: Any, rows: int) -> None:
        now = time.monotonic()
        busy = rows > BUSY_RATE * (now - self._fetched_at)
        self._fetched_at = now
        fetcher = consumer._fetcher
        fetcher._fetch_max_wait_ms, fetcher._fetch_min_bytes = BUSY_FETCH if busy else QUIET_FETCH

    async def committed_notes(self, partitions: Iterable[TP]) -> dict[TP, OffsetAndMetadata]:
        consumer = self._ensure_consumer()
        found = await self.call_thread(consumer.committed_notes, [TopicPartition(*tp) for tp in partitions])
        return {TP(*tp): at for tp, at in found.items()}


def records(chunk: Chunk) -> list[ConsumerRecord]:
    """A chunk as the client's records, for topics that Faust reads per event."""
    keys, values, headers = chunk.keys.to_pylist(), chunk.values.to_pylist(), chunk.headers.to_pylist()
    return [
        ConsumerRecord(
            chunk.topic,
            chunk.partition,
            offset,
            timestamp,
            0,
            key,
            value,
            None,
            -1 if key is None else len(key),
            -1 if value is None else len(value),
            tuple((h["key"], h["value"]) for h in pairs),
        )
        for offset, timestamp, key, value, pairs in zip(
            chunk.offsets.tolist(), chunk.timestamps.tolist(), keys, values, headers, strict=True
        )
    ]


class Consumer(stock.Consumer):
    """Faust's consumer: commits the longest prefix of finished chunks of each partition."""

    policy: StartPolicy | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pending: defaultdict[TP, deque[ConsumerMessage]] = defaultdict(deque)
        self._placed: set[TP] = set()
        self._room = asyncio.Event()
        self._columnar: tuple[int, frozenset[str]] = (-1, frozenset())

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def columnar_topics(self) -> frozenset[str]:
        """Topics that some agent reads through a `ColumnarSchema`."""
        channels = list(self.app.topics)
        if self._columnar[0] != len(channels):
            names = (t for c in channels if getattr(c.schema, "columnar", False) for t in c.topics)
            self._columnar = (len(channels), frozenset(names))
        return self._columnar[1]

    def _to_message(self, tp: Any, record: Any) -> ConsumerMessage:
        if not isinstance(record, Chunk):
            return super()._to_message(tp, record)
        tp = TP(*tp)
        message = ConsumerMessage(
            record.topic,
            record.partition,
            record.next_offset - 1,
            record.timestamps[-1] / 1000,
            0,
            [],
            None,
            Delivery(record, live=tp in self._placed),
            None,
            0,
            0,
            tp,
            generation_id=self.app.consumer_generation_id,
        )
        if message.value.live:
            self._pending[tp].append(message)
        return message

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        # Holes are inside chunks, whose next offset is past them.
        if tp.topic not in self.columnar_topics():
            await super()._add_gap(tp, offset_from, offset_to)

    def _new_offset(self, tp: TP) -> int | None:
        if tp.topic not in self.columnar_topics():
            offset: int | None = super()._new_offset(tp)
            return offset
        pending = self._pending[tp]
        last = None
        while pending and pending[0].acked:
            last = pending.popleft()
        # Faust notes acknowledged offsets one by one; a chunk that is done says so itself.
        self._acked[tp].clear()
        self._acked_index[tp].clear()
        return None if last is None else int(last.value.chunk.next_offset)

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        columnar = self.columnar_topics()
        yield from (tp for tp in super()._filter_tps_with_pending_acks(topics) if tp.topic not in columnar)
        yield from (tp for tp in list(self._pending) if topics is None or tp in topics or tp.topic in topics)

    def on_buffer_full(self, tp: TP) -> None:
        # An agent's buffer is for all partitions of its topic, and so is the pause.
        for other in [other for other in self._get_active_partitions() if other.topic == tp.topic]:
            super().on_buffer_full(other)

    def on_buffer_drop(self, tp: TP) -> None:
        for other in [other for other in self._buffered_partitions if other.topic == tp.topic]:
            super().on_buffer_drop(other)
        self._room.set()

    def _forget(self, partitions: Iterable[TP]) -> None:
        gone = [tp for tp in partitions if tp.topic in self.columnar_topics()]
        for tp in gone:
            for message in self._pending.pop(tp, ()):
                message.value.live = False
        self._placed.difference_update(gone)
        self._buffered_partitions.difference_update(gone)
        if self.policy is not None and gone:
            self.policy.forget(gone)

    async def drain(self, seconds: float = DRAIN_SECONDS) -> None:
        """Hand out no more chunks, let those in hand finish, commit. What takes longer is left to be read again."""
        self.app.flow_control.suspend()
        self.stop_flow()
        until = time.monotonic() + seconds
        while (left := self._in_hand()) and time.monotonic() < until:
            await self._wait_for_ack(timeout=1)
        if left:
            log.warning("chunks not finished in time", chunks=left, seconds=seconds)
        if not await self.commit():
            # A commit that was under way did not know of the last chunks.
            await self.commit()

    def _in_hand(self) -> int:
        self._clean_unacked_messages()
        return sum(getattr(message.value, "live", True) for message in list(self._unacked_messages))

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        if revoked:
            await self.drain()
        self._forget(revoked)
        await super().on_partitions_revoked(revoked)

    async def _wait_next_records(self, timeout: float) -> Any:
        # Faust sleeps a second where there is nothing to fetch for: longer than agents take for what they hold.
        while self._buffered_partitions and not self._get_active_partitions() and self.flow_active:
            self._room.clear()
            if (await self.wait(self._room, timeout=1.0)).stopped:
                break
        records, active = await super()._wait_next_records(timeout)
        # With the flow stopped Faust would seek back at once; here that happens once, when the flow starts again.
        return (records if self.flow_active else None), active

    async def perform_seek(self) -> None:
        """Put every assigned partition where the policy wants it.

        Raises `TimeoutError` before Faust's own patience (`broker_request_timeout`) ends, which would stop it silently.
        """
        async with asyncio.timeout(self.app.conf.broker_request_timeout * 0.9):
            await super().perform_seek()
            columnar = self.columnar_topics()
            assigned = {tp for tp in self.assignment() if tp.topic in columnar}
            self._forget(self._placed | assigned)
            if not assigned:
                return
            committed = await self._thread.committed_notes(assigned)
            if self.policy is not None:
                starts = await self.policy.starts(committed)
            else:
                starts = {tp: None if at.offset < 0 else at.offset for tp, at in committed.items()}
            beginnings = await self.earliest_offsets(*assigned)
            await self.seek_wait({tp: beginnings[tp] if at is None else at for tp, at in starts.items()})
            for tp, at in committed.items():
                self._committed_offset[tp] = at.offset if at.offset >= 0 else None
            self._placed = set(assigned)


class Transport(stock.Transport):
    """`headrace://host:port`: Kafka in columns."""

    Consumer: ClassVar[type[Consumer]] = Consumer
    driver_version = f"headrace+{stock.Transport.driver_version}"
