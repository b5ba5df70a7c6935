"""Small chunks put together: every record once, in its partition's order, and none waits longer than it may."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pyarrow as pa
import pytest

from headrace.kafka import Chunk
from sinks.iceberg import gather
from sinks.iceberg.gather import Gatherer, batches


def chunk(partition: int, start: int, values: list[bytes | None], cut: int = 0) -> Chunk:
    """Records from offset `start` on; `cut` rows are sliced away in front of them."""
    n = cut + len(values)
    whole = Chunk(
        "t",
        partition,
        pa.array([b"away"] * cut + [None if v is None else b"k" + v for v in values], pa.binary()),
        pa.array([b"away"] * cut + values, pa.binary()),
        np.arange(start - cut, start - cut + n),
        np.arange(n) - cut + 1000 * start,
        start + len(values) + 2,
    )
    return whole.slice(cut)


def test_small_chunks_become_one_a_partition():
    parts = [
        chunk(0, 0, [b"a", None]),
        chunk(1, 5, [b"x"]),
        chunk(0, 4, [b"", b"b" * 40, b"c"], cut=3),
        chunk(0, 9, []),
        chunk(0, 11, [b"d"]),
    ]
    ((first, second),) = batches(parts)
    assert second is parts[1]
    assert first.values.to_pylist() == [b"a", None, b"", b"b" * 40, b"c", b"d"]
    assert first.keys.to_pylist() == [b"ka", None, b"k", b"k" + b"b" * 40, b"kc", b"kd"]
    assert first.offsets.tolist() == [0, 1, 4, 5, 6, 11]
    assert first.timestamps.tolist() == [0, 1, 4000, 4001, 4002, 11000]
    assert (first.topic, first.partition, first.next_offset) == ("t", 0, 14)
    first.values.validate(full=True)


def test_large_chunks_are_alone_and_not_copied(monkeypatch: pytest.MonkeyPatch):
    small, large = chunk(0, 0, [b"a"]), chunk(0, 3, [b"b" * 100])
    monkeypatch.setattr(gather, "LARGE_BYTES", 100)
    made = list(batches([small, large, chunk(0, 6, [b"c"]), chunk(0, 9, [b"d"])]))
    assert made[:2] == [[small], [large]]
    assert [c.values.to_pylist() for c in made[2]] == [[b"c", b"d"]]
    monkeypatch.setattr(gather, "BATCH_BYTES", 0)
    assert [len(batch) for batch in batches([small, chunk(1, 0, [b"c"])])] == [1, 1]


async def test_chunks_wait_for_the_next_ones_but_not_for_long():
    gatherer = Gatherer(1000)
    started = time.monotonic()
    gatherer.put(chunk(0, 0, [b"a"]))
    taking = asyncio.create_task(gatherer.take(0.3))
    await asyncio.sleep(0.1)
    gatherer.put(chunk(0, 3, [b"b"]))
    since, found = await taking
    assert [c.offsets.tolist() for c in found] == [[0], [3]]
    assert started <= since < started + 0.1
    assert time.monotonic() >= since + 0.3
    assert gatherer.nbytes > 0, "what was taken is held until the next are taken"
    gatherer.end()
    assert (await gatherer.take(60))[1] == []
    assert gatherer.nbytes == 0


async def test_enough_of_them_wait_for_nothing():
    gatherer = Gatherer(1000)
    some = [chunk(0, 2 * i, [b"a" * 50]) for i in range(3)]
    gatherer.enough_bytes = some[0].keys.nbytes + some[0].values.nbytes + 1
    for part in some:
        gatherer.put(part)
    assert (await gatherer.take(60))[1] == some[:2]
    gatherer.end()
    assert (await gatherer.take(60))[1] == some[2:], "nor when nothing else can come"
    rows = Gatherer(3)
    rows.put(chunk(0, 0, [b"a", b"b"]))
    rows.put(chunk(0, 4, [b"c"]))
    assert len((await rows.take(60))[1]) == 2
