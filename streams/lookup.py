"""Lookups: a database table, kept current from its change topic, in every worker's memory.

A worker holds the whole table, so that no agent has to have its key's partition. It is read from the start of the
topic, which therefore must keep at least the last change of every row: compacted, or retained for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from headrace import metrics
from headrace.config import KafkaSettings
from headrace.errors import ContractError, TerminalError
from headrace.kafka.client import consumer_options
from headrace.kafka.columns import Chunk
from headrace.kafka.consumer import ColumnarConsumer
from headrace.kafka.errors import from_client
from headrace.keyindex import ABSENT, KeyIndex, Keys, hash_keys, last_of_each
from schemas import envelope
from schemas.codec import ChunkDecoder, rule_of
from schemas.left_out import LeftOut
from schemas.own import own_schemas
from schemas.registered import registered
from schemas.registry import Registry
from streams.processor import Retry

Int64 = npt.NDArray[np.int64]

TOPIC_POLL_SECONDS = 1.0
PARTITIONS_CHECK_SECONDS = 60.0
# A snapshot that says nothing for this long is over; a table from which nothing comes at all is empty.
QUIET_SECONDS = 10.0
EMPTY_SECONDS = 120.0
# Old versions of rows are thrown away when they outnumber the current ones.
FEWEST_TO_COMPACT = 4_096
# Columns beside those of the table, whose names have no dot.
_PLACE = ("change.position", "change.order")


@dataclass(frozen=True)
class Lookup:
    """Declares that rows of a change topic are looked up by the column `key`, and which columns are wanted."""

    name: str
    topic: str
    key: str
    columns: Sequence[str]


class LookupTable:
    """Rows by key, in columns: fed with change events, asked with arrays of keys.

    Memory is that of the declared columns and of 16 bytes a row, up to twice while versions are replaced, and 32 to 60
    bytes a key.

    Changes of one key are in one partition, in order. A truncation has no key: it is in any partition, and says nothing
    about how far the others are. So rows keep the place of their change in the source's log, and the table keeps the
    place of the latest truncation: no row of before it is there, in whatever order partitions are read.
    """

    def __init__(self, lookup: Lookup) -> None:
        self.lookup = lookup
        self.complete = False
        """An event was seen that comes only after the last row of the database's first snapshot, or is that row."""
        self._key_type: pa.DataType | None = None
        self._index = KeyIndex()
        # Versions of rows, oldest first; each piece is more than twice as long as the next.
        self._pieces: list[pa.Table] = []
        self._positions: dict[int, envelope.Position] = {}
        self._floor = envelope.NOWHERE
        # The last answer of `find`: steps ask for the same keys one after the other.
        self._asked: tuple[pa.Array, Int64] | None = None

    def __len__(self) -> int:
        return len(self._index)

    def apply(self, partition: int, events: pa.RecordBatch) -> None:
        """Take change events of one partition, in order; Debezium's repeats are left out.

        Raises `ContractError` when they are no change events, or lack the key or a column.
        """
        if not envelope.is_envelope(events.schema):
            raise ContractError(
                "a lookup reads change events of a database table", where=f"{self.lookup.name}: {self.lookup.topic}"
            )
        self.complete = self.complete or not pc.all(_amid_snapshot(events)).as_py()
        high, low = envelope.positions(events)
        before = self._positions.get(partition, envelope.NOWHERE)
        fresh = envelope.after_position(high, low, before)
        self._positions[partition] = envelope.highest(high, low, before)
        self._asked = None
        read = envelope.snapshot_mask(events).to_numpy(zero_copy_only=False)
        if read.any():
            # A row that a snapshot read is at the log's end of that time, before any later change.
            high = np.where(read, envelope.reached(events), high)
        if not fresh.all():
            events, high, low = events.filter(pa.array(fresh)), high[fresh], low[fresh]
        self._take_over(*self._standing(events, high, low))

    def _standing(self, events: pa.RecordBatch, high: Int64, low: Int64) -> tuple[pa.RecordBatch, Int64, Int64]:
        """The events but truncations that none has taken back, of those among them or before, with their places."""
        truncated = _truncations(events)
        if len(truncated):
            self._raise_floor(envelope.highest(high[truncated], low[truncated], self._floor))
        if self._floor == envelope.NOWHERE:
            return events, high, low
        placed = high >= 0
        gone = placed & _before(high, low, self._floor)
        if len(truncated):
            # Of rows without a place the order in the partition is all there is to go by.
            gone |= ~placed & (np.arange(len(events)) < truncated[-1])
            gone[truncated] = True
        return (events.filter(pa.array(~gone)), high[~gone], low[~gone]) if gone.any() else (events, high, low)

    def _raise_floor(self, floor: envelope.Position) -> None:
        """Forget the rows of before a truncation; those whose place is not known are older than any."""
        self._floor = floor
        keys, numbers = self._index.entries()
        if self._pieces:
            high, low = (np.concatenate([p.column(name).to_numpy() for p in self._pieces])[numbers] for name in _PLACE)
            self._index.remove(keys.take(_before(high, low, floor)))

    def find(self, keys: pa.Array) -> Int64:
        """The number of each key's row, negative where there is none (or the key is null). Not to be changed.

        Numbers of any width are compared by value; keys of another kind than the table's are not in it.
        """
        if self._asked is None or not _is_same(self._asked[0], keys):
            self._asked = keys, self._find(keys)
        return self._asked[1]

    def _find(self, keys: pa.Array) -> Int64:
        if (same := self._as_table_keys(keys)) is None:
            return np.full(len(keys), ABSENT)
        found = self._index.locations(hash_keys([same]))
        if keys.null_count:
            found[pc.is_null(keys).to_numpy(zero_copy_only=False)] = ABSENT
        return found

    def known(self, keys: pa.Array) -> pa.BooleanArray:
        """True for keys that have a row."""
        return pa.array(self.find(keys) >= 0)

    def take(self, keys: pa.Array) -> pa.RecordBatch:
        """The declared columns of each key's row, in the order of the keys; null where there is none."""
        if not self._pieces:
            return pa.RecordBatch.from_pydict({name: pa.nulls(len(keys)) for name in self.lookup.columns})
        found = self.find(keys)
        pieces = [piece.drop_columns(list(_PLACE)) for piece in self._pieces]
        rows = _take(pieces, found) if len(pieces) > 1 else _take_from(pieces[0], found)
        columns = [column.combine_chunks() for column in rows.columns]
        return pa.RecordBatch.from_arrays(columns, schema=rows.schema)

    def _as_table_keys(self, keys: pa.Array) -> pa.Array | None:
        """The keys so that equal ones hash equally, None when none can be equal."""
        mine, theirs = self._key_type, keys.type
        if mine is None or pa.types.is_null(theirs):
            return None
        if pa.types.is_decimal(mine) and pa.types.is_integer(theirs):
            return keys.cast(pa.decimal128(38, mine.scale))
        for kinds in (pa.types.is_integer, pa.types.is_string, pa.types.is_decimal):
            if kinds(mine) and kinds(theirs):
                return keys if not pa.types.is_decimal(mine) or mine.scale == theirs.scale else None
        return keys if mine == theirs else None

    def _take_over(self, events: pa.RecordBatch, high: Int64, low: Int64) -> None:
        if not len(events):
            return
        after, before = envelope.row_batch(events, "after"), envelope.row_batch(events, "before")
        there = envelope.has_row(events, "after")
        # A row whose key changes comes as the deletion of the old and the creation of the new.
        names = pc.if_else(there, self._column(after, self.lookup.key), self._column(before, self.lookup.key))
        self._key_type = names.type
        keys, alive = hash_keys([names]), there.to_numpy(zero_copy_only=False)
        last = last_of_each(keys)
        columns = {name: self._available(name, self._column(after, name), keys) for name in self.lookup.columns}
        first = sum(piece.num_rows for piece in self._pieces)
        written = np.flatnonzero(last & alive)
        self._index.remove(keys.take(np.flatnonzero(last & ~alive)))
        self._index.put(keys.take(written), first + np.arange(len(written)))
        rows = pa.table(columns | dict(zip(_PLACE, (high, low), strict=True)))
        self._add(rows if len(written) == len(events) else rows.take(pa.array(written)))

    def _available(self, name: str, column: pa.Array, keys: Keys) -> pa.Array:
        """The column with the key's value of before in place of one that Debezium could not read (TOAST), null where
        there is no such value."""
        away = envelope.unavailable_mask(column).to_numpy(zero_copy_only=False)
        if not away.any():
            return column
        chosen = _last_available(keys, away)
        rows = np.flatnonzero(chosen < 0)
        chosen[rows] = len(column) + np.arange(len(rows))
        found = self._index.locations(keys.take(rows))
        known = pa.nulls(len(rows))
        if self._pieces:
            known = _take([piece.select([name]) for piece in self._pieces], found).column(name).combine_chunks()
        return pa.concat_arrays([column, known.cast(column.type)]).take(pa.array(chosen))

    def _column(self, rows: pa.RecordBatch, name: str) -> pa.Array:
        if name not in rows.schema.names:
            raise ContractError("no such column", where=f"lookup {self.lookup.name}: {self.lookup.topic}: {name}")
        return rows.column(name)

    def _add(self, rows: pa.Table) -> None:
        pieces = [*self._pieces, rows]
        while len(pieces) > 1 and pieces[-2].num_rows <= 2 * pieces[-1].num_rows:
            pieces[-2:] = [_joined(pieces[-2:])]
        versions = sum(piece.num_rows for piece in pieces)
        if versions > max(FEWEST_TO_COMPACT, 2 * len(self._index)):
            keys, numbers = self._index.entries()
            pieces = [_take(pieces, numbers)]
            self._index.put(keys, np.arange(len(numbers)))
        self._pieces = pieces


def _truncations(events: pa.RecordBatch) -> Int64:
    """The numbers of the truncations among the events."""
    mask = pc.fill_null(pc.equal(envelope.operations(events), "t"), False)
    return np.flatnonzero(mask.to_numpy(zero_copy_only=False))


def _before(high: Int64, low: Int64, floor: envelope.Position) -> npt.NDArray[np.bool_]:
    mask: npt.NDArray[np.bool_] = (high < floor.high) | ((high == floor.high) & (low < floor.low))
    return mask


def _last_available(keys: Keys, away: npt.NDArray[np.bool_]) -> Int64:
    """For each row the last one of its key, up to itself, that is not `away`; -1 where there is none."""
    order = np.lexsort((keys.low, keys.high))
    high, low, at = keys.high[order], keys.low[order], np.arange(len(order))
    begins = np.concatenate(([True], (high[1:] != high[:-1]) | (low[1:] != low[:-1])))
    first = np.maximum.accumulate(np.where(begins, at, 0))
    last = np.maximum.accumulate(np.where(away[order], -1, at))
    chosen = np.empty(len(order), np.int64)
    chosen[order] = np.where(last >= first, order[last], -1)
    return chosen


def _is_same(one: pa.Array, other: pa.Array) -> bool:
    """Whether two arrays, both alive, are the same memory."""
    if one is other:
        return True
    if (one.type, one.offset, len(one)) != (other.type, other.offset, len(other)):
        return False
    pairs = zip(one.buffers(), other.buffers(), strict=True)
    return all((a is None) == (b is None) and (a is None or a.address == b.address) for a, b in pairs)


def _joined(pieces: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(pieces, promote_options="permissive").combine_chunks()


def _take_from(piece: pa.Table, rows: Int64) -> pa.Table:
    return piece.take(pa.array(rows, mask=rows < 0) if (rows < 0).any() else pa.array(rows))


def _take(pieces: Sequence[pa.Table], rows: Int64) -> pa.Table:
    """Rows by number, counted over all pieces; null for negative ones. Arrow would join the pieces at each call."""
    taken, place, start, count = [], np.full(len(rows), ABSENT), 0, 0
    for piece in pieces:
        mine = np.flatnonzero((rows >= start) & (rows < start + piece.num_rows))
        taken.append(piece.take(pa.array(rows[mine] - start)))
        place[mine] = count + np.arange(len(mine))
        start, count = start + piece.num_rows, count + len(mine)
    return _take_from(_joined(taken), place)


def _amid_snapshot(events: pa.RecordBatch) -> pa.BooleanArray:
    source = events.column("source")
    if source.type.get_field_index("snapshot") < 0:
        return pa.repeat(False, len(events))
    marks = pc.fill_null(pc.struct_field(source, "snapshot").cast(pa.string()), "false")
    return pc.is_in(marks, pa.array(["true", "first", "first_in_data_collection"]))


class LookupReader:
    """Keeps a `LookupTable` current. `run` never returns.

    `ready` is set once the table holds what the topic held at the start and no first snapshot is under way: keys that
    are merely not there yet must not be taken for unknown. It does not wait for ever: not for the end of a snapshot
    that has gone quiet, nor for the first row of a table that has none.
    """

    def __init__(self, lookup: Lookup, kafka: KafkaSettings, registry: Registry, retry: Retry) -> None:
        self.table = LookupTable(lookup)
        self.ready = asyncio.Event()
        self._kafka = kafka
        self._registry = registry
        used = tuple(dict.fromkeys((lookup.key, *lookup.columns)))
        self._decoder = ChunkDecoder(own_schemas(lookup.topic, registry.schema, captured=True), used=used)
        self._left_out = LeftOut(self.flow, lookup.topic)
        self._retry = retry
        self._state = "not started"

    @property
    def flow(self) -> str:
        return f"lookup:{self.table.lookup.name}"

    def problem(self) -> str | None:
        """What a health page says; None once the table is complete."""
        return None if self.ready.is_set() else self._state

    async def run(self) -> None:
        """Raises what cannot be helped by trying again: the worker cannot go on without its lookups."""
        topic = self.table.lookup.topic
        await self._retry(self.flow, partial(asyncio.to_thread, self._learn))
        consumer = ColumnarConsumer(**consumer_options(self._kafka), headers=False)
        try:
            await consumer.start()
            parts = await self._partitions(consumer, topic)
            consumer.assign(parts)
            # Asked for before the first record is read: what is there now must be in the table before it is used.
            ends = await consumer.end_offsets(parts)
            for tp, start in (await consumer.beginning_offsets(parts)).items():
                consumer.seek(tp, start)
            await self._follow(consumer, parts, ends)
        except (KafkaError, OSError) as e:
            raise from_client(e, where=f"{self.flow} {topic}") from e
        finally:
            await consumer.stop()

    def _learn(self) -> None:
        if self._decoder.learn(registered(self._registry, self.table.lookup.topic)):
            for name in self._decoder.unknown:
                self._left_out.tell(f"no schema of the topic has the column {name}: it is null in every row")

    async def _partitions(self, consumer: ColumnarConsumer, topic: str) -> list[TopicPartition]:
        while True:
            known = await consumer._client.fetch_all_metadata()
            if found := known.partitions_for_topic(topic):
                return [TopicPartition(topic, p) for p in sorted(found)]
            self._state = f"topic {topic} does not exist yet"
            await asyncio.sleep(TOPIC_POLL_SECONDS)

    async def _follow(
        self, consumer: ColumnarConsumer, parts: list[TopicPartition], ends: dict[TopicPartition, int]
    ) -> None:
        checked = heard = time.monotonic()
        while True:
            fetched = await consumer.getmany(*parts, timeout_ms=200 if not self.ready.is_set() else 1000)
            for chunks in fetched.values():
                for chunk in chunks:
                    heard = time.monotonic()
                    await self._retry(f"{self.flow} {chunk.topic}-{chunk.partition}", partial(self._apply, chunk))
            if not self.ready.is_set():
                left = sum([max(0, ends[tp] - await consumer.position(tp)) for tp in parts])
                self._state = self._missing(parts[0].topic, left, time.monotonic() - heard)
                if not self._state:
                    self.ready.set()
            if time.monotonic() - checked > PARTITIONS_CHECK_SECONDS:
                checked = time.monotonic()
                if len(await self._partitions(consumer, parts[0].topic)) != len(parts):
                    raise TerminalError("its topic got more partitions: starting anew", where=self.flow)

    def _missing(self, topic: str, left: int, quiet: float) -> str:
        if left:
            return f"{left} records of {topic} to read"
        if self.table.complete or quiet > EMPTY_SECONDS or (len(self.table) and quiet > QUIET_SECONDS):
            return ""
        return f"{topic}: a snapshot is under way" if len(self.table) else f"{topic} is empty: waiting for a first row"

    async def _apply(self, chunk: Chunk) -> None:
        decoded = await asyncio.to_thread(self._decoder.decode, chunk.values)
        flow = (self.flow, chunk.topic)
        metrics.ROWS_IN.labels(*flow).inc(len(chunk))
        for reason in decoded.reasons:
            metrics.ROWS_DROPPED.labels(*flow, rule_of(reason)).inc()
        self._left_out.undecoded(decoded.reasons)
        batch = decoded.batch
        if envelope.is_envelope(batch.schema) and (keep := self._left_out.countable(batch)) is not None:
            batch = batch.filter(pa.array(keep))
        if len(batch):
            self.table.apply(chunk.partition, batch)
        metrics.ROWS_OUT.labels(*flow).inc(len(decoded.rows))
