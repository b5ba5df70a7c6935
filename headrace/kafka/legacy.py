"""Messages older than record batch v2 (Kafka before 0.11): read record by record by the client, within our bounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.errors import HeadraceError
from headrace.kafka import layout
from headrace.kafka.columns import HEADERS, Chunk
from headrace.kafka.compression import Decompressor
from headrace.kafka.errors import CorruptBatchError, DecompressionLimitError
from headrace.kafka.reader import ReadLimits
from headrace.kafka.writer import encode_headers

# Positions in a message of v0 or v1, which begins with offset, length, checksum and magic as a batch does. A compressed
# message is one whose value is a set of messages.
_ATTRIBUTES, _V0_KEY, _V1_KEY = 17, 18, 26


def bounded_size(data: bytes, limits: ReadLimits) -> tuple[int, HeadraceError | None]:
    """Bytes at the start of a fetch, whole messages, that decompress within the limits, and what is wrong after them.

    The client decompresses without a bound, so each message is decompressed here first, only to see that it may be.
    """
    raw = np.frombuffer(data, np.uint8)
    decompressor = Decompressor(0, limits.max_decompressed_bytes)
    at = 0
    while len(data) - at > _ATTRIBUTES:
        end = at + layout.LOG_OVERHEAD + _i32(data, at + layout.LENGTH)
        if not at + _ATTRIBUTES < end <= len(data):
            break
        try:
            codec, body = _body(data, at, end)
            if codec:
                decompressor.reset()
                decompressor.decompress(codec, raw[body:end])
            elif end - at > limits.max_decompressed_bytes:
                raise DecompressionLimitError(f"a message of {end - at} bytes is above max_decompressed_bytes")
        except HeadraceError as e:
            return at, e
        at = end
    return len(data), None


def _body(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Codec of the message or batch, and where what it has compressed begins."""
    magic = data[at + layout.MAGIC]
    if magic >= 2:
        if end - at < layout.HEADER_SIZE:
            raise CorruptBatchError("a record batch ends inside its header")
        return data[at + layout.ATTRIBUTES + 1] & layout.CODEC_MASK, at + layout.HEADER_SIZE
    key = at + (_V1_KEY if magic else _V0_KEY)
    return data[at + _ATTRIBUTES] & layout.CODEC_MASK, key + 4 + max(_i32(data, key), 0) + 4


def _i32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big", signed=True)


def take(records: Iterator[Any], limits: ReadLimits) -> tuple[list[Any], Exception | None]:
    """The next of the client's records, as many as go into one chunk, and what the client raised after them."""
    some: list[Any] = []
    size = 0
    try:
        for record in records:
            some.append(record)
            size += max(record.serialized_key_size, 0) + max(record.serialized_value_size, 0)
            if len(some) == limits.max_chunk_rows or size >= limits.max_chunk_bytes:
                break
    except Exception as e:  # the client's decoders fail with anything: assertions, struct.error, zlib.error
        return some, e
    return some, None


def chunk_of(topic: str, partition: int, records: list[Any], next_offset: int) -> Chunk:
    """The client's records as columns."""
    headers = [[{"key": key, "value": value} for key, value in record.headers] for record in records]
    return Chunk(
        topic,
        partition,
        pa.array([record.key for record in records], pa.binary()),
        pa.array([record.value for record in records], pa.binary()),
        np.array([record.offset for record in records], np.int64),
        np.array([-1 if record.timestamp is None else record.timestamp for record in records], np.int64),
        next_offset,
        encode_headers(pa.array(headers, HEADERS)) if any(headers) else None,
    )
