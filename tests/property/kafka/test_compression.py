from __future__ import annotations

import struct
from contextlib import suppress

import cramjam
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.kafka.compression import Decompressor
from headrace.kafka.errors import CorruptBatchError, DecompressionLimitError
from headrace.kafka.layout import LZ4

PLAIN = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda piece, times: piece * times, st.binary(min_size=1, max_size=30), st.integers(1, 20_000)),
    st.builds(lambda seed, size: np.random.default_rng(seed).bytes(size), st.integers(0, 9), st.integers(0, 300_000)),
)


def frame(data: bytes, linked: bool, checksum: bool) -> bytes:
    stream = cramjam.lz4.Compressor(level=1, content_checksum=checksum, block_linked=linked)
    stream.compress(data)
    return bytes(stream.finish())


def as_java_writes(data: bytes) -> bytes:
    """Independent blocks of 64 KiB without checksums; those that do not get smaller are kept as they are."""
    out = b"\x04\x22\x4d\x18\x60\x40\x82"
    for at in range(0, len(data), 1 << 16):
        block = data[at : at + (1 << 16)]
        packed = bytes(cramjam.lz4.compress_block(block, store_size=False))
        out += struct.pack("<I", len(packed)) + packed if len(packed) < len(block) else b""
        out += struct.pack("<I", len(block) | 1 << 31) + block if len(packed) >= len(block) else b""
    return out + b"\0\0\0\0"


def plain(data: bytes, limit: int = 1 << 22) -> bytes:
    return Decompressor(0, limit).decompress(LZ4, np.frombuffer(data, np.uint8)).tobytes()


@given(PLAIN, st.booleans(), st.booleans())
def test_frames_of_every_kind_are_read(data: bytes, linked: bool, checksum: bool) -> None:
    assert plain(frame(data, linked, checksum)) == data
    assert plain(bytes(cramjam.lz4.compress(data))) == data


@given(PLAIN)
def test_frames_of_java_clients_are_read(data: bytes) -> None:
    written = as_java_writes(data)
    assert bytes(cramjam.lz4.decompress(written)) == data, "the frame is one"
    assert plain(written) == data


@given(PLAIN.filter(len), st.data())
def test_no_more_than_the_limit_is_written(data: bytes, draw: st.DataObject) -> None:
    limit = draw.draw(st.integers(1, len(data)))
    for written in (frame(data, False, False), as_java_writes(data)):
        if limit == len(data):
            assert plain(written, limit) == data
        else:
            with pytest.raises(DecompressionLimitError):
                plain(written, limit)


@given(PLAIN, st.data())
def test_what_is_cut_off_is_corrupt(data: bytes, draw: st.DataObject) -> None:
    written = as_java_writes(data)
    cut = draw.draw(st.integers(0, len(written) - 1))
    with pytest.raises(CorruptBatchError):
        plain(written[:cut])


@given(PLAIN, PLAIN, st.binary(min_size=1, max_size=9))
def test_what_follows_a_frame_is_read_or_refused(one: bytes, two: bytes, rest: bytes) -> None:
    assert plain(as_java_writes(one) + as_java_writes(two)) == one + two
    with pytest.raises((CorruptBatchError, DecompressionLimitError)):
        plain(as_java_writes(one) + b"\x01" + rest)


def test_a_second_frame_counts_towards_the_limit() -> None:
    with pytest.raises(DecompressionLimitError):
        plain(as_java_writes(b"x") + as_java_writes(bytes(1 << 20)), limit=1 << 16)


def test_many_small_blocks_are_read() -> None:
    blocks = b"".join(struct.pack("<I", 1 | 1 << 31) + b"x" for _ in range(200))
    assert plain(b"\x04\x22\x4d\x18\x60\x40\x82" + blocks + bytes(4)) == b"x" * 200


@given(PLAIN, st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_bytes_decompress_within_the_limit_or_are_refused(data: bytes, changes: list[tuple[int, int]]) -> None:
    written = bytearray(as_java_writes(data))
    for place, byte in changes:
        written[place % len(written)] = byte
    with suppress(CorruptBatchError, DecompressionLimitError):
        assert len(plain(bytes(written), 1 << 20)) <= 1 << 20
