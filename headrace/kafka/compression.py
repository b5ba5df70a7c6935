"""The codecs of record batches, with a bound on what a batch may decompress to.

Decompression writes into a buffer of the caller's, never into one that the input asks for: a few kilobytes that claim
to be gigabytes are refused after touching no more memory than the bound.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cramjam
import numpy as np
import numpy.typing as npt
from aiokafka.codec import snappy_encode

from headrace.kafka.errors import CorruptBatchError, DecompressionLimitError
from headrace.kafka.layout import GZIP, LZ4, SNAPPY, ZSTD

Bytes = npt.NDArray[np.uint8]

_NO_ROOM = "failed to write whole buffer"
_STREAMS: dict[int, Callable[[Any, Any], int]] = {
    GZIP: cramjam.gzip.decompress_into,
    LZ4: cramjam.lz4.decompress_into,
    ZSTD: cramjam.zstd.decompress_into,
}
_XERIAL_MAGIC = b"\x82SNAPPY\x00"
_XERIAL_HEADER_SIZE = 16


def compress(codec: int, data: memoryview) -> bytes:
    """Compress the records of one batch (codec 1 gzip, 2 snappy, 3 lz4, 4 zstd) in the form that every client reads."""
    if codec == LZ4:
        # Kafka asks for independent blocks; the compressor takes nothing but bytes.
        stream = cramjam.lz4.Compressor(level=1, content_checksum=False, block_linked=False)
        stream.compress(bytes(data))
        return bytes(stream.finish())
    if codec == ZSTD:
        return bytes(cramjam.zstd.compress(data, level=3))
    if codec == GZIP:
        return bytes(cramjam.gzip.compress(data, level=6))
    if codec == SNAPPY:
        return bytes(snappy_encode(bytes(data)))
    raise ValueError(f"no such codec: {codec}")


class Decompressor:
    """Decompresses batches one behind the other into one reused buffer.

    What `decompress` returned lies there until `reset`. The buffer takes `total_bytes` and one batch more, of at most
    `max_batch_bytes`; its pages cost memory only once they are used. Not for use by two threads at once.
    """

    def __init__(self, total_bytes: int, max_batch_bytes: int) -> None:
        self._limit = max_batch_bytes
        self._buffer: Bytes = np.empty(total_bytes + max_batch_bytes, np.uint8)
        self._used = 0

    def reset(self) -> None:
        """Forget what was decompressed, and reuse its memory."""
        self._used = 0

    def decompress(self, codec: int, data: Bytes) -> Bytes:
        """The plain records of a batch.

        Raises `DecompressionLimitError` when they are more than the limit, `CorruptBatchError` when the input is not
        what the codec says.
        """
        room = self._buffer[self._used : self._used + self._limit]
        written = _decompress(codec, data, room)
        if written is None:
            raise DecompressionLimitError(
                f"a record batch of {len(data)} bytes decompresses to more than {self._limit} bytes",
                hint="raise max_decompressed_bytes if its producer is trusted, or seek past it",
            )
        self._used += written
        return room[:written]


def _decompress(codec: int, data: Bytes, room: Bytes) -> int | None:
    """Bytes written, or None when the room is too small."""
    try:
        if codec == SNAPPY:
            return _decompress_snappy(data, room)
        if codec not in _STREAMS:
            raise CorruptBatchError(f"a record batch is compressed by the unknown codec {codec}")
        return _STREAMS[codec](data, room)
    except cramjam.DecompressionError as e:
        if str(e) == _NO_ROOM:
            return None
        raise CorruptBatchError(f"a record batch does not decompress: {e}") from e


def _decompress_snappy(data: Bytes, room: Bytes) -> int | None:
    """Either one raw block (librdkafka), or the framing of snappy-java: magic, two versions, blocks with a length."""
    if data[: len(_XERIAL_MAGIC)].tobytes() != _XERIAL_MAGIC:
        return _decompress_block(data, room)
    at = _XERIAL_HEADER_SIZE
    used = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4].tobytes(), "big")
        at += 4
        if size > len(data) - at:
            raise CorruptBatchError("a record batch does not decompress: snappy block is cut off")
        written = _decompress_block(data[at : at + size], room[used:])
        if written is None:
            return None
        used += written
        at += size
    return used


def _decompress_block(data: Bytes, room: Bytes) -> int | None:
    if cramjam.snappy.decompress_raw_len(data.data) > len(room):
        return None
    return int(cramjam.snappy.decompress_raw_into(data.data, room.data))
