"""The encoding interpreter: one compiled loop that runs a program over rows of columns."""

from __future__ import annotations

from headrace.kernels import kernel
from headrace.native import (
    byte_swap,
    copy_bytes,
    copy_padded,
    load_i32,
    load_i64,
    load_u8,
    store_i32,
    store_i64,
    store_u8,
    write_varint,
)
from schemas.codec import ops, scalars
from schemas.codec.scalars import within

_NANOS_FIT = 9_223_372_036_854_775


@kernel("i8(i8,i8,i8)")
def write_decimal(p: int, source: int, size: int) -> int:
    """The 128-bit number at source in big-endian two's complement; returns the position after it.

    With size 0 in as few bytes as hold it, after their count; else in `size` bytes. Writes up to 16 bytes beyond.
    """
    low, high = load_i64(source), load_i64(source + 8)
    if size == 0:
        size = 1
        if high == low >> 63:
            while size < 8 and low >> (8 * size - 1) != 0 and low >> (8 * size - 1) != -1:
                size += 1
        else:
            size = 9
            while size < 16 and high >> (8 * (size - 8) - 1) != 0 and high >> (8 * (size - 8) - 1) != -1:
                size += 1
        p = write_varint(p, size)
    while size > 16:
        store_u8(p, high >> 63)
        p += 1
        size -= 1
    if size <= 8:
        store_i64(p, byte_swap(low << (8 * (8 - size))))
    else:
        store_i64(p, byte_swap(high << (8 * (16 - size))))
        store_i64(p + size - 8, byte_swap(low))
    return p + size


@kernel("i8(i8,i8,i8,i8,i8,i8,i8)", uses=(ops, scalars))
def encode(program: int, program_end: int, n: int, header: int, out: int, offsets: int, state: int) -> int:
    """Encode n rows after a header of 5 bytes (the low ones of `header`) each; returns the end of what was written.

    `out` must have room for the most that the rows can take. Stops with reason, row and operation at `state` at a value
    that its type does not hold; the reason is 0 otherwise. `offsets` gets n + 1 int32.
    """
    p = out
    store_i64(state, 0)
    store_i32(offsets, 0)
    for i in range(n):
        store_i64(p, header)
        p += 5
        row = i
        op = program
        failure = 0
        while op < program_end and failure == 0:
            code, column = load_i64(op + ops.CODE), load_i64(op + ops.COLUMN)
            if code == ops.OPTION:
                null_index = load_i64(op + ops.ARGUMENT)
                if load_u8(column + row) == 0:
                    store_u8(p, 2 * null_index)
                    p += 1
                    op = load_i64(op + ops.JUMP)
                    continue
                store_u8(p, 2 - 2 * null_index)
                p += 1
            elif code == ops.LONG:
                p = write_varint(p, load_i64(column + 8 * row))
            elif code == ops.STRING or code == ops.BYTES or code == ops.ZONED or code == ops.NUMBER:
                start = load_i32(column + 4 * row)
                size = load_i32(column + 4 * row + 4) - start
                p = write_varint(p, size)
                copy_padded(p, load_i64(op + ops.SECOND) + start, size, load_i64(op + ops.EXTRA))
                p += size
            elif code == ops.DOUBLE:
                store_i64(p, load_i64(column + 8 * row))
                p += 8
            elif code == ops.INT:
                value = load_i32(column + 4 * row)
                if value < load_i64(op + ops.LOW) or value > load_i64(op + ops.HIGH):
                    failure = ops.RANGE
                p = write_varint(p, value)
            elif code == ops.ENUM:
                p = write_varint(p, load_i32(column + 4 * row))
            elif code == ops.SCALED:
                value, factor = load_i64(column + 8 * row), load_i64(op + ops.ARGUMENT)
                if factor > 0:
                    value //= factor
                elif value > _NANOS_FIT or value < -_NANOS_FIT:
                    failure = ops.RANGE
                else:
                    value *= 1000
                if value < load_i64(op + ops.LOW) or value > load_i64(op + ops.HIGH):
                    failure = ops.RANGE
                p = write_varint(p, value)
            elif code == ops.FLOAT:
                store_i32(p, load_i32(column + 4 * row))
                p += 4
            elif code == ops.BOOLEAN:
                store_u8(p, load_u8(column + row))
                p += 1
            elif code == ops.DECIMAL or code == ops.FIXED_DECIMAL:
                source = column + 16 * row
                if not within(load_i64(source), load_i64(source + 8), load_i64(op + ops.LOW), load_i64(op + ops.HIGH)):
                    failure = ops.DIGITS
                p = write_decimal(p, source, load_i64(op + ops.ARGUMENT))
            elif code == ops.FIXED:
                size = load_i64(op + ops.ARGUMENT)
                copy_bytes(p, column + size * row, size)
                p += size
            elif code == ops.UNION:
                choice = load_i32(load_i64(op + ops.SECOND) + 4 * row)
                p = write_varint(p, choice)
                if choice == load_i64(op + ops.LOW):
                    op = load_i64(op + ops.JUMP)
                    continue
            elif code == ops.BRANCH:
                if load_i32(load_i64(op + ops.SECOND) + 4 * row) != load_i64(op + ops.ARGUMENT):
                    op = load_i64(op + ops.JUMP)
                    continue
            elif code == ops.LIST:
                level = load_i64(op + ops.SECOND)
                start, stop = load_i32(column + 4 * row), load_i32(column + 4 * row + 4)
                p = write_varint(p, stop - start)
                if start == stop:
                    op = load_i64(op + ops.JUMP)
                    continue
                store_i64(level + ops.PARENT, row)
                store_i64(level + ops.REMAINING, stop)
                row = start
                op += ops.OP_BYTES  # the block header is written
            elif code == ops.NEXT:
                level = load_i64(op + ops.SECOND)
                row += 1
                if row < load_i64(level + ops.REMAINING):
                    op = load_i64(op + ops.JUMP) + ops.OP_BYTES
                    continue
                store_u8(p, 0)
                p += 1
                row = load_i64(level + ops.PARENT)
            if failure == 0:
                op += ops.OP_BYTES
        if failure != 0:
            store_i64(state, failure)
            store_i64(state + 8, i)
            store_i64(state + 16, (op - program) // ops.OP_BYTES)
            return p
        store_i32(offsets + 4 * i + 4, p - out)
    return p
