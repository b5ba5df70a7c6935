"""Compiled kernels that write columns as record batches, and place keys as Kafka's default partitioner does.

Arguments named after buffers are addresses.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headrace.kafka import layout
from headrace.kernels import kernel
from headrace.native import (
    byte_swap,
    copy_padded,
    crc32c,
    load_i32,
    load_i64,
    load_u8,
    store_i16,
    store_i32,
    store_i64,
    store_u8,
    varint_size,
    write_varint,
)


@kernel("void(i8,i8)")
def _store_big_i16(p: int, value: int) -> None:
    store_i16(p, byte_swap(value << 48))


@kernel("void(i8,i8)")
def _store_big_i32(p: int, value: int) -> None:
    store_i32(p, byte_swap(value << 32))


@kernel("void(i8,i8)")
def _store_big_i64(p: int, value: int) -> None:
    store_i64(p, byte_swap(value))


@kernel("b1(i8,i8)")
def _is_valid(bits: int, i: int) -> bool:
    return bits == 0 or (load_u8(bits + (i >> 3)) >> (i & 7)) & 1 == 1


@kernel("UniTuple(i8,2)(UniTuple(i8,5),i8)")
def _binary_at(column: tuple[int, ...], i: int) -> tuple[int, int]:
    """(address, size) of row i, size -1 for null.

    A column is (validity bits or 0, offset in them, i32 offsets or 0 when all rows are null, data, end of data).
    """
    bits, bit_offset, offsets, data, _ = column
    if offsets == 0 or not _is_valid(bits, bit_offset + i):
        return 0, -1
    start = load_i32(offsets + 4 * i)
    return data + start, load_i32(offsets + 4 * i + 4) - start


@kernel("UniTuple(i8,4)(UniTuple(i8,5),UniTuple(i8,5),UniTuple(i8,5),i8,i8,i8,i8,i8,i8)")
def encode_records(
    keys: tuple[int, ...],
    values: tuple[int, ...],
    headers: tuple[int, ...],
    timestamps: int,
    timestamp: int,
    first: int,
    rows: int,
    out: int,
    room: int,
) -> tuple[int, int, int, int]:
    """Write records of the rows first..rows to `out` while they fit `room` bytes; `out` has 16 spare bytes.

    `timestamps` is the address of i64 milliseconds, or 0 for the one `timestamp`. `headers` holds wire format, empty
    for none. Returns records written (0: the first alone does not fit), bytes written, first and highest timestamp.
    """
    p = out
    end = out + room
    count = 0
    first_timestamp = load_i64(timestamps + 8 * first) if timestamps else timestamp
    highest = first_timestamp
    for i in range(first, rows):
        key, key_size = _binary_at(keys, i)
        value, value_size = _binary_at(values, i)
        header, header_size = _binary_at(headers, i)
        now = load_i64(timestamps + 8 * i) if timestamps else timestamp
        size = 1 + varint_size(now - first_timestamp) + varint_size(count)
        size += varint_size(key_size) + max(key_size, 0) + varint_size(value_size) + max(value_size, 0)
        size += max(header_size, 1)
        if size + varint_size(size) > end - p:
            break
        p = write_varint(p, size)
        store_u8(p, 0)
        p = write_varint(p + 1, now - first_timestamp)
        p = write_varint(p, count)
        p = write_varint(p, key_size)
        if key_size > 0:
            copy_padded(p, key, key_size, keys[4])
            p += key_size
        p = write_varint(p, value_size)
        if value_size > 0:
            copy_padded(p, value, value_size, values[4])
            p += value_size
        if header_size > 0:
            copy_padded(p, header, header_size, headers[4])
            p += header_size
        else:
            store_u8(p, 0)
            p += 1
        highest = max(highest, now)
        count += 1
    return count, p - out, first_timestamp, highest


@kernel("void(i8,i8,i8,i8,i8,i8,i8,i8,i8)", uses=(layout,))
def write_header(
    p: int,
    size: int,
    attributes: int,
    first_timestamp: int,
    max_timestamp: int,
    producer_id: int,
    producer_epoch: int,
    sequence: int,
    records: int,
) -> None:
    """Header of the batch of `size` bytes at p, whose records are in place; the checksum included."""
    _store_big_i64(p, 0)
    _store_big_i32(p + layout.LENGTH, size - layout.LOG_OVERHEAD)
    store_i32(p + layout.LEADER_EPOCH, -1)
    store_u8(p + layout.MAGIC, 2)
    _store_big_i16(p + layout.ATTRIBUTES, attributes)
    _store_big_i32(p + layout.LAST_OFFSET_DELTA, records - 1)
    _store_big_i64(p + layout.FIRST_TIMESTAMP, first_timestamp)
    _store_big_i64(p + layout.MAX_TIMESTAMP, max_timestamp)
    _store_big_i64(p + layout.PRODUCER_ID, producer_id)
    _store_big_i16(p + layout.PRODUCER_EPOCH, producer_epoch)
    _store_big_i32(p + layout.SEQUENCE, sequence)
    _store_big_i32(p + layout.RECORDS, records)
    _store_big_i32(p + layout.CRC, crc32c(p + layout.ATTRIBUTES, size - layout.ATTRIBUTES))


@kernel("void(UniTuple(i8,5),i8,i4[::1])")
def murmur2_partitions(keys: tuple[int, ...], partitions: int, out: npt.NDArray[np.int32]) -> None:
    """Partition of each key as Kafka's default partitioner says (murmur2, seed 0x9747b28c); -1 for a null key."""
    mask = 0xFFFFFFFF
    multiplier = 0x5BD1E995
    for i in range(len(out)):
        key, size = _binary_at(keys, i)
        if size < 0:
            out[i] = -1
            continue
        h = (0x9747B28C ^ size) & mask
        p = 0
        while p + 4 <= size:
            k = (load_i32(key + p) & mask) * multiplier & mask
            k ^= k >> 24
            h = (h * multiplier & mask) ^ (k * multiplier & mask)
            p += 4
        rest = size - p
        if rest >= 3:
            h ^= load_u8(key + p + 2) << 16
        if rest >= 2:
            h ^= load_u8(key + p + 1) << 8
        if rest >= 1:
            h ^= load_u8(key + p)
            h = h * multiplier & mask
        h ^= h >> 13
        h = h * multiplier & mask
        h ^= h >> 15
        out[i] = (h & 0x7FFFFFFF) % partitions
