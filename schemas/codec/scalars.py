"""Single values: UTF-8, decimal digits, ISO 8601 instants, 128-bit decimals. Compiled, on addresses."""

from __future__ import annotations

from headrace.kernels import kernel
from headrace.native import byte_swap, load_i64, load_u8, store_i64

_HIGH_BITS = -0x7F7F7F7F7F7F7F80
_MIN_I64 = -0x8000000000000000
_YEARS = (-62135596800000000, 253402300799999999)
_INFINITY = 0x7974696E69666E69  # "infinity" as a little-endian word
_YEAR_OF_MINUS_INFINITY = 292269055
_FIRST_DAY_OF_POSTGRES = -2440588


@kernel("i8(i8,i8)")
def valid_utf8(p: int, n: int) -> int:
    """1 when n bytes at p are UTF-8 as Python's strict decoder takes it, else 0."""
    end = p + n
    while p < end:
        if end - p >= 8 and load_i64(p) & _HIGH_BITS == 0:
            p += 8
            continue
        first = load_u8(p)
        if first < 0x80:
            p += 1
            continue
        low, high = 0x80, 0xBF
        if first < 0xC2 or first > 0xF4:
            return 0
        more = 1 if first < 0xE0 else (2 if first < 0xF0 else 3)
        if end - p <= more:
            return 0
        if first == 0xE0:
            low = 0xA0
        elif first == 0xED:
            high = 0x9F
        elif first == 0xF0:
            low = 0x90
        elif first == 0xF4:
            high = 0x8F
        second = load_u8(p + 1)
        if second < low or second > high:
            return 0
        for k in range(2, more + 1):
            if load_u8(p + k) & 0xC0 != 0x80:
                return 0
        p += more + 1
    return 1


@kernel("i8(i8,i8,i8)")
def valid_text(p: int, n: int, limit: int) -> int:
    """`valid_utf8`, fast for ASCII. `limit` is the end of what may be read."""
    seen = 0
    k = 0
    while n - k >= 8:
        seen |= load_i64(p + k)
        k += 8
    if k < n:
        if limit - p - k < 8:
            return valid_utf8(p, n)
        seen |= load_i64(p + k) & ((1 << (8 * (n - k))) - 1)
    return 1 if seen & _HIGH_BITS == 0 else valid_utf8(p, n)


@kernel("i8(i8,i8)")
def number(p: int, n: int) -> int:
    """The n decimal digits at p as a number, -1 when one is no digit. n <= 12."""
    value = 0
    for k in range(n):
        digit = load_u8(p + k) - 48
        if digit < 0 or digit > 9:
            return -1
        value = value * 10 + digit
    return value


@kernel("UniTuple(i8,2)(i8,i8)")
def parse_zoned(p: int, n: int) -> tuple[int, int]:
    """Microseconds since 1970 of `[+-]Y*-MM-DDThh:mm[:ss[.f*]](Z|±hh:mm[:ss])` and 1; 0 and 0 when it is not that.

    Years beyond 1 to 9999, `infinity` and `-infinity` give the first or last microsecond of those. Inside an array
    Debezium 3.6 writes `-infinity` as the year 292269055 without its era; Postgres has no year that high.
    """
    end = p + n
    if n == 8 and load_i64(p) == _INFINITY:
        return _YEARS[1], 1
    if n == 9 and load_u8(p) == 45 and load_i64(p + 1) == _INFINITY:
        return _YEARS[0], 1
    sign = 1
    if n > 0 and (load_u8(p) == 43 or load_u8(p) == 45):
        sign = 44 - load_u8(p)
        p += 1
    digits = 0
    while p + digits < end and digits < 12 and load_u8(p + digits) != 45:
        digits += 1
    year = number(p, digits)
    p += digits
    if digits < 4 or year < 0 or end - p < 13:
        return 0, 0
    month, day, hour, minute = number(p + 1, 2), number(p + 4, 2), number(p + 7, 2), number(p + 10, 2)
    if load_u8(p) != 45 or load_u8(p + 3) != 45 or load_u8(p + 6) != 84 or load_u8(p + 9) != 58:
        return 0, 0
    p += 12
    second = 0
    micros = 0
    if load_u8(p) == 58:
        if end - p < 4:
            return 0, 0
        second = number(p + 1, 2)
        p += 3
        if load_u8(p) == 46:
            p += 1
            scale = 100_000
            start = p
            while p < end and load_u8(p) >= 48 and load_u8(p) <= 57:
                micros += (load_u8(p) - 48) * scale
                scale //= 10
                p += 1
            if p in (start, end):
                return 0, 0
    leap = sign > 0 and year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    longest = 30 if month == 4 or month == 6 or month == 9 or month == 11 else 31
    if month == 2:
        longest = 29 if leap or sign < 0 or year == 0 else 28
    if month < 1 or month > 12 or day < 1 or day > longest:
        return 0, 0
    if hour < 0 or hour > 23 or minute < 0 or minute > 59 or second < 0 or second > 59:
        return 0, 0
    offset = 0
    zone = load_u8(p)
    if zone == 90:
        p += 1
    elif (zone == 43 or zone == 45) and end - p >= 6 and load_u8(p + 3) == 58:
        hours, minutes, seconds = number(p + 1, 2), number(p + 4, 2), 0
        p += 6
        if end - p == 3 and load_u8(p) == 58:
            seconds = number(p + 1, 2)
            p += 3
        if hours < 0 or hours > 18 or minutes < 0 or minutes > 59 or seconds < 0 or seconds > 59:
            return 0, 0
        offset = (hours * 3600 + minutes * 60 + seconds) * (44 - zone)
    if p != end or (zone != 90 and zone != 43 and zone != 45):
        return 0, 0
    if sign < 0 or year < 1 or year == _YEAR_OF_MINUS_INFINITY:
        return _YEARS[0], 1
    if year > 9999:
        return _YEARS[1], 1
    # Days from 1970-01-01 with years that begin in March, so that the leap day is the last of its year.
    y = year - 1 if month <= 2 else year
    m = month + 9 if month <= 2 else month - 3
    days = y * 365 + y // 4 - y // 100 + y // 400 + (153 * m + 2) // 5 + day - 1 - 719468
    value = ((days * 86400 + hour * 3600 + minute * 60 + second - offset) * 1_000_000) + micros
    return min(max(value, _YEARS[0]), _YEARS[1]), 1


@kernel("i8(i8,i8,i8,i8)")
def saturate(value: int, low: int, high: int, beyond: int) -> int:
    """The bound that stands for a value beyond it, by types.Beyond; `high + 1` where there is none."""
    if beyond == 1 or (beyond == 2 and value == high + 1):
        return high if value > high else low
    return high + 1


@kernel("i8(i8,i8,i8)")
def saturate_date(days: int, low: int, high: int) -> int:
    """`saturate` for Debezium's dates.

    Debezium 3.6 has both infinities of Postgres as negative numbers: from a snapshot about -622191234 (the clock's zone
    moves it) and -625821272, from the log -2147472692 and -2147472691. The dates that Postgres has begin far above.
    """
    if days > high or days == -2147472692 or abs(days + 622191234) <= 2:
        return high
    if days >= _FIRST_DAY_OF_POSTGRES or days == -2147472691 or abs(days + 625821272) <= 2 or days == -(1 << 31):
        return low
    return high + 1


@kernel("i8(i8,i8,i8,i8)")
def within(low: int, high: int, bound_low: int, bound_high: int) -> int:
    """1 when the 128-bit number (high, low) is at most (bound_high, bound_low) in magnitude, else 0."""
    if high < 0:
        if high == _MIN_I64 and low == 0:
            # Asked before it is negated: compiled code does not see that a sum has become negative by overflow.
            return 0
        low = -low
        high = ~high + (1 if low == 0 else 0)
    if high != bound_high:
        return 1 if high < bound_high else 0
    return 1 if (low ^ _MIN_I64) <= (bound_low ^ _MIN_I64) else 0


@kernel("i8(i8,i8,i8)")
def read_decimal(target: int, p: int, n: int) -> int:
    """Big-endian two's complement of n bytes at p to 16 bytes at target; 0 when it needs more than 16 bytes."""
    while n > 16 and (load_u8(p) == 0 or load_u8(p) == 255):
        if (load_u8(p) ^ load_u8(p + 1)) & 0x80 != 0:
            return 0
        p += 1
        n -= 1
    if n > 16:
        return 0
    if n >= 8:
        low = byte_swap(load_i64(p + n - 8))
        high = low >> 63
        if n > 8:
            high = byte_swap(load_i64(p)) >> (8 * (16 - n))
        store_i64(target, low)
        store_i64(target + 8, high)
        return 1
    low = 0
    if n > 0:
        low = -(load_u8(p) >> 7)
    for k in range(n):
        low = (low << 8) | load_u8(p + k)
    store_i64(target, low)
    store_i64(target + 8, low >> 63)
    return 1
