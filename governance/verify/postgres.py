"""Rows of PostgreSQL in the form that a current-state table holds them in, as docs/types.md says, type by type.

Values are read as the text that psql prints, where Python's types cannot hold what PostgreSQL's can (`infinity`, 24:00,
years beyond 9999), and turned into that form here: by other code than the pipeline's, from another source.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pyarrow as pa
from psycopg import sql
from psycopg.types import TypeInfo
from psycopg.types.string import TextLoader

from governance.verify.values import canonical, number_text, single

OPTIONS = "-c timezone=UTC -c datestyle=ISO -c intervalstyle=iso_8601 -c lc_monetary=C -c bytea_output=hex"
_NATIVE = {"bool", "int2", "int4", "int8", "oid", "float4", "float8", "numeric", "bytea"}
_GEOMETRIC = {"line", "lseg", "box", "path", "polygon", "circle"}
_LAST_MILLI = datetime.max.replace(microsecond=999_000)
# As Debezium writes them with decimal.handling.mode=string.
_NOT_FINITE = {"NAN": "NaN", "POSITIVE_INFINITY": "Infinity", "NEGATIVE_INFINITY": "-Infinity"}
_NUMBER = re.compile(r"-?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|NaN|Infinity)")


def types_of(connection: psycopg.Connection[Any], schema: str, name: str) -> dict[str, str]:
    """The type of each column, `x[]` for arrays of x, domains as what they are over.

    From then on the connection gives text where Python has no type that holds all values. Raises `psycopg.Error`.
    """
    none = connection.execute(sql.SQL("SELECT * FROM {} LIMIT 0").format(sql.Identifier(schema, name)))
    columns = {column.name: column.type_code for column in none.description or []}
    rows = connection.execute(
        "SELECT t.oid, t.typname, e.oid, e.typname, e.typdelim FROM pg_type t "
        "LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A' WHERE t.oid = ANY(%s)",
        [list(columns.values())],
    ).fetchall()
    names = {}
    for oid, type_name, element, element_name, delimiter in rows:
        names[oid] = type_name if element is None else f"{element_name}[]"
        if (element_name or type_name) not in _NATIVE:
            connection.adapters.register_loader(element or oid, TextLoader)
        if element is not None:
            TypeInfo(element_name, element, oid, delimiter=delimiter).register(connection)
    return {column: names[oid] for column, oid in columns.items()}


@dataclass(frozen=True)
class Forms:
    """How the columns of one table compare: by PostgreSQL's type and by that of the table in the lake."""

    types: Mapping[str, str]
    lake: Mapping[str, pa.DataType]

    def expected(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row of the database in the table's form."""
        return {
            name: comparable(from_postgres(value, self.types[name], self.lake.get(name, pa.null())), self.types[name])
            for name, value in row.items()
        }

    def held(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row of the table, or of an event in canonical form, made to compare with it."""
        return {name: comparable(value, self.types.get(name, "")) for name, value in row.items()}


def comparable(value: Any, type_: str) -> Any:
    """One text for what is written in several ways: keys of an hstore in any order, numbers that are text."""
    if value is None:
        return None
    if isinstance(value, datetime) and value >= _LAST_MILLI:
        return datetime.max  # where years end, a column of milliseconds ends before one of microseconds
    if type_.endswith("[]") and isinstance(value, list):
        return [comparable(item, type_.removesuffix("[]")) for item in value]
    if type_ in ("numeric", "money") and isinstance(value, str):
        number = Decimal(_NOT_FINITE.get(value, value))
        return number_text(number) if number.is_finite() else str(number)
    if type_ == "hstore":
        return json.dumps(json.loads(value), sort_keys=True)
    if type_ in _GEOMETRIC and isinstance(value, bytes):
        return _NUMBER.sub(lambda number: repr(float(number[0])), value.decode())
    return value


def from_postgres(value: Any, type_: str, lake: pa.DataType) -> Any:
    """A value as `types_of` makes psycopg read it, in the form of a column of type `lake`."""
    if value is None:
        return None
    if type_.endswith("[]") and isinstance(value, list):
        item = lake.value_type if pa.types.is_list(lake) else lake
        found = [from_postgres(part, type_.removesuffix("[]"), item) for part in value]
        return [_COARSER[type_](part) if part is not None else None for part in found] if type_ in _COARSER else found
    if isinstance(value, float):
        # A column that was wide stays so, and holds all of a single-precision number.
        return canonical(single(value) if type_ == "float4" or pa.types.is_float32(lake) else value)
    if isinstance(value, str) and type_ in _FROM_TEXT:
        value = _FROM_TEXT[type_](value)
    if isinstance(value, Decimal):
        return number_text(value) if value.is_finite() and pa.types.is_string(lake) else canonical(value)
    if isinstance(value, str) and pa.types.is_boolean(lake):
        return value == "1"
    if isinstance(value, str) and pa.types.is_binary(lake):
        return value.encode()
    return canonical(value)


def _date(text: str) -> date:
    year, bound = _bounded(text)
    return bound.date() if bound else date.fromisoformat(text[: year + 6])


def _timestamp(text: str) -> datetime:
    _, bound = _bounded(text)
    return bound or datetime.fromisoformat(text)


def _bounded(text: str) -> tuple[int, datetime | None]:
    """Digits of the year, and the bound that stands for a time that no reader of the lake holds."""
    if text == "infinity":
        return 0, datetime.max
    if text == "-infinity" or text.endswith("BC"):
        return 0, datetime.min
    digits = text.index("-")
    return digits, datetime.max if digits > 4 else None


def _time(text: str) -> time:
    return time.max if text.startswith("24") else time.fromisoformat(text)


def _zoned_time(text: str) -> str:
    clock, sign, zone = re.fullmatch(r"([\d:.]+)([+-])([\d:]+)", text).groups()  # type: ignore[union-attr] # PostgreSQL's
    hour, minute, second = clock.split(":")
    shift = [int(part) for part in zone.split(":")] + [0, 0]
    offset = timedelta(hours=shift[0], minutes=shift[1], seconds=shift[2]) * (1 if sign == "+" else -1)
    at = datetime(2000, 1, 2, tzinfo=UTC) + timedelta(hours=int(hour), minutes=int(minute)) - offset
    at += timedelta(microseconds=int(Decimal(second) * 10**6))
    whole, _, fraction = at.time().isoformat().partition(".")
    return f"{whole}{'.' + fraction.rstrip('0') if fraction else ''}Z"


def _interval(text: str) -> str:
    """ISO 8601 with every part said, as Debezium writes it. PostgreSQL leaves out those that are zero."""
    days, _, clock = text.removeprefix("P").partition("T")
    parts = {unit: number for number, unit in re.findall(r"(-?[\d.]+)([YMWD])", days)}
    times = {unit: number for number, unit in re.findall(r"(-?[\d.]+)([HMS])", clock)}
    year, month, day = (parts.get(unit, "0") for unit in "YMD")
    hour, minute, second = (times.get(unit, "0") for unit in "HMS")
    return f"P{year}Y{month}M{day}DT{hour}H{minute}M{second}S"


def _bits(text: str) -> str | bytes:
    """The number that the bits are, its lowest byte first; one bit stays."""
    number = int(text or "0", 2)
    return number.to_bytes((number.bit_length() + 7) // 8, "little") if len(text) != 1 else text


def _point(text: str) -> dict[str, Any]:
    x, y = (float(part) for part in text.strip("()").split(","))
    return {"x": x, "y": y, "wkb": struct.pack("<BIdd", 1, 1, x, y)}


def _sparse(text: str) -> dict[str, Any]:
    cells, _, size = text.partition("/")
    pairs = (cell.split(":") for cell in cells.strip("{}").split(",") if cell)
    return {"dimensions": int(size), "vector": [{"key": int(key), "value": float(value)} for key, value in pairs]}


def _hstore(text: str) -> str:
    pair = re.compile(r'"((?:[^"\\]|\\.)*)"=>(?:NULL|"((?:[^"\\]|\\.)*)")')

    def plain(quoted: str | None) -> str | None:
        return None if quoted is None else re.sub(r"\\(.)", r"\1", quoted)

    return json.dumps({plain(key[1]): plain(key[2]) for key in pair.finditer(text)})


# Inside arrays Debezium 3.6 cuts these off.
_COARSER: dict[str, Callable[[Any], Any]] = {
    "time[]": lambda clock: clock.replace(microsecond=clock.microsecond // 1000 * 1000),
    "timetz[]": lambda text: re.sub(r"\.\d+", "", text),
}
_FROM_TEXT: dict[str, Callable[[str], Any]] = {
    "date": _date,
    "timestamp": _timestamp,
    "timestamptz": _timestamp,
    "time": _time,
    "timetz": _zoned_time,
    "interval": _interval,
    "money": lambda text: Decimal(re.sub(r"[^-\d.]", "", text)),
    "bit": _bits,
    "varbit": _bits,
    "point": _point,
    "vector": lambda text: [float(number) for number in json.loads(text)],
    "halfvec": lambda text: [single(float(number)) for number in json.loads(text)],
    "sparsevec": _sparse,
    "hstore": _hstore,
}
