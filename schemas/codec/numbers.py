"""Exact decimal numbers of any size as text, from big-endian two's complement and a scale, and back.

The text is a function of the number alone, so equal numbers are equal text: `-12.5`, `0`, `100`; no zeros at the end of
a fraction. A number that would need more than 64 zeros beside its digits has an exponent: `25E98`, `1E-70`.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.errors import ContractError
from headrace.kernels import kernel
from headrace.native import load_i32, load_i64, load_u8, store_i32, store_i64, store_u8
from schemas.codec import ops

# PostgreSQL's largest numeric has 147,455 digits; turning them into text costs the square of their count.
MAX_BYTES = 61_440
_MAX_ZEROS = 64
_MAX_SCALE = 2**31 - 1
_BILLION = 1_000_000_000
_ZERO, _MINUS, _POINT, _EXPONENT = 48, 45, 46, 69


@kernel("i8(i8,i8,i8)")
def _digits(p: int, n: int, scratch: int) -> int:
    """The decimal digits of the magnitude of n bytes at p, up to where `scratch` + 14 * n + 64 is; returns how many.

    Divides by a billion again and again: Knuth, The Art of Computer Programming, 4.4, method 1a.
    """
    negative = n > 0 and load_u8(p) >= 128
    limbs = (n + 3) // 4
    carry = 1 if negative else 0
    for k in range(limbs):
        word = 0
        for j in range(4):
            at = n - 1 - 4 * k - j
            byte = load_u8(p + at) if at >= 0 else (255 if negative else 0)
            word |= byte << (8 * j)
        if negative:
            word = (word ^ 0xFFFFFFFF) + carry
            carry = word >> 32
            word &= 0xFFFFFFFF
        store_i64(scratch + 8 * k, word)
    end = scratch + 14 * n + 64
    q = end
    while limbs > 0 and load_i64(scratch + 8 * (limbs - 1)) == 0:
        limbs -= 1
    while limbs > 0:
        rest = 0
        for k in range(limbs):
            at = scratch + 8 * (limbs - 1 - k)
            whole = (rest << 32) | load_i64(at)
            store_i64(at, whole // _BILLION)
            rest = whole % _BILLION
        for _ in range(9):
            q -= 1
            store_u8(q, _ZERO + rest % 10)
            rest //= 10
        while limbs > 0 and load_i64(scratch + 8 * (limbs - 1)) == 0:
            limbs -= 1
    while q < end and load_u8(q) == _ZERO:
        q += 1
    return end - q


@kernel("i8(i8,i8,i8)")
def _copy(target: int, source: int, n: int) -> int:
    for k in range(n):
        store_u8(target + k, load_u8(source + k))
    return target + n


@kernel("i8(i8,i8)")
def _zeros(target: int, n: int) -> int:
    for k in range(n):
        store_u8(target + k, _ZERO)
    return target + n


@kernel("i8(i8,i8,i8,i8,i8)")
def _write(out: int, p: int, n: int, scale: int, scratch: int) -> int:
    """The number of n bytes at p and a scale as text at `out`, at most 3 * n + 96 bytes; returns its end."""
    count = _digits(p, n, scratch)
    first = scratch + 14 * n + 64 - count
    if count == 0:
        return _zeros(out, 1)
    while load_u8(first + count - 1) == _ZERO:
        count -= 1
        scale -= 1
    if load_u8(p) >= 128:
        store_u8(out, _MINUS)
        out += 1
    if scale > 0 and scale < count:
        out = _copy(out, first, count - scale)
        store_u8(out, _POINT)
        return _copy(out + 1, first + count - scale, scale)
    if scale > 0 and scale - count <= _MAX_ZEROS:
        out = _zeros(out, 1)
        store_u8(out, _POINT)
        out = _zeros(out + 1, scale - count)
        return _copy(out, first, count)
    out = _copy(out, first, count)
    if scale <= 0 and -scale <= _MAX_ZEROS:
        return _zeros(out, -scale)
    store_u8(out, _EXPONENT)
    out += 1
    if scale > 0:
        store_u8(out, _MINUS)
        out += 1
    power = scale if scale > 0 else -scale
    size = 1
    top = 10
    while power >= top:
        top *= 10
        size += 1
    for k in range(size):
        store_u8(out + size - 1 - k, _ZERO + power % 10)
        power //= 10
    return out + size


@kernel("i8(i8,i8,i8,i8,i8,i8,i8,i8)", uses=(ops,))
def _write_all(
    n: int, sources: int, offsets: int, scales: int, scale: int, validity: int, out: int, out_offsets: int
) -> int:
    """n numbers whose bytes are at `sources`; `scales` is 0 where all have `scale`. Its scratch is behind the text."""
    p = out
    store_i32(out_offsets, 0)
    room = out
    for i in range(n):
        size = load_i32(offsets + 4 * i + 4) - load_i32(offsets + 4 * i)
        room += ops.DIGITS_OF_A_BYTE * size + ops.DIGITS_BESIDE
    for i in range(n):
        if validity == 0 or load_u8(validity + i) != 0:
            size = load_i32(offsets + 4 * i + 4) - load_i32(offsets + 4 * i)
            one = load_i32(scales + 4 * i) if scales != 0 else scale
            p = _write(p, load_i64(sources + 8 * i), size, one, room)
        store_i32(out_offsets + 4 * i + 4, p - out)
    return p - out


def to_text(
    sources: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int32],
    scales: npt.NDArray[np.int32] | int,
    valid: npt.NDArray[np.uint8] | None,
) -> tuple[pa.Buffer, pa.Buffer]:
    """Offsets and data of a string array: number i has the bytes at address `sources[i]`, as many as `offsets` say.

    What is not valid is empty text. The numbers must fit into 2 GiB of text, by `ops.DIGITS_OF_A_BYTE` and its fellow.
    """
    n = len(sources)
    lengths = np.diff(offsets[: n + 1]).astype(np.int64)
    room = ops.DIGITS_OF_A_BYTE * int(lengths.sum()) + ops.DIGITS_BESIDE * n
    text = np.empty(room + 14 * int(lengths.max(initial=0)) + 64, np.uint8)
    ends = np.empty(n + 1, np.int32)
    own, common = (scales.ctypes.data, 0) if isinstance(scales, np.ndarray) else (0, scales)
    used = _write_all(
        n,
        sources.ctypes.data,
        offsets.ctypes.data,
        own,
        common,
        valid.ctypes.data if valid is not None else 0,
        text.ctypes.data,
        ends.ctypes.data,
    )
    return pa.py_buffer(ends), pa.py_buffer(text[:used].copy())


def from_text(text: str, scale: int | None, where: str) -> tuple[int, bytes]:
    """(scale, bytes) of a number: its own least scale that is not negative, or the one given.

    Raises `ContractError` when the text is no finite number, or has more decimals than the scale or any scale.
    """
    try:
        sign, digits, exponent = Decimal(text).as_tuple()
    except InvalidOperation as e:
        raise ContractError("text that is no number", where=where) from e
    if not isinstance(exponent, int):
        raise ContractError("a number that is not finite", where=where)
    while digits[-1] == 0 and exponent < 0 and len(digits) > 1:
        digits, exponent = digits[:-1], exponent + 1
    if digits == (0,):
        exponent = 0
    own = max(0, -exponent) if scale is None else scale
    if exponent + own < 0 or own > _MAX_SCALE:
        raise ContractError(f"a number with more than {min(own, _MAX_SCALE)} decimals", where=where)
    if len(digits) + exponent + own > 3 * MAX_BYTES:
        raise ContractError("a number with too many digits", where=where)
    # int() of a Decimal, unlike that of text, takes any number of digits.
    number = int(Decimal((sign, (*digits, *(0,) * (exponent + own)), 0)))
    return own, number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)
