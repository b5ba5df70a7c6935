"""Raw memory for compiled kernels: loads, stores, copies, varints and checksums on plain 64-bit addresses.

Kernels (Kafka's record batches, Avro) take addresses of Arrow buffers and run without Python objects and without the
GIL. All integers are signed 64-bit, little endian in memory unless `byte_swap` says otherwise, and may be unaligned.
Nothing here checks an address: a kernel compares every length that it reads with the end of its input, as
`length > end - position`, because `position + length` can overflow.
"""

from __future__ import annotations

import platform

import llvmlite.binding as llvm
import numpy as np
import numpy.typing as npt

from headrace.kernels import NativeCall, kernel

load_u8 = NativeCall("load_u8")
load_i32 = NativeCall("load_i32")
load_i64 = NativeCall("load_i64")
store_u8 = NativeCall("store_u8")
store_i16 = NativeCall("store_i16")
store_i32 = NativeCall("store_i32")
store_i64 = NativeCall("store_i64")
shift_right_logical = NativeCall("shift_right_logical")
count_trailing_zeros = NativeCall("count_trailing_zeros")
count_leading_zeros = NativeCall("count_leading_zeros")
byte_swap = NativeCall("byte_swap")
copy_bytes = NativeCall("copy_bytes")


@kernel("void(i8,i8,i8,i8)")
def copy_padded(target: int, source: int, n: int, limit: int) -> None:
    """Copy n bytes, in blocks of 16 while these stay below `limit`, the end of what may be read.

    `target` must have 16 spare bytes after n. Several times faster than `copy_bytes` for short strings.
    """
    if n <= limit - source - 15:
        k = 0
        while k < n:
            store_i64(target + k, load_i64(source + k))
            store_i64(target + k + 8, load_i64(source + k + 8))
            k += 16
    else:
        copy_bytes(target, source, n)


@kernel("UniTuple(i8,2)(i8,i8)")
def read_varint_bytewise(p: int, limit: int) -> tuple[int, int]:
    """`read_varint` without reading 8 bytes at once: near the end of the input and for 9 or 10 byte values."""
    value = 0
    shift = 0
    while p < limit and shift < 70:
        byte = load_u8(p)
        p += 1
        value |= (byte & 0x7F) << shift
        if byte < 128:
            return shift_right_logical(value, 1) ^ -(value & 1), p
        shift += 7
    return 0, limit + 1


@kernel("UniTuple(i8,2)(i8,i8)")
def read_varint(p: int, limit: int) -> tuple[int, int]:
    """Zigzag varint (Kafka's varlong, Avro's long) at p: (value, next position).

    Never reads at or past `limit`. The next position is above `limit` when the value is cut off or has more than 10
    bytes.
    """
    if limit - p < 8:
        return read_varint_bytewise(p, limit)
    word = load_i64(p)
    if (word & 0x80) == 0:
        byte = word & 0x7F
        return (byte >> 1) ^ -(byte & 1), p + 1
    ends = (word & -0x7F7F7F7F7F7F7F80) ^ -0x7F7F7F7F7F7F7F80  # the top bits of bytes that end a value
    if ends == 0:
        return read_varint_bytewise(p, limit)
    last = count_trailing_zeros(ends)
    word &= (ends ^ (ends - 1)) & 0x7F7F7F7F7F7F7F7F
    word = ((word & 0x7F007F007F007F00) >> 1) | (word & 0x007F007F007F007F)
    word = ((word & 0x3FFF00003FFF0000) >> 2) | (word & 0x00003FFF00003FFF)
    word = ((word & 0x0FFFFFFF00000000) >> 4) | (word & 0x000000000FFFFFFF)
    return (word >> 1) ^ -(word & 1), p + (last >> 3) + 1


@kernel("i8(i8)")
def varint_size(value: int) -> int:
    """Bytes that `write_varint` writes: 1 to 10."""
    zigzag = (value << 1) ^ (value >> 63)
    if zigzag == 0:
        return 1
    return (63 - count_leading_zeros(zigzag)) // 7 + 1


@kernel("i8(i8,i8)")
def write_varint(p: int, value: int) -> int:
    """Write a zigzag varint at p; returns the position after it."""
    rest = (value << 1) ^ (value >> 63)
    while rest & -128 != 0:
        store_u8(p, (rest & 0x7F) | 0x80)
        p += 1
        rest = shift_right_logical(rest, 7)
    store_u8(p, rest)
    return p + 1


def _crc_table() -> npt.NDArray[np.int64]:
    table = np.arange(256, dtype=np.int64)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ 0x82F63B78, table >> 1)
    return table


_CRC_TABLE = _crc_table()
_HAS_CRC_INSTRUCTION = platform.machine() in ("x86_64", "AMD64") and bool(llvm.get_host_cpu_features().get("sse4.2"))
_crc_of_8 = NativeCall("crc_of_8")
_crc_of_1 = NativeCall("crc_of_1")


@kernel("i8(i8,i8)")
def crc32c_by_table(data: int, size: int) -> int:
    """CRC-32C (Castagnoli) of a buffer, on any processor."""
    crc = 0xFFFFFFFF
    for i in range(size):
        crc = _CRC_TABLE[(crc ^ load_u8(data + i)) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


crc32c = crc32c_by_table

if _HAS_CRC_INSTRUCTION:

    @kernel("i8(i8,i8)")
    def crc32c(data: int, size: int) -> int:
        """CRC-32C (Castagnoli) of a buffer."""
        crc = 0xFFFFFFFF
        end = data + size
        while end - data >= 8:
            crc = _crc_of_8(crc, load_i64(data))
            data += 8
        while data < end:
            crc = _crc_of_1(crc, load_u8(data))
            data += 1
        return crc ^ 0xFFFFFFFF
