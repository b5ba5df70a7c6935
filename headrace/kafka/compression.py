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
_LZ4_MAGIC = b"\x04\x22\x4d\x18"
# Flags of a frame of independent blocks; of one whose blocks have checksums, as the batch has of its own.
_LZ4_PLAIN, _LZ4_BLOCK_CHECKSUMS = 0x60, 0x10
_LZ4_BLOCK_SIZES = {0x40: 64 << 10, 0x50: 256 << 10, 0x60: 1 << 20, 0x70: 4 << 20}
# Beyond these a decoder of frames is no slower.
_LZ4_MOST_BYTES, _LZ4_MOST_BLOCKS = 1 << 16, 16
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
        written = _decompress_lz4(data, room) if codec == LZ4 else None
        return _STREAMS[codec](data, room) if written is None else written
    except cramjam.DecompressionError as e:
        if str(e) == _NO_ROOM:
            return None
        raise CorruptBatchError(f"a record batch does not decompress: {e}") from e


def _decompress_lz4(data: Bytes, room: Bytes) -> int | None:
    """A small frame of independent blocks, block by block: a decoder of frames costs more than what is in it.

    None for any other, and for what does not decompress so: the decoder of frames tells what is wrong with it.
    Source: the LZ4 frame format 1.6.4.
    """
    head = data[:7].tobytes()
    if len(data) > _LZ4_MOST_BYTES or len(head) < 7 or head[:4] != _LZ4_MAGIC:
        return None
    most = _LZ4_BLOCK_SIZES.get(head[5])
    if most is None or head[4] & ~_LZ4_BLOCK_CHECKSUMS != _LZ4_PLAIN:
        return None
    after = 4 if head[4] & _LZ4_BLOCK_CHECKSUMS else 0
    at, used = 7, 0
    for _ in range(_LZ4_MOST_BLOCKS):
        size = int.from_bytes(data[at : at + 4].tobytes(), "little")
        if size == 0:
            return used if at + 4 == len(data) else None
        block = data[at + 4 : at + 4 + (size & 0x7FFFFFFF)]
        to = room[used : used + most]
        if size >> 31:
            if len(block) > len(to):
                return None
            to[: len(block)] = block
            used += len(block)
        else:
            try:
                used += cramjam.lz4.decompress_block_into(block.data, to.data, output_len=len(to))
            except cramjam.DecompressionError:
                return None
        at += 4 + len(block) + after
    return None


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
