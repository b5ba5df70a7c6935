"""Compiled kernels that read record batches into columns.

They check every length against the end of their input: malformed bytes are reported, never followed. Arguments named
after buffers are addresses.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headrace.kafka import layout
from headrace.kernels import kernel
from headrace.native import (
    byte_swap,
    copy_bytes,
    copy_padded,
    crc32c,
    load_i32,
    load_i64,
    load_u8,
    read_varint,
    store_i32,
    store_i64,
    store_u8,
)

# Columns of the index that `index_batches` fills, one row a batch. DATA and DATA_END are the addresses of its records
# (of the decompressed ones once the caller has put them there), POSITION and SIZE are where its records are in the
# input, MARKER is the type of a control record (0 abort, 1 commit, -1 none).
(
    BATCH_BASE_OFFSET,
    BATCH_NEXT_OFFSET,
    BATCH_ATTRIBUTES,
    BATCH_PRODUCER_ID,
    BATCH_FIRST_TIMESTAMP,
    BATCH_MAX_TIMESTAMP,
    BATCH_RECORDS,
    BATCH_DATA,
    BATCH_DATA_END,
    BATCH_MARKER,
    BATCH_STATUS,
    BATCH_POSITION,
    BATCH_SIZE,
) = range(13)
INDEX_COLUMNS = 13

# Values of BATCH_STATUS.
OK, BAD_CRC, MALFORMED = range(3)

# Result of `count_batches` for messages older than format v2.
LEGACY = -1


@kernel("i8(i8)")
def _load_big_i32(p: int) -> int:
    return (byte_swap(load_i32(p)) >> 32) & 0xFFFFFFFF


@kernel("i8(i8)")
def _load_big_i64(p: int) -> int:
    return byte_swap(load_i64(p))


@kernel("i8(i8)")
def _signed_32(value: int) -> int:
    return (value << 32) >> 32


@kernel("i8(i8,i8)", uses=(layout,))
def count_batches(data: int, size: int) -> int:
    """Whole batches at the start of the input (a fetch may end inside one), or LEGACY when one is older than v2."""
    p = data
    end = data + size
    count = 0
    while end - p > layout.MAGIC:
        length = _signed_32(_load_big_i32(p + layout.LENGTH))
        if length > end - p - layout.LOG_OVERHEAD or length <= layout.MAGIC - layout.LOG_OVERHEAD:
            break
        if load_u8(p + layout.MAGIC) < 2:
            return LEGACY
        count += 1
        p += layout.LOG_OVERHEAD + length
    return count


@kernel("i8(i8,i8)")
def _control_type(p: int, limit: int) -> int:
    """Type of the control record at p (its key is version i16, type i16), or -1."""
    _, p = read_varint(p, limit)  # length
    _, p = read_varint(p + 1, limit)  # timestamp delta
    _, p = read_varint(p, limit)  # offset delta
    key_size, p = read_varint(p, limit)
    if key_size < 4 or limit - p < 4:
        return -1
    return _load_big_i32(p) & 0xFFFF


@kernel("i8(i8,i8[:,::1],b1)", uses=(layout,))
def index_batches(data: int, index: npt.NDArray[np.int64], check_crc: bool) -> int:
    """Fill `index` with the headers of its number of batches, counted by `count_batches`; returns the rows filled.

    Stops after the first batch whose status is not OK. Offsets must grow from batch to batch: the checksum does not
    cover them.
    """
    p = data
    next_offset = 0
    for k in range(len(index)):
        end = p + layout.LOG_OVERHEAD + _signed_32(_load_big_i32(p + layout.LENGTH))
        index[k, BATCH_POSITION] = p + layout.HEADER_SIZE - data
        index[k, BATCH_SIZE] = end - p - layout.HEADER_SIZE
        index[k, BATCH_BASE_OFFSET] = _load_big_i64(p)
        if end - p < layout.HEADER_SIZE:
            index[k, BATCH_STATUS] = MALFORMED
            return k + 1
        if check_crc and crc32c(p + layout.ATTRIBUTES, end - p - layout.ATTRIBUTES) != _load_big_i32(p + layout.CRC):
            index[k, BATCH_STATUS] = BAD_CRC
            return k + 1
        base = _load_big_i64(p)
        attributes = _load_big_i32(p + layout.ATTRIBUTES) >> 16
        last_delta = _signed_32(_load_big_i32(p + layout.LAST_OFFSET_DELTA))
        records = _signed_32(_load_big_i32(p + layout.RECORDS))
        previous = next_offset
        next_offset = base + last_delta + 1
        index[k, BATCH_NEXT_OFFSET] = next_offset
        index[k, BATCH_ATTRIBUTES] = attributes
        index[k, BATCH_FIRST_TIMESTAMP] = _load_big_i64(p + layout.FIRST_TIMESTAMP)
        index[k, BATCH_MAX_TIMESTAMP] = _load_big_i64(p + layout.MAX_TIMESTAMP)
        index[k, BATCH_PRODUCER_ID] = _load_big_i64(p + layout.PRODUCER_ID)
        index[k, BATCH_RECORDS] = records
        index[k, BATCH_DATA] = p + layout.HEADER_SIZE
        index[k, BATCH_DATA_END] = end
        index[k, BATCH_MARKER] = -1
        index[k, BATCH_STATUS] = OK
        if load_u8(p + layout.MAGIC) != 2 or base < previous or next_offset <= base or records < 0:
            index[k, BATCH_STATUS] = MALFORMED
            return k + 1
        if attributes & layout.CONTROL and records > 0:
            index[k, BATCH_MARKER] = _control_type(p + layout.HEADER_SIZE, end)
        p = end
    return len(index)


@kernel("UniTuple(i8,7)(i8[:,::1],i8,UniTuple(i8,10))", uses=(layout,))
def parse_records(
    index: npt.NDArray[np.int64],
    from_offset: int,
    columns: tuple[int, ...],
) -> tuple[int, int, int, int, int, int, int]:
    """Records of the indexed (and decompressed) batches, from an offset on, into columns.

    `columns`: key validity bytes, key offsets i32, key data, the same three for values, header offsets i32 (0: leave
    headers out) and header data (each record's headers as they are on the wire, nothing for none), offsets i64,
    timestamps i64. Validity, offsets and timestamps must have room for the sum of records, i32 offsets for one more,
    data for the sum of the batches' sizes and 16 spare bytes.
    Returns rows, key bytes, value bytes, header bytes, null keys, null values, rows with headers; rows is -1 - k when
    batch k is malformed.
    """
    key_valid, key_offsets, key_data, value_valid, value_offsets, value_data = columns[:6]
    header_offsets, header_data, offsets, timestamps = columns[6:]
    rows = key_bytes = value_bytes = header_bytes = null_keys = null_values = with_headers = 0
    store_i32(key_offsets, 0)
    store_i32(value_offsets, 0)
    if header_offsets:
        store_i32(header_offsets, 0)
    for k in range(len(index)):
        base = index[k, BATCH_BASE_OFFSET]
        last_delta = index[k, BATCH_NEXT_OFFSET] - base - 1
        log_append_time = index[k, BATCH_ATTRIBUTES] & layout.LOG_APPEND_TIME
        first_timestamp = index[k, BATCH_FIRST_TIMESTAMP]
        append_timestamp = index[k, BATCH_MAX_TIMESTAMP]
        p = index[k, BATCH_DATA]
        limit = index[k, BATCH_DATA_END]
        previous_delta = -1
        malformed = (-1 - k, 0, 0, 0, 0, 0, 0)
        for _ in range(index[k, BATCH_RECORDS]):
            length, p = read_varint(p, limit)
            if length < 0 or length > limit - p:
                return malformed
            end = p + length
            timestamp_delta, p = read_varint(p + 1, end)
            delta, p = read_varint(p, end)
            if delta <= previous_delta or delta > last_delta:
                return malformed
            previous_delta = delta
            key_size, p = read_varint(p, end)
            if key_size < -1 or key_size > end - p:
                return malformed
            key = p
            if key_size > 0:
                p += key_size
            value_size, p = read_varint(p, end)
            # The count of headers comes after it, even after none.
            if value_size < -1 or value_size >= end - p or p >= end:
                return malformed
            value = p
            if value_size > 0:
                p += value_size
            if base + delta >= from_offset:
                if key_size >= 0:
                    store_u8(key_valid + rows, 1)
                    copy_padded(key_data + key_bytes, key, key_size, limit)
                    key_bytes += key_size
                else:
                    store_u8(key_valid + rows, 0)
                    null_keys += 1
                if value_size >= 0:
                    store_u8(value_valid + rows, 1)
                    copy_padded(value_data + value_bytes, value, value_size, limit)
                    value_bytes += value_size
                else:
                    store_u8(value_valid + rows, 0)
                    null_values += 1
                if header_offsets:
                    if load_u8(p) != 0 or p + 1 != end:
                        copy_padded(header_data + header_bytes, p, end - p, limit)
                        header_bytes += end - p
                        with_headers += 1
                    store_i32(header_offsets + 4 * rows + 4, header_bytes)
                store_i64(offsets + 8 * rows, base + delta)
                timestamp = append_timestamp if log_append_time else first_timestamp + timestamp_delta
                store_i64(timestamps + 8 * rows, timestamp)
                rows += 1
                store_i32(key_offsets + 4 * rows, key_bytes)
                store_i32(value_offsets + 4 * rows, value_bytes)
            p = end
        if p != limit:
            return malformed
    return rows, key_bytes, value_bytes, header_bytes, null_keys, null_values, with_headers


@kernel("UniTuple(i8,3)(i4[::1],i8)")
def measure_headers(row_offsets: npt.NDArray[np.int32], data: int) -> tuple[int, int, int]:
    """Headers, key bytes and value bytes of rows whose wire format is data[row_offsets[i]:row_offsets[i + 1]].

    Headers is -1 - i when row i is malformed.
    """
    count = key_bytes = value_bytes = 0
    for i in range(len(row_offsets) - 1):
        p = data + row_offsets[i]
        end = data + row_offsets[i + 1]
        if p == end:
            continue
        headers, p = read_varint(p, end)
        if headers < 0:
            return -1 - i, 0, 0
        for _ in range(headers):
            size, p = read_varint(p, end)
            if size < 0 or size > end - p:
                return -1 - i, 0, 0
            key_bytes += size
            p += size
            size, p = read_varint(p, end)
            if size < -1 or size > end - p:
                return -1 - i, 0, 0
            if size > 0:
                value_bytes += size
                p += size
            count += 1
        if p != end:
            return -1 - i, 0, 0
    return count, key_bytes, value_bytes


@kernel("void(i4[::1],i8,UniTuple(i8,6))")
def parse_headers(row_offsets: npt.NDArray[np.int32], data: int, columns: tuple[int, ...]) -> None:
    """Headers into columns of the sizes that `measure_headers` found (it has also checked the input).

    `columns`: list offsets i32, key offsets i32, key data, value validity bytes, value offsets i32, value data.
    """
    list_offsets, key_offsets, key_data, value_valid, value_offsets, value_data = columns
    count = key_bytes = value_bytes = 0
    store_i32(list_offsets, 0)
    store_i32(key_offsets, 0)
    store_i32(value_offsets, 0)
    for i in range(len(row_offsets) - 1):
        p = data + row_offsets[i]
        end = data + row_offsets[i + 1]
        if p != end:
            headers, p = read_varint(p, end)
            for _ in range(headers):
                size, p = read_varint(p, end)
                copy_bytes(key_data + key_bytes, p, size)
                key_bytes += size
                size, p = read_varint(p + size, end)
                store_u8(value_valid + count, 1 if size >= 0 else 0)
                if size > 0:
                    copy_bytes(value_data + value_bytes, p, size)
                    value_bytes += size
                    p += size
                count += 1
                store_i32(key_offsets + 4 * count, key_bytes)
                store_i32(value_offsets + 4 * count, value_bytes)
        store_i32(list_offsets + 4 * i + 4, count)
