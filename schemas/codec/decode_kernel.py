"""The decoding interpreter: one compiled loop that runs a program over messages.

Every length, count and index read from a message is compared with what is left of it before it is used.
"""

from __future__ import annotations

from headrace.kernels import kernel
from headrace.native import (
    byte_swap,
    copy_bytes,
    copy_padded,
    load_i32,
    load_i64,
    load_u8,
    read_varint,
    shift_right_logical,
    store_i32,
    store_i64,
    store_u8,
)
from schemas.codec import ops, scalars
from schemas.codec.scalars import parse_zoned, read_decimal, saturate, saturate_date, valid_text, within

_MAX_I32 = 0x7FFFFFFF


@kernel("void(i8,i8,i8,i8)")
def read_headers(data: int, offsets: int, n: int, ids: int) -> None:
    """The schema id of n messages in Confluent framing, as int64; -1 for a message that is not framed."""
    for i in range(n):
        start = load_i32(offsets + 4 * i)
        p = data + start
        if load_i32(offsets + 4 * i + 4) - start >= 5 and load_u8(p) == 0:
            store_i64(ids + 8 * i, shift_right_logical(byte_swap(load_i32(p + 1)), 32))
        else:
            store_i64(ids + 8 * i, -1)


@kernel("void(i8,i8,i8,i8,i8)")
def gather(target: int, sources: int, offsets: int, n: int, limit: int) -> None:
    """Copy n strings from their addresses to where their offsets say.

    `limit` is the end of what may be read; `target` must have 16 spare bytes.
    """
    for i in range(n):
        start = load_i32(offsets + 4 * i)
        copy_padded(target + start, load_i64(sources + 8 * i), load_i32(offsets + 4 * i + 4) - start, limit)


@kernel("void(i8,i8)", uses=(ops,))
def write_null(op: int, row: int) -> None:
    """Give the column of a leaf below a null its zero, so that nothing undefined shows."""
    code, column = load_i64(op + ops.CODE), load_i64(op + ops.COLUMN)
    if code == ops.OPTION or code == ops.BOOLEAN or code == ops.BRANCH:
        store_u8(column + row, 0)
    elif code == ops.LONG or code == ops.DOUBLE or code == ops.SCALED or code == ops.ZONED:
        store_i64(column + 8 * row, 0)
    elif code == ops.INT or code == ops.FLOAT:
        store_i32(column + 4 * row, 0)
    elif code == ops.STRING or code == ops.BYTES or code == ops.ENUM or code == ops.NUMBER:
        store_i32(column + 4 * row + 4, load_i32(column + 4 * row))
        store_i64(load_i64(op + ops.SECOND) + 8 * row, 0)
    elif code == ops.DECIMAL or code == ops.FIXED_DECIMAL:
        store_i64(column + 16 * row, 0)
        store_i64(column + 16 * row + 8, 0)
    elif code == ops.FIXED:
        size = load_i64(op + ops.ARGUMENT)
        for k in range(size):
            store_u8(column + size * row + k, 0)
    elif code == ops.UNION:
        store_i32(load_i64(op + ops.SECOND) + 4 * row, -1)
        if column != 0:
            store_u8(column + row, 0)
    elif code == ops.LIST:
        store_i32(column + 4 * row + 4, load_i32(column + 4 * row))


@kernel("i8(i8,i8,i8,i8,i8,i8,i8,i8,i8,i8,i8,i8)", uses=(ops, scalars))
def decode(
    program: int,
    program_end: int,
    data: int,
    limit: int,
    offsets: int,
    messages: int,
    n: int,
    skip: int,
    levels: int,
    levels_end: int,
    bad: int,
    state: int,
) -> int:
    """Decode the n messages whose indexes are at `messages`, into columns with room for n rows.

    `data` and `offsets` are those of a BinaryArray, `limit` the end of its data, `skip` the bytes before the Avro body.
    Returns 0 at the end. Returns 1 + k when level k has no room for ops.WANTED items; after it was given room, calling
    again goes on. Bad messages leave (index, reason, operation) at `bad` and no trace in the columns.
    """
    i, out, n_bad = load_i64(state + ops.NEXT_MESSAGE), load_i64(state + ops.ROWS), load_i64(state + ops.BAD)
    while i < n:
        message = load_i64(messages + 8 * i)
        p = data + load_i32(offsets + 4 * message) + skip
        end = data + load_i32(offsets + 4 * message + 4)
        level = levels
        while level < levels_end:
            store_i64(level + ops.SAVED, load_i64(level + ops.CURSOR))
            level += ops.LEVEL_BYTES
        failure = ops.TRUNCATED if p > end else 0
        row = out
        null_end = 0
        op = program
        value = 0
        while op < program_end and failure == 0:
            code = load_i64(op + ops.CODE)
            if op < null_end:
                write_null(op, row)
                op = load_i64(op + ops.JUMP) if code == ops.LIST else op + ops.OP_BYTES
                continue
            column = load_i64(op + ops.COLUMN)
            if code <= ops.BLOCK:
                value, q = read_varint(p, limit)
                if q > end:
                    failure = ops.TRUNCATED if end - p < 10 else ops.VARINT
                    break
                p = q
            if code == ops.OPTION:
                null_index = load_i64(op + ops.ARGUMENT)
                if value == null_index:
                    store_u8(column + row, 0)
                    null_end = load_i64(op + ops.JUMP)
                elif value == 1 - null_index:
                    store_u8(column + row, 1)
                else:
                    failure = ops.UNION_INDEX
            elif code == ops.LONG:
                store_i64(column + 8 * row, value)
            elif code == ops.STRING or code == ops.BYTES or code == ops.NUMBER:
                if value < 0 or value > end - p:
                    failure = ops.LENGTH if value < 0 else ops.TRUNCATED
                elif code == ops.NUMBER and (
                    value > load_i64(op + ops.ARGUMENT)
                    or ops.DIGITS_OF_A_BYTE * (load_i32(column + 4 * row) + value) + ops.DIGITS_BESIDE * (row + 1)
                    > _MAX_I32
                ):
                    failure = ops.DIGITS if value > load_i64(op + ops.ARGUMENT) else ops.TOO_LARGE
                elif code == ops.STRING and valid_text(p, value, limit) == 0:
                    failure = ops.UTF8
                else:
                    store_i64(load_i64(op + ops.SECOND) + 8 * row, p)
                    store_i32(column + 4 * row + 4, load_i32(column + 4 * row) + value)
                    p += value
            elif code == ops.DOUBLE:
                if end - p < 8:
                    failure = ops.TRUNCATED
                else:
                    store_i64(column + 8 * row, load_i64(p))
                    p += 8
            elif code == ops.INT:
                low, high = load_i64(op + ops.LOW), load_i64(op + ops.HIGH)
                if value < low or value > high:
                    value = saturate_date(value, low, high) if load_i64(op + ops.EXTRA) == 1 else high + 1
                if value > high:
                    failure = ops.RANGE
                else:
                    store_i32(column + 4 * row, value)
            elif code == ops.SCALED:
                low, high = load_i64(op + ops.LOW), load_i64(op + ops.HIGH)
                if value < low or value > high:
                    value = saturate(value, low, high, load_i64(op + ops.EXTRA))
                if value > high:
                    failure = ops.RANGE
                else:
                    factor = load_i64(op + ops.ARGUMENT)
                    store_i64(column + 8 * row, value * factor if factor > 0 else value // 1000)
            elif code == ops.ENUM:
                start = load_i32(column + 4 * row)
                if value < 0 or value >= load_i64(op + ops.ARGUMENT):
                    failure = ops.ENUM_INDEX
                else:
                    symbol = load_i64(op + ops.EXTRA) + 16 * value
                    length = load_i64(symbol + 8)
                    if length > _MAX_I32 - start:
                        failure = ops.TOO_LARGE
                    else:
                        store_i64(load_i64(op + ops.SECOND) + 8 * row, load_i64(symbol))
                        store_i32(column + 4 * row + 4, start + length)
            elif code == ops.FLOAT:
                if end - p < 4:
                    failure = ops.TRUNCATED
                else:
                    store_i32(column + 4 * row, load_i32(p))
                    p += 4
            elif code == ops.DECIMAL or code == ops.FIXED_DECIMAL:
                size = value if code == ops.DECIMAL else load_i64(op + ops.ARGUMENT)
                target = column + 16 * row
                if size < 0 or size > end - p:
                    failure = ops.LENGTH if size < 0 else ops.TRUNCATED
                elif read_decimal(target, p, size) == 0 or not within(
                    load_i64(target), load_i64(target + 8), load_i64(op + ops.LOW), load_i64(op + ops.HIGH)
                ):
                    failure = ops.DIGITS
                else:
                    p += size
            elif code == ops.BOOLEAN:
                if p >= end:
                    failure = ops.TRUNCATED
                elif load_u8(p) > 1:
                    failure = ops.BOOLEAN_BYTE
                else:
                    store_u8(column + row, load_u8(p))
                    p += 1
            elif code == ops.ZONED:
                if value < 0 or value > end - p:
                    failure = ops.LENGTH if value < 0 else ops.TRUNCATED
                else:
                    instant, known = parse_zoned(p, value)
                    if known == 0:
                        failure = ops.TIMESTAMP
                    store_i64(column + 8 * row, instant)
                    p += value
            elif code == ops.UNION:
                if value < 0 or value >= load_i64(op + ops.ARGUMENT):
                    failure = ops.UNION_INDEX
                else:
                    store_i32(load_i64(op + ops.SECOND) + 4 * row, value)
                    if column != 0:
                        store_u8(column + row, 1 if value != load_i64(op + ops.LOW) else 0)
            elif code == ops.BRANCH:
                chosen = load_i32(load_i64(op + ops.SECOND) + 4 * row) == load_i64(op + ops.ARGUMENT)
                store_u8(column + row, 1 if chosen else 0)
                if not chosen:
                    null_end = load_i64(op + ops.JUMP)
            elif code == ops.FIXED:
                size = load_i64(op + ops.ARGUMENT)
                if size > end - p:
                    failure = ops.TRUNCATED
                else:
                    copy_bytes(column + size * row, p, size)
                    p += size
            elif code == ops.LIST:
                level = load_i64(op + ops.SECOND)
                store_i64(level + ops.PARENT, row)
            elif code == ops.BLOCK:
                level = load_i64(op + ops.SECOND)
                cursor = load_i64(level + ops.CURSOR)
                if value < 0:
                    value = -value
                    _ignored, q = read_varint(p, limit)
                    if q > end:
                        failure = ops.TRUNCATED if end - p < 10 else ops.VARINT
                        break
                    p = q
                if value == 0:
                    row = load_i64(level + ops.PARENT)
                    store_i32(column + 4 * row + 4, cursor)
                    op = load_i64(op + ops.JUMP)
                    continue
                if value < 0 or value > (end - p) // load_i64(level + ops.MINIMUM):
                    failure = ops.COUNT
                elif cursor + value - load_i64(level + ops.SAVED) > load_i64(level + ops.FREE) and (
                    (cursor + value - load_i64(level + ops.SAVED)) * load_i64(level + ops.WIDTH)
                    > ops.FREE_BYTES + ops.BYTES_OF_A_BYTE * (end - data - load_i32(offsets + 4 * message) - skip)
                ):
                    failure = ops.TOO_LARGE
                elif value > load_i64(level + ops.CAPACITY) - cursor:
                    level = levels
                    while level < levels_end:
                        store_i64(level + ops.CURSOR, load_i64(level + ops.SAVED))
                        level += ops.LEVEL_BYTES
                    store_i64(state + ops.NEXT_MESSAGE, i)
                    store_i64(state + ops.ROWS, out)
                    store_i64(state + ops.BAD, n_bad)
                    store_i64(state + ops.WANTED, cursor + value)
                    return 1 + (load_i64(op + ops.SECOND) - levels) // ops.LEVEL_BYTES
                else:
                    store_i64(level + ops.REMAINING, value)
                    row = cursor
            elif code == ops.NEXT:
                level = load_i64(op + ops.SECOND)
                row = load_i64(level + ops.CURSOR) + 1
                remaining = load_i64(level + ops.REMAINING) - 1
                store_i64(level + ops.CURSOR, row)
                store_i64(level + ops.REMAINING, remaining)
                null_end = 0
                op = load_i64(op + ops.JUMP) + (ops.OP_BYTES if remaining > 0 else 0)
                continue
            if failure == 0:
                op += ops.OP_BYTES
        if failure == 0 and p != end:
            failure = ops.TRAILING
        if failure == 0:
            out += 1
        else:
            entry = bad + ops.BAD_BYTES * n_bad
            store_i64(entry, message)
            store_i64(entry + 8, failure)
            store_i64(entry + 16, (op - program) // ops.OP_BYTES)
            n_bad += 1
            level = levels
            while level < levels_end:
                store_i64(level + ops.CURSOR, load_i64(level + ops.SAVED))
                level += ops.LEVEL_BYTES
        i += 1
    store_i64(state + ops.NEXT_MESSAGE, i)
    store_i64(state + ops.ROWS, out)
    store_i64(state + ops.BAD, n_bad)
    return 0
