"""A large table and the changes of it, as Debezium writes them: `pgbench_accounts` with a bigint key, about 100 bytes a
row of which 16 are random, so that compression has something to do.

Partition p has the keys that are p modulo the number of partitions. A row's `filler` follows from its key; each update
sets a new random balance at a random key. The first n changes of a topic are the same however many follow them.
"""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.data import change_events
from benchmarks.shapes import envelope, key
from benchmarks.topics import Batches, send, share
from headrace.config import Settings
from headrace.kafka import admin
from schemas.codec import Encoder
from schemas.names import subject
from schemas.registry import Registry

Int64 = npt.NDArray[np.int64]

PARTITIONS = 4
BATCH = 50_000
FILLER = 84
BRANCH = 100_000
ACCOUNT: dict[str, Any] = {
    "type": "record",
    "name": "Value",
    "fields": [
        {"name": "aid", "type": "long"},
        {"name": "bid", "type": ["null", "int"], "default": None},
        {"name": "abalance", "type": ["null", "int"], "default": None},
        {"name": "filler", "type": ["null", "string"], "default": None},
    ],
}
ENVELOPE = envelope("accounts", ACCOUNT)
KEY = key("accounts", "long", "aid")


def rows_of(aids: Int64, balances: Any) -> pa.RecordBatch:
    """The accounts with these keys and balances."""
    random = (aids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    digits = np.frombuffer(binascii.hexlify(random.tobytes()), "S16")
    padded = np.full((len(aids), FILLER), ord(" "), np.uint8)
    padded[:, :16] = digits.view(np.uint8).reshape(-1, 16)
    ends = np.arange(0, (len(aids) + 1) * FILLER, FILLER, dtype=np.int32)
    filler = pa.StringArray.from_buffers(len(aids), pa.py_buffer(ends), pa.py_buffer(padded))
    return pa.RecordBatch.from_pydict(
        {
            "aid": pa.array(aids),
            "bid": pa.array((aids // BRANCH + 1).astype(np.int32)),
            "abalance": pa.array(balances, pa.int32()),
            "filler": filler,
        }
    )


def base(rows: int, partition: int = 0, partitions: int = 1) -> Iterator[pa.RecordBatch]:
    """The table before any change; or the part of it that is in one partition of the topic."""
    aids = np.arange(partition, rows, partitions, dtype=np.int64)
    for start in range(0, len(aids), BATCH):
        part = aids[start : start + BATCH]
        yield rows_of(part, np.zeros(len(part), np.int32))


def updates(rows: int, partition: int, first: int, end: int) -> Iterator[tuple[Int64, Any]]:
    """Keys and new balances of the changes `first` to `end` (exclusive) of a partition."""
    random = np.random.default_rng(4000 + partition)
    keys = (rows - partition + PARTITIONS - 1) // PARTITIONS
    for start in range(0, end, BATCH):
        aids = random.integers(0, keys, BATCH) * PARTITIONS + partition
        balances = random.integers(-1_000_000, 1_000_000, BATCH, np.int32)
        mine = slice(max(first - start, 0), min(BATCH, end - start))
        if mine.start < mine.stop:
            yield aids[mine], balances[mine]


@dataclass(frozen=True)
class Totals:
    """What a table must come to: rows, distinct keys, and a sum that each balance enters with its key."""

    rows: int
    keys: int
    weighted: int

    # The same, as SQL over a table.
    SQL = "count(*), count(DISTINCT aid), sum(CAST(aid + 1 AS HUGEINT) * abalance)"

    @property
    def values(self) -> tuple[int, int, int]:
        return self.rows, self.keys, self.weighted


def expected(rows: int, changes: int) -> Totals:
    """The table after the first `changes` of the topic."""
    balances = np.zeros(rows, np.int64)
    for partition in range(PARTITIONS):
        for aids, values in updates(rows, partition, 0, share(changes, partition, PARTITIONS)):
            # Of equal keys numpy keeps the last value.
            balances[aids] = values
    changed = np.flatnonzero(balances)
    return Totals(rows, rows, sum(map(int, (changed + 1) * balances[changed])))


class AccountsTopic:
    """A change topic: the snapshot of `rows` accounts, then changes, as they are asked for."""

    def __init__(self, settings: Settings, rows: int) -> None:
        self.name = f"bench.public.accounts_{rows}"
        self.rows = rows
        self.changes = 0
        self._settings = settings
        admin.ensure_topics(settings.kafka, {self.name: admin.TopicSpec(PARTITIONS)})

    def base(self, partition: int) -> int:
        """How many records of a partition are the snapshot's: where its changes begin."""
        return len(range(partition, self.rows, PARTITIONS))

    def fill_base(self) -> None:
        def batches(partition: int) -> Batches:
            at = 0
            for batch in base(self.rows, partition, PARTITIONS):
                yield self._events(batch, "r", at, partition)
                at += len(batch)

        self._send(batches)

    def add_changes(self, more: int) -> None:
        """Append the next `more` changes."""
        before, after = self.changes, self.changes + more

        def batches(partition: int) -> Batches:
            at = share(before, partition, PARTITIONS)
            for aids, balances in updates(self.rows, partition, at, share(after, partition, PARTITIONS)):
                yield self._events(rows_of(aids, balances), "u", at, partition)
                at += len(aids)

        self._send(batches)
        self.changes = after

    def _send(self, batches: Any) -> None:
        asyncio.run(send(self._settings, self.name, batches, PARTITIONS))

    @cached_property
    def _encoders(self) -> tuple[Encoder, Encoder]:
        registry = Registry(self._settings.registry.url)
        key, value = ({**schema, "namespace": self.name} for schema in (KEY, ENVELOPE))
        try:
            keys = Encoder(key, registry.register(subject(self.name, "key"), key))
            return keys, Encoder(value, registry.register(subject(self.name, "value"), value))
        finally:
            registry.close()

    def _events(self, rows: pa.RecordBatch, op: str, at: int, partition: int) -> tuple[pa.BinaryArray, pa.BinaryArray]:
        """Keys and values; positions count up in a partition, and no two partitions share one."""
        keys, values = self._encoders
        n = len(rows)
        after = pa.StructArray.from_arrays(rows.columns, names=rows.schema.names)
        position = pa.array((np.arange(at, at + n) + 1) * PARTITIONS + partition)
        ops = pa.array([op]).take(pa.array(np.zeros(n, np.int64)))
        # REPLICA IDENTITY DEFAULT: an update that leaves the key alone has no row before it.
        table = self.name.rpartition(".")[2]
        events = change_events(table, pa.nulls(n, after.type), after, ops, position)
        return keys.encode(rows.select(["aid"])), values.encode(events)
