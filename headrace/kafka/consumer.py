"""aiokafka's consumer, with columns in place of records.

Group membership, security, metadata, positions, seek, pause and commits stay aiokafka's: only what turns the bytes of a
fetch into records is exchanged, and how they are received (`headrace.kafka.receive`). aiokafka has no seam for that, so
these private names are relied on, and its version is pinned: `AIOKafkaConsumer._client` and `_fetcher`,
`Fetcher._proc_fetch_request` (its globals MemoryRecords and PartitionRecords are bound anew, for one consumer),
`Fetcher._fetch_task`, `_fetch_waiters` and `_closed`, `PartitionRecords._unpack_records` and the fields it reads.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer import fetcher as client
from aiokafka.errors import OffsetOutOfRangeError, RecordTooLargeError
from prometheus_client import Counter

from headrace.errors import ConfigError, HeadraceError
from headrace.kafka import layout, parse, receive
from headrace.kafka.columns import Chunk
from headrace.kafka.errors import CorruptBatchError, FetchStoppedError
from headrace.kafka.legacy import bounded_size, chunk_of, take
from headrace.kafka.reader import FetchReader, LegacyFormatError, ReadLimits
from headrace.kafka.rebind import rebind
from headrace.kafka.security import Watch
from headrace.logs import get_logger

log = get_logger(__name__)

LEGACY_FETCHES = Counter(
    "headrace_kafka_legacy_fetches",
    "Fetches in a message format older than Kafka 0.11, read record by record",
    ("topic",),
)


class _Batches:
    """What the client takes for its MemoryRecords: the bytes of one partition's fetch, not copied, and whether they
    begin with a whole batch."""

    def __init__(self, data: bytes | memoryview) -> None:
        self.raw = data

    def has_next(self) -> bool:
        raw = np.frombuffer(self.raw, np.uint8)
        count = parse.count_batches(raw.ctypes.data, len(raw))
        return bool(client.MemoryRecords(bytes(self.raw)).has_next() if count == parse.LEGACY else count)

    def size_in_bytes(self) -> int:
        return len(self.raw)


class _ColumnarPartitionRecords(client.PartitionRecords):
    """Yields chunks where the client's yields records; a `HeadraceError` as the last item where reading failed.

    An exception raised here would make the client drop what it has already taken from other partitions, whose positions
    have moved: those records would be lost.
    """

    _records: Any

    def __init__(self, reader: FetchReader, *arguments: Any) -> None:
        self._reader = reader
        super().__init__(*arguments)

    def _unpack_records(self) -> Iterator[Chunk | HeadraceError]:
        tp = self._tp
        read_committed = self._isolation_level == client.READ_COMMITTED and self._aborted_transactions
        chunks = self._reader.read(
            self._records.raw,
            tp.topic,
            tp.partition,
            self.next_fetch_offset,
            check_crc=self._check_crcs,
            hidden=self._is_aborted if read_committed else None,
        )
        try:
            yield from self._advance(chunks)
        except LegacyFormatError:
            yield from self._legacy_chunks()
        except HeadraceError as e:
            yield e

    def _advance(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            self.next_fetch_offset = chunk.next_offset
            if len(chunk):
                yield chunk

    def _is_aborted(self, base_offset: int, producer_id: int, attributes: int, marker: int) -> bool:
        self._consume_aborted_up_to(base_offset)
        if marker == layout.ABORT_MARKER:
            self._aborted_producers.discard(producer_id)
        return bool(attributes & layout.TRANSACTIONAL) and producer_id in self._aborted_producers

    def _legacy_chunks(self) -> Iterator[Chunk | HeadraceError]:
        """Message format v0 or v1 (or a fetch that mixes it with v2) through the client's own records."""
        topic, partition = self._tp
        _note_legacy(topic)
        limits = self._reader.limits
        raw = bytes(self._records.raw)
        size, unreadable = bounded_size(raw, limits)
        self._records = client.MemoryRecords(raw[:size])
        records = super()._unpack_records()
        while True:
            some, error = take(records, limits)
            if some:
                yield chunk_of(topic, partition, some, self.next_fetch_offset)
            if error is not None:
                unreadable = CorruptBatchError(f"{type(error).__name__}: {error}")
                unreadable.__cause__ = error
            elif some:
                continue
            if unreadable is not None:
                unreadable.where = f"{topic}-{partition}@{self.next_fetch_offset}"
                yield unreadable
            return


_legacy_topics: set[str] = set()


def _note_legacy(topic: str) -> None:
    LEGACY_FETCHES.labels(topic).inc()
    if topic not in _legacy_topics:
        _legacy_topics.add(topic)
        log.warning("old message format: read slowly", topic=topic)


class ColumnarConsumer(AIOKafkaConsumer):
    """`AIOKafkaConsumer` whose `getmany` gives {TopicPartition: [Chunk, ...]} and whose `getone` gives one `Chunk`.

    Takes aiokafka's arguments (no deserializers) and the bounds of a chunk; `headers=False` leaves headers out.
    `max_records` counts chunks. `position()` and `commit()` without offsets are after the chunks given out.

    Beside aiokafka's errors, `getmany` and `getone` raise `CorruptBatchError` and `DecompressionLimitError`, with the
    position before the bad batch (nothing of other partitions is lost), and `FetchStoppedError` at every call once the
    background fetching has died, where aiokafka would say for ever that there is nothing. `SecurityError` is raised
    after each connection that TLS or SASL has refused meanwhile.
    """

    def __init__(self, *topics: str, headers: bool = True, limits: ReadLimits | None = None, **options: Any) -> None:
        for name in ("key_deserializer", "value_deserializer"):
            if options.get(name) is not None:
                raise ConfigError("columns are decoded by schemas.codec, not by the consumer", where=name)
        self._reader = FetchReader(limits or ReadLimits(), headers=headers)
        self._max_chunks: int | None = options.get("max_poll_records")
        self._failure: tuple[set[TopicPartition], Exception] | None = None
        super().__init__(*topics, **options)
        self._watch = Watch(self._client, receive.connect)

    async def start(self) -> None:
        """Connect, and join the group if there is one. Raises `SecurityError` when TLS or SASL refuses a connection."""
        await self._watch.start(super().start, self.stop)

    @property
    def _fetcher(self) -> Any:
        return self.__dict__.get("_fetcher")

    @_fetcher.setter
    def _fetcher(self, fetcher: Any) -> None:
        if fetcher is not None:
            self._make_columnar(fetcher)
        self.__dict__["_fetcher"] = fetcher

    def _make_columnar(self, fetcher: Any) -> None:
        def partition_records(*arguments: Any) -> _ColumnarPartitionRecords:
            return _ColumnarPartitionRecords(self._reader, *arguments)

        # start() sets the fetcher before the first step of its task.
        function = rebind(
            client.Fetcher._proc_fetch_request, MemoryRecords=_Batches, PartitionRecords=partition_records
        )
        fetcher._proc_fetch_request = types.MethodType(function, fetcher)
        fetcher._fetch_task.add_done_callback(lambda task: self._on_fetch_end(fetcher, task))

    @staticmethod
    def _on_fetch_end(fetcher: Any, task: asyncio.Task[None]) -> None:
        if fetcher._closed:
            return
        error = _fetch_stopped(task)
        log.error("fetching has stopped", reason=str(error))
        for waiter in list(fetcher._fetch_waiters):
            if not waiter.done():
                waiter.set_exception(error)

    def _raise_failure(self) -> None:
        self._watch.check()
        fetcher = self._fetcher
        if fetcher is not None and not fetcher._closed and fetcher._fetch_task.done():
            raise _fetch_stopped(fetcher._fetch_task)
        if self._failure is not None:
            (places, error), self._failure = self._failure, None
            if places <= self.assignment():
                raise error

    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[Chunk]]:
        """Chunks fetched so far, or within the timeout, until they hold `ReadLimits.max_poll_bytes`.

        `max_records` bounds the number of chunks.
        """
        self._raise_failure()
        bound = self._max_chunks if max_records is None else max_records
        if bound is not None and bound < 1:
            raise ValueError("max_records must be positive")
        out: dict[TopicPartition, list[Chunk]] = {}
        count = size = 0
        # One at a time: each is made when it is asked for. What is there already comes without a pause in between, so
        # no rebalance can happen while some are in hand.
        while count != bound and size < self._reader.limits.max_poll_bytes and self._failure is None:
            try:
                fetched = await super().getmany(*partitions, timeout_ms=0 if out else timeout_ms, max_records=1)
            except Exception as e:
                # The positions of the chunks in hand have moved: they must be given out first.
                self._failure = _places(e), _cut_off(e) if isinstance(e, RecordTooLargeError) else e
                break
            if not fetched:
                break
            for tp, items in fetched.items():
                for item in items:
                    if isinstance(item, Chunk):
                        out.setdefault(tp, []).append(item)
                        count += 1
                        size += item.nbytes
                    else:
                        self._failure = {tp}, item
        if not out:
            self._raise_failure()
        return out

    async def getone(self, *partitions: TopicPartition) -> Chunk:
        """The next chunk of any (of these) partitions; waits for ever."""
        self._raise_failure()
        try:
            item = await super().getone(*partitions)
        except RecordTooLargeError as e:
            raise _cut_off(e) from e
        if isinstance(item, HeadraceError):
            raise item
        chunk: Chunk = item
        return chunk


def _fetch_stopped(task: asyncio.Task[None]) -> FetchStoppedError:
    cause = None if task.cancelled() else task.exception()
    reason = f": {(cause.__cause__ or cause)!r}" if cause else ""
    error = FetchStoppedError(f"the consumer's fetch task has ended{reason}", hint="restart the process")
    error.__cause__ = cause
    return error


def _places(error: Exception) -> set[TopicPartition]:
    return set(error.args[0]) if isinstance(error, OffsetOutOfRangeError) else set()


def _cut_off(error: RecordTooLargeError) -> CorruptBatchError:
    hint = "start a new consumer at the committed offset"
    found = CorruptBatchError(f"a record batch is cut off: {error}", hint=hint)
    found.__cause__ = error
    return found
