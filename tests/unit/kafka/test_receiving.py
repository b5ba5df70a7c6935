"""Responses cut out of the stream: whole, in order, whatever pieces they arrive in."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.kafka.receive import MOST_FRAME_BYTES, SMALLEST_VIEW, STAGE_BYTES, Cursor, FrameProtocol, Frames

SIZES = st.one_of(
    st.integers(0, 40),
    st.integers(STAGE_BYTES - 6, STAGE_BYTES + 2),
    st.integers(STAGE_BYTES, 3 * STAGE_BYTES),
)


class Transport(asyncio.Transport):
    aborted = False

    def abort(self) -> None:
        self.aborted = True


class Stream:
    """A protocol fed as the event loop feeds it."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.frames = Frames(limit=1, loop=loop)
        self.protocol = FrameProtocol(self.closed, self.frames, loop=loop)
        self.transport = Transport()
        self.protocol.connection_made(self.transport)

    def feed(self, data: bytes) -> None:
        while data:
            room = self.protocol.get_buffer(-1)
            assert len(room)
            part = data[: len(room)]
            room[: len(part)] = part
            self.protocol.buffer_updated(len(part))
            data = data[len(part) :]

    async def next(self) -> bytes:
        """As the client's connection asks."""
        (size,) = struct.unpack(">i", await self.frames.readexactly(4))
        frame = await self.frames.readexactly(size)
        assert len(frame) == size
        return bytes(frame)


def framed(body: bytes) -> bytes:
    return struct.pack(">i", len(body)) + body


@given(st.lists(SIZES, max_size=6), st.data())
def test_responses_come_whole_and_in_order(sizes: list[int], data: st.DataObject) -> None:
    bodies = [bytes([i + 1]) * size for i, size in enumerate(sizes)]
    stream = b"".join(map(framed, bodies))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))

    async def work() -> None:
        made = Stream()
        for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            made.feed(stream[start:stop])
        assert [await made.next() for _ in bodies] == bodies
        assert not made.frames.at_eof()
        made.protocol.eof_received()
        assert made.frames.at_eof()
        with pytest.raises(asyncio.IncompleteReadError):
            await made.next()

    asyncio.run(work())


async def test_who_waits_is_woken_by_a_response_and_by_the_end() -> None:
    made = Stream()
    waiting = asyncio.create_task(made.next())
    await asyncio.sleep(0)
    made.feed(framed(b"abc"))
    assert await waiting == b"abc"
    waiting = asyncio.create_task(made.next())
    await asyncio.sleep(0)
    made.protocol.connection_lost(ConnectionResetError("gone"))
    with pytest.raises(ConnectionResetError):
        await waiting
    assert made.closed.done()


async def test_a_response_that_arrived_is_read_before_the_end_is_told() -> None:
    made = Stream()
    made.feed(framed(b"abc") + b"\0\0")
    made.protocol.connection_lost(None)
    assert await made.next() == b"abc"
    with pytest.raises(asyncio.IncompleteReadError):
        await made.next()


@pytest.mark.parametrize("size", [-1, MOST_FRAME_BYTES + 1])
async def test_an_impossible_length_ends_the_connection(size: int) -> None:
    made = Stream()
    made.feed(struct.pack(">i", size))
    assert made.transport.aborted
    with pytest.raises(ConnectionError, match=f"claims to have {size} bytes"):
        await made.next()


@pytest.mark.parametrize(
    ("whole", "size", "kind"),
    [
        (SMALLEST_VIEW, SMALLEST_VIEW, memoryview),
        (SMALLEST_VIEW, SMALLEST_VIEW - 1, bytes),
        (5 * SMALLEST_VIEW, SMALLEST_VIEW, bytes),
        (4 * SMALLEST_VIEW, SMALLEST_VIEW, memoryview),
    ],
)
def test_only_a_large_part_keeps_the_whole_response_in_memory(whole: int, size: int, kind: type[Any]) -> None:
    cursor = Cursor(bytes(range(256)) * (whole // 256))
    part = cursor.read(size)
    assert isinstance(part, kind)
    assert bytes(part) == (bytes(range(256)) * (whole // 256))[:size]
    assert cursor.read(3) == bytes(range(256))[size % 256 :][:3] or size == whole
    assert len(cursor.read(whole)) == max(0, whole - size - 3)
