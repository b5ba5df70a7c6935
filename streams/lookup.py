"""Lookups: a database table, kept current from its change topic, in every worker's memory.

A worker holds the whole table, so that no agent has to have its key's partition. It is read from the start of the
topic, which therefore must keep at least the last change of every row: compacted, or retained for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

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
from schemas import envelope
from schemas.codec import ChunkDecoder, rule_of
from streams.processor import Retry

TOPIC_POLL_SECONDS = 1.0
PARTITIONS_CHECK_SECONDS = 60.0
# A snapshot that says nothing for this long is over; a table from which nothing comes at all is empty.
QUIET_SECONDS = 10.0
EMPTY_SECONDS = 120.0
# From this many keys on, encoding them as a dictionary first is cheaper than looking each up.
MANY_KEYS = 512
# Old versions of rows are thrown away when they outnumber the current ones, or pieces are this many.
FEWEST_TO_COMPACT = 4_096
MOST_PIECES = 64


@dataclass(frozen=True)
class Lookup:
    """Declares that rows of a change topic are looked up by the column `key`, and which columns are wanted."""

    name: str
    topic: str
    key: str
    columns: Sequence[str]


class LookupTable:
    """Rows by key, in columns: fed with change events, asked with arrays of keys."""

    def __init__(self, lookup: Lookup) -> None:
        self.lookup = lookup
        self.complete = False
        """An event was seen that comes only after the last row of the database's first snapshot, or is that row."""
        self._rows: pa.Table | None = None
        self._at: dict[Any, int] = {}
        self._positions: dict[int, envelope.Position] = {}

    def __len__(self) -> int:
        return len(self._at)

    def apply(self, partition: int, events: pa.RecordBatch) -> None:
        """Take change events of one partition, in order; Debezium's repeats are left out.

        Raises `ContractError` when they are no change events, or lack the key or a column.
        """
        if not envelope.is_envelope(events.schema):
            raise ContractError(
                "a lookup reads change events of a database table", where=f"{self.lookup.name}: {self.lookup.topic}"
            )
        self.complete = self.complete or not pc.all(_amid_snapshot(events)).as_py()
        lsn, order = envelope.positions(events)
        before = self._positions.get(partition, envelope.NOWHERE)
        fresh = envelope.after_position(lsn, order, before)
        self._positions[partition] = envelope.highest(lsn, order, before)
        self._take_over(events if fresh.all() else events.filter(pa.array(fresh)))

    def find(self, keys: pa.Array) -> npt.NDArray[np.int64]:
        """The number of each key's row, -1 where there is none (or the key is null)."""
        if len(keys) < MANY_KEYS:
            return self._find(keys)
        coded = keys.dictionary_encode()
        found = np.append(self._find(coded.dictionary), -1)
        codes: npt.NDArray[np.int64] = pc.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False)
        return found[codes]

    def known(self, keys: pa.Array) -> pa.BooleanArray:
        """True for keys that have a row."""
        return pa.array(self.find(keys) >= 0)

    def take(self, keys: pa.Array) -> pa.RecordBatch:
        """The declared columns of each key's row, in the order of the keys; null where there is none."""
        if self._rows is None:
            return pa.RecordBatch.from_pydict({name: pa.nulls(len(keys)) for name in self.lookup.columns})
        found = self.find(keys)
        rows = self._rows.select(list(self.lookup.columns)).take(pa.array(found, mask=found < 0))
        columns = [column.combine_chunks() for column in rows.columns]
        return pa.RecordBatch.from_arrays(columns, schema=rows.schema)

    def _find(self, keys: pa.Array) -> npt.NDArray[np.int64]:
        get = self._at.get
        return np.fromiter((get(key, -1) for key in keys.to_pylist()), np.int64, len(keys))

    def _take_over(self, events: pa.RecordBatch) -> None:
        after, before = envelope.row_batch(events, "after"), envelope.row_batch(events, "before")
        alive = envelope.has_row(events, "after")
        keys = pc.if_else(alive, self._column(after, self.lookup.key), self._column(before, self.lookup.key))
        first = 0 if self._rows is None else self._rows.num_rows
        ops = envelope.operations(events).to_pylist()
        # A row whose key changes comes as the deletion of the old and the creation of the new.
        for row, (key, op, there) in enumerate(zip(keys.to_pylist(), ops, alive.to_pylist(), strict=True)):
            if there:
                self._at[key] = first + row
            elif op == "t":
                self._at.clear()
            else:
                self._at.pop(key, None)
        rows = pa.table({name: self._column(after, name) for name in self.lookup.columns})
        self._rows = rows if self._rows is None else pa.concat_tables([self._rows, rows], promote_options="permissive")
        self._compact()

    def _column(self, rows: pa.RecordBatch, name: str) -> pa.Array:
        if name not in rows.schema.names:
            raise ContractError("no such column", where=f"lookup {self.lookup.name}: {self.lookup.topic}: {name}")
        return rows.column(name)

    def _compact(self) -> None:
        if self._rows is None:
            return
        if self._rows.num_rows > max(FEWEST_TO_COMPACT, 2 * len(self._at)):
            numbers = np.fromiter(self._at.values(), np.int64, len(self._at))
            self._rows = self._rows.take(pa.array(numbers)).combine_chunks()
            self._at = {key: row for row, key in enumerate(self._at)}
        elif self._rows.num_columns and self._rows.column(0).num_chunks > MOST_PIECES:
            self._rows = self._rows.combine_chunks()


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

    def __init__(
        self, lookup: Lookup, kafka: KafkaSettings, schema_of: Callable[[int], dict[str, Any]], retry: Retry
    ) -> None:
        self.table = LookupTable(lookup)
        self.ready = asyncio.Event()
        self._kafka = kafka
        self._decoder = ChunkDecoder(schema_of)
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
        if len(decoded.rows):
            self.table.apply(chunk.partition, decoded.batch)
        metrics.ROWS_OUT.labels(*flow).inc(len(decoded.rows))
