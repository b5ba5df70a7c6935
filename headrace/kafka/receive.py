"""Fetch responses received once: from the socket into one buffer each, which is what columns are made from.

The client's own connection copies each response four times before it is records. Only its bytes are received otherwise
here: security, requests, versions, timeouts and errors stay the client's. It has no seam for that, so these private
names are relied on, and its version is pinned: the globals `AIOKafkaConnection` of `create_conn`, `AIOKafkaProtocol`
and `asyncio` of `AIOKafkaConnection.connect`, `io` of its `_handle_frame`; how its `_read` asks its reader, and its
`_requests`.
"""

from __future__ import annotations

import asyncio
import struct
import types
from collections import deque
from typing import Any

import numpy as np
from aiokafka import conn
from aiokafka.protocol.fetch import FetchResponse_v0

from headrace.kafka.rebind import rebind

Frame = bytes | memoryview

# What arrives is put here first: lengths, and responses that are small.
STAGE_BYTES = 1 << 16
# Larger than any text of a response: what is as large as this can only be record batches.
SMALLEST_VIEW = 1 << 16
# A view keeps the whole response in memory, so that one partition which is not read may hold this many times its bytes.
MOST_HELD = 4
MOST_FRAME_BYTES = 1 << 30


class Frames:
    """What the client's connection takes for its StreamReader: responses whole, each asked for by its length first.

    Raises `asyncio.IncompleteReadError` once the connection has ended, or what ended it.
    """

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._arrived: deque[Frame] = deque()
        self._asked: Frame | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._error: BaseException | None = None

    def at_eof(self) -> bool:
        return self._ended and not self._arrived and self._asked is None

    async def readexactly(self, size: int) -> Frame:
        if self._asked is not None:
            frame, self._asked = self._asked, None
            return frame
        while not self._arrived:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise asyncio.IncompleteReadError(b"", size)
            self._waiter = self._loop.create_future()
            await self._waiter
        self._asked = self._arrived.popleft()
        return struct.pack(">i", len(self._asked))

    def feed(self, frame: Frame) -> None:
        self._arrived.append(frame)
        self._wake()

    def end(self, error: BaseException | None = None) -> None:
        self._ended = True
        self._error = self._error or error
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class FrameProtocol(asyncio.BufferedProtocol):
    """Cuts the stream into responses (a length of 4 bytes, then as many): large ones are received in place.

    Without flow control of what is written: only a client that produces without acknowledgement waits for that.
    """

    def __init__(self, closed: asyncio.Future[None], frames: Frames, loop: asyncio.AbstractEventLoop) -> None:
        self._closed = closed
        self._frames = frames
        self._stage = memoryview(bytearray(STAGE_BYTES))
        self._staged = 0
        self._large: memoryview | None = None
        self._filled = 0
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._stage[self._staged :] if self._large is None else self._large[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._large is not None:
            self._filled += nbytes
            if self._filled == len(self._large):
                frame, self._large = self._large, None
                self._frames.feed(frame)
            return
        self._staged += nbytes
        at = 0
        while self._staged - at >= 4:
            size = int.from_bytes(self._stage[at : at + 4], "big", signed=True)
            if not 0 <= size <= MOST_FRAME_BYTES:
                self._refuse(size)
                return
            start, end = at + 4, at + 4 + size
            if end <= self._staged:
                self._frames.feed(bytes(self._stage[start:end]))
                at = end
                continue
            if size + 4 > STAGE_BYTES:
                self._large = np.empty(size, np.uint8).data
                self._filled = self._staged - start
                self._large[: self._filled] = self._stage[start : self._staged]
                at = self._staged
            break
        rest = bytes(self._stage[at : self._staged])
        self._stage[: len(rest)] = rest
        self._staged = len(rest)

    def _refuse(self, size: int) -> None:
        self._frames.end(ConnectionError(f"a response claims to have {size} bytes"))
        if isinstance(self._transport, asyncio.Transport):
            self._transport.abort()

    def eof_received(self) -> bool:
        self._frames.end()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._frames.end(exc)
        if not self._closed.done():
            self._closed.set_result(None)


class Cursor:
    """What the decoder of a fetch response takes for its BytesIO: large reads are views of the response."""

    def __init__(self, data: Frame) -> None:
        self._data = memoryview(data)
        self._at = 0

    def read(self, size: int) -> Frame:
        part = self._data[self._at : self._at + size]
        self._at += len(part)
        if len(part) >= SMALLEST_VIEW and len(part) * MOST_HELD >= len(self._data):
            return part
        return bytes(part)


def _writer(transport: Any, protocol: Any, _: Frames, loop: asyncio.AbstractEventLoop) -> asyncio.StreamWriter:
    # It insists on a StreamReader or none; it only asks it whether waiting for a drain makes sense.
    return asyncio.StreamWriter(transport, protocol, None, loop)


class _Connection(conn.AIOKafkaConnection):
    connect = rebind(
        conn.AIOKafkaConnection.connect,
        AIOKafkaProtocol=FrameProtocol,
        asyncio=types.SimpleNamespace(StreamReader=Frames, StreamWriter=_writer),
    )
    _handle_fetch = rebind(conn.AIOKafkaConnection._handle_frame, io=types.SimpleNamespace(BytesIO=Cursor))

    def _handle_frame(self, frame: Frame) -> None:
        request = self._requests[0][1]
        if request is not None and request.API_KEY == FetchResponse_v0.API_KEY:
            self._handle_fetch(frame)
        else:
            super()._handle_frame(bytes(frame))


connect = rebind(conn.create_conn, AIOKafkaConnection=_Connection)
"""The client's own `create_conn`, of connections that receive fetch responses in place."""
