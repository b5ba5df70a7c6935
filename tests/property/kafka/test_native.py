"""Varints and copies on raw addresses, against what Python's integers and bytes say."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace import native

INT64 = st.integers(-(2**63), 2**63 - 1) | st.integers(-300, 300)


@given(INT64, st.integers(0, 20))
def test_a_written_varint_is_read_back_from_any_distance_to_the_end(value: int, room: int) -> None:
    memory = np.full(64, 0x80, np.uint8)
    start = memory.ctypes.data
    end = native.write_varint(start, value)
    assert end - start == native.varint_size(value)
    assert native.read_varint(start, end + room) == (value, end)


@given(st.binary(max_size=24))
def test_a_varint_in_random_bytes_is_python_s_reading_or_past_the_limit(data: bytes) -> None:
    memory = np.frombuffer(data + b"\x01" * 16, np.uint8)
    start, limit = memory.ctypes.data, memory.ctypes.data + len(data)
    ends = [i for i, byte in enumerate(data[:10]) if byte < 128]
    value, position = native.read_varint(start, limit)
    if not ends:
        assert position > limit
        return
    raw = sum((byte & 0x7F) << 7 * i for i, byte in enumerate(data[: ends[0] + 1])) & (2**64 - 1)
    assert (value, position - start) == ((raw >> 1) ^ -(raw & 1), ends[0] + 1)


@given(st.binary(max_size=100), st.integers(0, 32))
def test_copies_are_exact_and_stay_in_the_slack(data: bytes, readable_after: int) -> None:
    source = np.frombuffer(data + bytes(readable_after), np.uint8)
    target = np.full(len(data) + 32, 7, np.uint8)
    native.copy_padded(target.ctypes.data, source.ctypes.data, len(data), source.ctypes.data + source.size)
    assert target[: len(data)].tobytes() == data
    assert (target[len(data) + 16 :] == 7).all()
