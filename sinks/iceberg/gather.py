"""Small chunks of a topic put together, so that what decoding costs by chunk is paid a few times a commit.

A producer that sends as it goes leaves a few dozen records in every fetch, and forty columns of a few dozen rows take
about as long as forty columns of a thousand. So chunks wait a while for the next ones; in a backlog none does.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

import numpy as np

from headrace.kafka import Chunk
from headrace.kafka.columns import concat_binary

# So much waits for no more.
ENOUGH_BYTES = 8 << 20
# What is decoded together at most, and what is decoded alone.
BATCH_BYTES, LARGE_BYTES = 8 << 20, 512 << 10


class Gatherer:
    """Chunks of a topic in the order in which they come. One task takes them. So many bytes or rows as are enough wait
    for no more."""

    def __init__(self, enough_rows: int) -> None:
        self.enough_bytes = ENOUGH_BYTES
        self._enough_rows = enough_rows
        self._waiting: deque[tuple[float, Chunk]] = deque()
        self._waiting_rows = 0
        self.waiting_bytes = 0
        self._taken_bytes = 0
        self._changed = asyncio.Event()
        self._ended = False

    @property
    def nbytes(self) -> int:
        """Memory of the chunks that wait and of those that were taken last."""
        return self.waiting_bytes + self._taken_bytes

    def put(self, chunk: Chunk) -> None:
        self._waiting.append((time.monotonic(), chunk))
        self._waiting_rows += len(chunk)
        self.waiting_bytes += _size(chunk)
        self._changed.set()

    def end(self) -> None:
        """Nothing comes any more, and what is there waits for nothing."""
        self._ended = True
        self._changed.set()

    async def take(self, patience: float) -> tuple[float, list[Chunk]]:
        """When the first of the waiting chunks came, and all of them up to about `enough_bytes`; none when none will
        come. Unless there are enough, waits until the first is `patience` seconds old."""
        self._taken_bytes = 0
        while not self._waiting and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        if not self._waiting:
            return 0.0, []
        since = self._waiting[0][0]
        while not self._enough and (left := since + patience - time.monotonic()) > 0:
            self._changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)
        found = []
        while self._waiting and self._taken_bytes < self.enough_bytes:
            found.append(self._waiting.popleft()[1])
            self._taken_bytes += _size(found[-1])
        self._waiting_rows -= sum(len(chunk) for chunk in found)
        self.waiting_bytes -= self._taken_bytes
        return since, found

    @property
    def _enough(self) -> bool:
        return self._ended or self.waiting_bytes >= self.enough_bytes or self._waiting_rows >= self._enough_rows


def batches(chunks: Iterable[Chunk]) -> Iterator[list[Chunk]]:
    """`chunks` as they are to be decoded: what is small together, up to `BATCH_BYTES`, as one chunk a partition; what
    is large alone, and not copied. Order within a partition is kept. Headers are left out."""
    batch: list[Chunk] = []
    size = 0
    for chunk in chunks:
        more = _size(chunk)
        more = BATCH_BYTES if more >= LARGE_BYTES else more
        if batch and size + more > BATCH_BYTES:
            yield _by_partition(batch)
            batch, size = [], 0
        batch.append(chunk)
        size += more
    if batch:
        yield _by_partition(batch)


def _by_partition(chunks: Sequence[Chunk]) -> list[Chunk]:
    groups: dict[int, list[Chunk]] = {}
    for chunk in chunks:
        groups.setdefault(chunk.partition, []).append(chunk)
    return [_join(group) for group in groups.values()]


def _join(chunks: Sequence[Chunk]) -> Chunk:
    if len(chunks) == 1:
        return chunks[0]
    return Chunk(
        chunks[0].topic,
        chunks[0].partition,
        concat_binary([chunk.keys for chunk in chunks]),
        concat_binary([chunk.values for chunk in chunks]),
        np.concatenate([chunk.offsets for chunk in chunks]),
        np.concatenate([chunk.timestamps for chunk in chunks]),
        chunks[-1].next_offset,
    )


def _size(chunk: Chunk) -> int:
    return int(chunk.values.nbytes + chunk.keys.nbytes)
