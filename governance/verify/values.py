"""One canonical form for values that come from Avro, from tables and from databases, so that they compare.

Avro's side follows the writer schema, with Debezium's semantic types (`connect.name`); see Debezium's documentation of
the PostgreSQL connector, "Data type mappings". What no reader of the lake could hold has the form that docs/types.md
says: dates and times end with the years 1 and 9999, numbers of more than 38 digits and those with a scale of their own
are text.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal
from typing import Any
from uuid import UUID

import pyarrow as pa

Form = Callable[[Any], Any]

EPOCH = datetime(1970, 1, 1)
_LAST_MILLI = datetime.max.replace(microsecond=999_000)
EXACT = Context(prec=200_000, Emax=10**10, Emin=-(10**10))
DECIMAL = "org.apache.kafka.connect.data.Decimal"
VARIABLE = "io.debezium.data.VariableScaleDecimal"


def canonical(value: Any) -> Any:
    """Times in UTC, numbers by value, NaN equal to itself, records without their null fields."""
    if value is None or isinstance(value, bool | int | str | bytes):
        return value
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else value
    if isinstance(value, Decimal):
        return value.normalize(EXACT) if value.is_finite() else str(value)
    if isinstance(value, dict):
        return {k: c for k, v in value.items() if (c := canonical(v)) is not None}
    if isinstance(value, list | tuple):
        return [canonical(v) for v in value]
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, memoryview | bytearray):
        return bytes(value)
    return value


def _as_it_is(value: Any) -> Any:
    return value


def number_text(value: Decimal) -> str:
    """A number as a table holds it in text: no zeros at its end, an exponent where more than 64 would be needed."""
    sign, digits, exponent = value.normalize(EXACT).as_tuple()
    assert isinstance(exponent, int)
    zeros = exponent if exponent >= 0 else max(0, -exponent - len(digits))
    if zeros > 64:
        return f"{'-' * sign}{''.join(map(str, digits))}E{exponent}"
    return f"{value.normalize(EXACT):f}"


def variable(value: Mapping[str, Any]) -> str:
    """The text of Debezium's number with a scale of its own."""
    return number_text(_unscaled(value["value"], value["scale"]))


def _unscaled(value: bytes, scale: int) -> Decimal:
    return Decimal(int.from_bytes(value, "big", signed=True)).scaleb(-scale, EXACT)


def _decimal(value: Any, schema: Mapping[str, Any]) -> Any:
    """A decimal as fastavro gives it, or its bytes where fastavro does not take its attributes."""
    parameters = schema.get("connect.parameters") or {}
    scale = int(schema.get("scale") or parameters.get("scale") or 0)
    if isinstance(value, bytes):
        value = _unscaled(value, scale)
    declared = parameters.get("connect.decimal.precision")
    if declared is None and schema.get("connect.name") == DECIMAL:
        return canonical(value)
    return number_text(value) if max(scale, int(declared or schema.get("precision", 0))) > 38 else canonical(value)


def _microseconds(value: int) -> datetime:
    last = (datetime.max - EPOCH) // timedelta(microseconds=1)
    first = (datetime.min - EPOCH) // timedelta(microseconds=1)
    return EPOCH + timedelta(microseconds=min(max(value, first), last))


def _clock(value: int) -> time:
    return time.max if value == 86_400_000_000 else (EPOCH + timedelta(microseconds=value)).time()


def _date(value: int) -> date:
    """Debezium 3.6 has both infinities as negative numbers, other ones from a snapshot than from the log."""
    if abs(value + 622191234) <= 2 or value == -2147472692:
        return date.max
    epoch = date(1970, 1, 1).toordinal()
    return date.fromordinal(min(max(value + epoch, 1), date.max.toordinal()))


def _zoned(text: str) -> datetime:
    year = re.match(r"([+-]?)(\d+)-", text)
    if text == "-infinity" or (year and (year[1] == "-" or int(year[2]) in (0, 292269055))):
        return datetime.min
    if text == "infinity" or (year and int(year[2]) > 9999):
        return datetime.max
    return datetime.fromisoformat(text)


_SEMANTIC: dict[str, Form] = {
    "io.debezium.time.Date": _date,
    "io.debezium.time.Timestamp": lambda v: _microseconds(v * 1000) if v < 253402300800000 else _LAST_MILLI,
    "io.debezium.time.MicroTimestamp": _microseconds,
    "io.debezium.time.NanoTimestamp": lambda v: _microseconds(v // 1000),
    "io.debezium.time.Time": lambda v: _LAST_MILLI.time() if v == 86_400_000 else _clock(v * 1000),
    "io.debezium.time.MicroTime": _clock,
    "io.debezium.time.NanoTime": lambda v: _clock(v // 1000),
    "io.debezium.time.ZonedTimestamp": _zoned,
}
# Types whose values have one form only.
_PLAIN: dict[str, Form] = dict.fromkeys(("boolean", "int", "long", "string", "bytes"), _as_it_is)


def reader_of(schema: Any) -> Form:
    """What puts values of a writer schema, as fastavro gives them, into canonical form. Made once for many values."""
    return _reader(schema, {})


def _reader(schema: Any, names: dict[str, Form]) -> Form:
    """`names` are the readers of the named types that the schema has defined so far."""
    if isinstance(schema, str):
        # A type may hold itself: its reader is looked up when there is a value.
        return (lambda value: names[schema](value)) if schema in names else _PLAIN.get(schema, canonical)
    if isinstance(schema, list):
        branches = [_reader(branch, names) for branch in schema if branch != "null"]
        return _nullable(branches[0]) if len(branches) == 1 else canonical
    kind, semantic = schema["type"], _SEMANTIC.get(schema.get("connect.name", ""))
    if kind == "record":
        return _record(schema, names)
    if kind in ("enum", "fixed"):
        names[schema["name"]] = canonical
    if semantic is not None:
        return lambda value: canonical(semantic(value))
    if schema.get("logicalType") == "decimal" or schema.get("connect.name") == DECIMAL:
        return lambda value: _decimal(value, schema)
    if kind == "array":
        item = _reader(schema["items"], names)
        return lambda value: [item(one) for one in value]
    if kind == "map":
        inner = _reader(schema["values"], names)
        return lambda value: {key: inner(one) for key, one in value.items()}
    if kind == "float":
        return lambda value: canonical(single(value))
    return canonical if "logicalType" in schema else _PLAIN.get(kind, canonical)


def _record(schema: Mapping[str, Any], names: dict[str, Form]) -> Form:
    fields: list[tuple[str, Form]] = []

    def read(value: Any) -> Any:
        return {name: v for name, form in fields if (v := form(value[name])) is not None}

    names[schema["name"]] = variable if schema.get("connect.name") == VARIABLE else read
    fields.extend((field["name"], _reader(field["type"], names)) for field in schema["fields"])
    return names[schema["name"]]


def reader_of_arrow(type_: pa.DataType) -> Form:
    """What puts the Python values of an Arrow column into canonical form."""
    if pa.types.is_struct(type_):
        fields = [(field.name, reader_of_arrow(field.type)) for field in type_]
        return _nullable(lambda value: {name: v for name, form in fields if (v := form(value[name])) is not None})
    if pa.types.is_list(type_):
        item = reader_of_arrow(type_.value_type)
        return _nullable(lambda value: [item(one) for one in value])
    plain = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_string, pa.types.is_binary)
    return _as_it_is if any(is_plain(type_) for is_plain in plain) else canonical


def _nullable(form: Form) -> Form:
    return lambda value: None if value is None else form(value)


def single(value: float) -> float:
    """The nearest single-precision number: a database prints 0.1 where a table holds 0.10000000149."""
    number: float = struct.unpack("f", struct.pack("f", value))[0]
    return number


def difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """The first field whose values differ, at any depth, with both values; None when equal. Null is absent."""
    for name in [*expected, *(name for name in found if name not in expected)]:
        want, have = expected.get(name), found.get(name)
        if want != have:
            inner = difference(want, have) if isinstance(want, Mapping) and isinstance(have, Mapping) else None
            return f"{name}.{inner}" if inner else f"{name} is {have!r}, expected {want!r}"
    return None
