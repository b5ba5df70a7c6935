"""Operations on whole columns whose types are known before any row is: what SQL expressions compile to."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

BOOL, INT, FLOAT, DOUBLE, TEXT = pa.bool_(), pa.int64(), pa.float32(), pa.float64(), pa.string()
MAX_DIGITS = 76

_PYTHON: dict[str, Callable[..., int]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "negate": operator.neg,
    "abs": abs,
}


@dataclass(frozen=True)
class Vector:
    """A typed column that does not exist yet: `run(batch)` gives its array, or a scalar where all rows are equal."""

    type: pa.DataType
    run: Callable[[pa.RecordBatch], Any]
    literal: bool = False


def is_null(kind: pa.DataType) -> bool:
    return bool(pa.types.is_null(kind))


def is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def widest(kind: pa.DataType) -> pa.DataType:
    """The type that a column's values are worked with: one for all sizes of whole numbers, texts, timestamps."""
    if pa.types.is_integer(kind):
        return INT
    if pa.types.is_large_string(kind) or (pa.types.is_dictionary(kind) and pa.types.is_string(kind.value_type)):
        return TEXT
    if pa.types.is_float16(kind):
        return FLOAT
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    return kind


def type_name(kind: pa.DataType) -> str:
    """For messages."""
    if pa.types.is_nested(kind):
        return "a record" if pa.types.is_struct(kind) else "a list or map"
    names = {BOOL: "a condition", TEXT: "a text"}
    return names.get(kind, "a number" if is_number(kind) else "a time" if is_time(kind) else f"of type {kind}")


def decimal_type(digits: int, scale: int, *, wide: bool = False) -> pa.DataType:
    return pa.decimal256(digits, scale) if wide or digits > 38 else pa.decimal128(digits, scale)


def as_decimal(kind: pa.DataType) -> pa.DataType:
    return kind if pa.types.is_decimal(kind) else pa.decimal128(19, 0)


def common_number(kinds: Iterable[pa.DataType]) -> pa.DataType:
    """The type that DuckDB takes numbers of these types to; decimals get all the digits they need."""
    kinds = list(kinds)
    for floating in (DOUBLE, FLOAT):
        if floating in kinds:
            return floating
    if all(map(pa.types.is_integer, kinds)):
        return INT
    decimals = [as_decimal(k) for k in kinds]
    scale = max(d.scale for d in decimals)
    digits = max(d.precision - d.scale for d in decimals) + scale
    return decimal_type(digits, scale) if digits <= MAX_DIGITS else DOUBLE


def cast(vector: Vector, kind: pa.DataType) -> Vector:
    if vector.type == kind:
        return vector
    # A double does not hold every whole number; DuckDB rounds too.
    return Vector(kind, lambda batch: pc.cast(vector.run(batch), kind, safe=False), vector.literal)


def call(name: str, kind: pa.DataType, *sides: Vector) -> Vector:
    function = getattr(pc, name)
    return Vector(kind, lambda batch: function(*(side.run(batch) for side in sides)))


def compare(name: str, left: Vector, right: Vector) -> Vector:
    """Two sides of one type. NaN equals itself and is above every number."""
    if is_null(left.type):
        left, right = cast(left, BOOL), cast(right, BOOL)
    if not pa.types.is_floating(left.type):
        return call(name, BOOL, left, right)
    function = getattr(pc, name)

    def run(batch: pa.RecordBatch) -> Any:
        a, b = left.run(batch), right.run(batch)
        nan_a, nan_b = pc.is_nan(a), pc.is_nan(b)
        # Where a side is NaN, "is NaN" compares like the values should: false is below true.
        return pc.if_else(pc.or_(nan_a, nan_b), function(nan_a, nan_b), function(a, b))

    return Vector(BOOL, run)


def exact(name: str, *sides: Vector) -> Vector:
    """Whole-number arithmetic; null where the result does not fit 64 bits."""
    checked, python = getattr(pc, f"{name}_checked"), _PYTHON[name]

    def run(batch: pa.RecordBatch) -> Any:
        values = [side.run(batch) for side in sides]
        try:
            return checked(*values)
        except pa.ArrowInvalid:
            pass
        columns = [pa.repeat(v, len(batch)) if isinstance(v, pa.Scalar) else v for v in values]
        rows = zip(*(c.to_pylist() for c in columns), strict=True)
        results = (None if None in row else python(*row) for row in rows)
        return pa.array([r if r is not None and -(2**63) <= r < 2**63 else None for r in results], INT)

    return Vector(INT, run)


def remainder(left: Vector, right: Vector) -> Vector:
    """Of whole numbers, with the sign of the left one; null where the right one is 0."""

    def run(batch: pa.RecordBatch) -> Any:
        a, b = left.run(batch), right.run(batch)
        b = pc.if_else(pc.equal(b, 0), pa.scalar(None, INT), b)
        # x % -1 is 0, but its quotient may not fit.
        b = pc.if_else(pc.equal(b, -1), 1, b)
        return pc.subtract(a, pc.multiply(pc.divide(a, b), b))

    return Vector(INT, run)


def decimal_arithmetic(name: str, left: Vector, right: Vector) -> Vector | None:
    """Exact; None when the result may need more than 76 digits."""
    kinds = as_decimal(left.type), as_decimal(right.type)
    if name == "multiply":
        digits, scale = kinds[0].precision + kinds[1].precision + 1, kinds[0].scale + kinds[1].scale
    else:
        scale = max(k.scale for k in kinds)
        digits = max(k.precision - k.scale for k in kinds) + scale + 1
    if digits > MAX_DIGITS:
        return None
    if name != "multiply":
        kinds = (decimal_type(digits - 1, scale),) * 2
    wide = digits > 38
    sides = [
        cast(side, decimal_type(kind.precision, kind.scale, wide=wide))
        for side, kind in zip((left, right), kinds, strict=True)
    ]
    return call(name, decimal_type(digits, scale, wide=wide), *sides)
