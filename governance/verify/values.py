"""One canonical form for values that come from Avro, from tables and from databases, so that they compare.

Avro's side follows the writer schema, with Debezium's semantic types (`connect.name`); see Debezium's documentation of
the PostgreSQL connector, "Data type mappings".
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

EPOCH = datetime(1970, 1, 1)


def canonical(value: Any) -> Any:
    """Times in UTC, numbers by value, NaN equal to itself, records without their null fields."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else value
    if isinstance(value, Decimal):
        return value.normalize()
    if isinstance(value, Mapping):
        return {k: c for k, v in value.items() if (c := canonical(v)) is not None}
    if isinstance(value, list | tuple):
        return [canonical(v) for v in value]
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, memoryview | bytearray):
        return bytes(value)
    return value


_SEMANTIC: dict[str, Callable[[Any], Any]] = {
    "io.debezium.time.Date": lambda v: date(1970, 1, 1) + timedelta(days=v),
    "io.debezium.time.Timestamp": lambda v: EPOCH + timedelta(milliseconds=v),
    "io.debezium.time.MicroTimestamp": lambda v: EPOCH + timedelta(microseconds=v),
    "io.debezium.time.NanoTimestamp": lambda v: EPOCH + timedelta(microseconds=v // 1000),
    "io.debezium.time.Time": lambda v: (EPOCH + timedelta(milliseconds=v)).time(),
    "io.debezium.time.MicroTime": lambda v: (EPOCH + timedelta(microseconds=v)).time(),
    "io.debezium.time.ZonedTimestamp": lambda v: datetime.fromisoformat(v),
}


def from_avro(value: Any, schema: Any, names: dict[str, Any] | None = None) -> Any:
    """A fastavro value in canonical form, by its writer schema."""
    names = {} if names is None else names
    if isinstance(schema, str):
        return from_avro(value, names[schema], names) if schema in names else canonical(value)
    if isinstance(schema, list):
        return _from_union(value, schema, names)
    kind = schema["type"]
    if kind in ("record", "enum", "fixed"):
        names[schema["name"]] = schema
    if kind == "record":
        for field in schema["fields"]:
            _learn(field["type"], names)
        if value is None:
            return None
        pairs = ((f["name"], from_avro(value[f["name"]], f["type"], names)) for f in schema["fields"])
        return {name: v for name, v in pairs if v is not None}
    if value is None:
        return None
    if (semantic := _SEMANTIC.get(schema.get("connect.name", ""))) is not None:
        return canonical(semantic(value))
    if kind == "array":
        return [from_avro(item, schema["items"], names) for item in value]
    if kind == "float":
        return canonical(single(value))
    if kind == "map":
        return {k: from_avro(v, schema["values"], names) for k, v in value.items()}
    return canonical(value)


def _learn(schema: Any, names: dict[str, Any]) -> None:
    """Named types are defined at their first use, which may be in a branch that holds no value here."""
    for branch in schema if isinstance(schema, list) else [schema]:
        if isinstance(branch, dict) and branch.get("type") in ("record", "enum", "fixed"):
            names.setdefault(branch["name"], branch)
            for field in branch.get("fields", ()):
                _learn(field["type"], names)


def _from_union(value: Any, schema: list[Any], names: dict[str, Any]) -> Any:
    branches = [branch for branch in schema if branch != "null"]
    if value is None:
        return None
    return from_avro(value, branches[0], names) if len(branches) == 1 else canonical(value)


def single(value: float) -> float:
    """The nearest single-precision number: a database prints 0.1 where a table holds 0.10000000149."""
    number: float = struct.unpack("f", struct.pack("f", value))[0]
    return number


def from_database(value: Any, arrow_type: str) -> Any:
    """A psycopg value in the form its column has in a table."""
    if isinstance(value, float) and arrow_type == "float":
        value = single(value)
    if arrow_type == "string" and not isinstance(value, str | type(None)):
        value = json.dumps(value) if isinstance(value, dict | list) else str(value)
    return canonical(value)


def difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """The first field whose values differ, with both values; None when equal. Null fields count as absent."""
    for name in [*expected, *(name for name in found if name not in expected)]:
        if expected.get(name) != found.get(name):
            return f"{name} is {found.get(name)!r}, expected {expected.get(name)!r}"
    return None
