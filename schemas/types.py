"""What values mean: Avro's logical types and Debezium's semantic types as Arrow types, and back.

All points in time become microseconds, the finest that every reader of the lake knows: milliseconds are scaled,
nanoseconds floored. Numbers of more than 38 digits, the most that Iceberg has, and those with a scale of their own
(Debezium's VariableScaleDecimal) become text: the exact number, as `codec.numbers` writes it. Two rules for what does
not fit:
- A logical type out of range (a date beyond the years 1 to 9999, a time beyond the day, a decimal with more digits
  than its precision) makes its row bad.
- Debezium's dates and timestamps beyond those years saturate at 0001-01-01 and 9999-12-31, its time 24:00:00 at
  23:59:59.999999. Databases have such values (`infinity` arrives as text or as one of several numbers) and open-ended
  rows are too common to be refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any

import pyarrow as pa

from headrace.errors import ContractError
from schemas.avro import NO_DEFAULT, Node, Schema, parse, standalone

UTC_MICROS = pa.timestamp("us", "UTC")
LOCAL_MICROS = pa.timestamp("us")
DEFAULT = b"avro.default"
ALIASES = b"avro.aliases"
ENUM = b"avro.enum"
DECIMAL = "org.apache.kafka.connect.data.Decimal"
VARIABLE = "io.debezium.data.VariableScaleDecimal"

_INT = (-(2**31), 2**31 - 1)
_LONG = (-(2**63), 2**63 - 1)
_DAYS = (-719162, 2932896)
_SECONDS = (_DAYS[0] * 86400, (_DAYS[1] + 1) * 86400)
_DAY_SECONDS = (0, 86400)
YEARS_MICROS = (_SECONDS[0] * 10**6, _SECONDS[1] * 10**6 - 1)


class Form(Enum):
    """How an encoded value becomes an Arrow value."""

    PLAIN = "as it is"
    RANGED = "an int within bounds"
    SCALED = "an int or long within bounds, times a factor"
    ZONED = "ISO 8601 text with an offset"
    DECIMAL = "a big-endian two's complement number"
    NUMBER = "such a number of any size, as text"


class Beyond(IntEnum):
    """What becomes of a value out of bounds."""

    REFUSED = 0  # its row is bad
    SATURATES = 1  # the nearer bound
    END_SATURATES = 2  # the bound for the one value after it, else its row is bad


@dataclass(frozen=True)
class Meaning:
    """The Arrow type of a leaf and the way to it.

    `low` and `high` bound the encoded value, both included. `factor` multiplies it, -1000 divides it by 1000, rounding
    down.
    """

    arrow: pa.DataType
    form: Form = Form.PLAIN
    low: int = 0
    high: int = 0
    factor: int = 1
    beyond: Beyond = Beyond.REFUSED


def _ticks(seconds: tuple[int, int], per_second: int, arrow: pa.DataType, beyond: Beyond = Beyond.REFUSED) -> Meaning:
    low, high = seconds[0] * per_second, seconds[1] * per_second - 1
    factor = -1000 if per_second == 10**9 else 10**6 // per_second
    return Meaning(arrow, Form.SCALED, max(low, _LONG[0]), min(high, _LONG[1]), factor, beyond)


_DATE = Meaning(pa.date32(), Form.RANGED, *_DAYS)
_LOGICAL: dict[tuple[str, str], Meaning] = {
    ("int", "date"): _DATE,
    ("int", "time-millis"): _ticks(_DAY_SECONDS, 10**3, pa.time64("us")),
    ("long", "time-micros"): _ticks(_DAY_SECONDS, 10**6, pa.time64("us")),
    **{
        ("long", f"{prefix}timestamp-{unit}"): _ticks(_SECONDS, per_second, arrow)
        for prefix, arrow in (("", UTC_MICROS), ("local-", LOCAL_MICROS))
        for unit, per_second in (("millis", 10**3), ("micros", 10**6), ("nanos", 10**9))
    },
}
_CONNECT: dict[tuple[str, str], Meaning] = {
    ("int", "io.debezium.time.Date"): Meaning(pa.date32(), Form.RANGED, *_DAYS, beyond=Beyond.SATURATES),
    ("int", "io.debezium.time.Time"): _ticks(_DAY_SECONDS, 10**3, pa.time64("us"), Beyond.END_SATURATES),
    ("long", "io.debezium.time.MicroTime"): _ticks(_DAY_SECONDS, 10**6, pa.time64("us"), Beyond.END_SATURATES),
    ("long", "io.debezium.time.NanoTime"): _ticks(_DAY_SECONDS, 10**9, pa.time64("us"), Beyond.END_SATURATES),
    ("long", "io.debezium.time.Timestamp"): _ticks(_SECONDS, 10**3, LOCAL_MICROS, Beyond.SATURATES),
    ("long", "io.debezium.time.MicroTimestamp"): _ticks(_SECONDS, 10**6, LOCAL_MICROS, Beyond.SATURATES),
    ("long", "io.debezium.time.NanoTimestamp"): _ticks(_SECONDS, 10**9, LOCAL_MICROS, Beyond.SATURATES),
    ("string", "io.debezium.time.ZonedTimestamp"): Meaning(
        UTC_MICROS, Form.ZONED, *YEARS_MICROS, beyond=Beyond.SATURATES
    ),
    ("int", "org.apache.kafka.connect.data.Date"): _DATE,
    ("int", "org.apache.kafka.connect.data.Time"): _LOGICAL["int", "time-millis"],
    ("long", "org.apache.kafka.connect.data.Timestamp"): _LOGICAL["long", "timestamp-millis"],
}
NUMBER = Meaning(pa.string(), Form.NUMBER)
_PLAIN: dict[str, Meaning] = {
    "null": Meaning(pa.null()),
    "boolean": Meaning(pa.bool_()),
    "int": Meaning(pa.int32(), Form.RANGED, *_INT),
    "long": Meaning(pa.int64()),
    "float": Meaning(pa.float32()),
    "double": Meaning(pa.float64()),
    "bytes": Meaning(pa.binary()),
    "string": Meaning(pa.string()),
    "enum": Meaning(pa.string()),
}


def meaning(leaf: Node) -> Meaning:
    """The meaning of a primitive, enum or fixed.

    Types that say nothing known keep their plain Arrow type, as the Avro specification asks; so do decimals whose
    attributes contradict each other, and a fixed of more than 38 digits.
    """
    logical, connect = leaf.attributes.get("logicalType"), leaf.attributes.get("connect.name")
    known = _CONNECT.get((leaf.kind, str(connect))) or _LOGICAL.get((leaf.kind, str(logical)))
    if known is not None:
        return known
    if logical == "decimal" or connect == DECIMAL:
        decimal = _decimal(leaf)
        if decimal is not None:
            return decimal
    if leaf.kind == "fixed":
        return Meaning(pa.binary(leaf.size))
    return _PLAIN[leaf.kind]


def _decimal(leaf: Node) -> Meaning | None:
    said = leaf.attributes
    parameters = said.get("connect.parameters") or {}
    try:
        precision = int(said.get("precision", parameters.get("connect.decimal.precision", 0)))
        scale = int(said.get("scale", parameters.get("scale", 0)))
    except (TypeError, ValueError):
        return None
    if said.get("connect.name") == DECIMAL:
        # PostgreSQL's numeric(2, 4) holds up to 0.0099. Its `money` says no precision; the converter then writes 64.
        precision = max(precision, scale) if "connect.decimal.precision" in parameters else min(precision or 38, 38)
    if leaf.kind not in ("bytes", "fixed") or not (precision >= 1 and 0 <= scale <= precision):
        return None
    if precision > 38:
        return NUMBER if leaf.kind == "bytes" else None
    if leaf.kind == "fixed" and 10**precision > 2 ** (8 * leaf.size - 1):
        return None
    return Meaning(pa.decimal128(precision, scale), Form.DECIMAL, high=10**precision - 1)


def scale_of(leaf: Node) -> int:
    """The scale that a decimal's schema says."""
    parameters = leaf.attributes.get("connect.parameters") or {}
    return int(leaf.attributes.get("scale", parameters.get("scale", 0)))


def is_number(node: Node) -> bool:
    """Whether a record is Debezium's number with a scale of its own: a column of text, not of records."""
    fields = [(field.name, field.node.kind) for field in node.fields]
    return node.attributes.get("connect.name") == VARIABLE and fields == [("scale", "int"), ("value", "bytes")]


def branch_names(union: Node) -> list[str]:
    """Field names of the struct that stands for a union of several types, in branch order, "" for null."""
    short = [(branch.name or branch.kind).rpartition(".")[2] for branch in union.branches]
    names = [
        name if short.count(name) == 1 else (branch.name or branch.kind).replace(".", "_")
        for name, branch in zip(short, union.branches, strict=True)
    ]
    if len(set(names)) != len(names):
        raise ContractError(f"a union names a type twice: {', '.join(names)}", where=union.path)
    return ["" if branch.kind == "null" else name for name, branch in zip(names, union.branches, strict=True)]


def arrow_type(node: Node) -> pa.DataType:
    """The Arrow type that a node decodes to.

    A union of null and T is T. Any other union is a struct with one nullable field for each branch but null, named
    after the branch's type, of which one is set.
    """
    if is_number(node):
        return NUMBER.arrow
    if node.kind == "record":
        return pa.struct([_field(f.name, f.node, f.default, f.aliases) for f in node.fields])
    if node.kind == "array" and node.items is not None:
        return pa.list_(_field("element", node.items))
    if node.kind == "map" and node.items is not None:
        return pa.map_(pa.string(), _field("value", node.items))
    if node.kind == "union":
        if node.optional is not None:
            return arrow_type(node.optional)
        branches = zip(branch_names(node), node.branches, strict=True)
        fields = [pa.field(name, arrow_type(branch)) for name, branch in branches if name]
        if not fields:
            raise ContractError("a union of null alone", where=node.path)
        return pa.struct(fields)
    return meaning(node).arrow


def nullable(node: Node) -> bool:
    return node.kind == "null" or (node.kind == "union" and node.null_index >= 0)


def _field(name: str, node: Node, default: Any = NO_DEFAULT, aliases: Sequence[str] = ()) -> pa.Field:
    metadata = {}
    if default is not NO_DEFAULT and default is not None:
        metadata[DEFAULT] = json.dumps({"type": standalone(node), "default": default}).encode()
    if aliases:
        metadata[ALIASES] = json.dumps(aliases).encode()
    value = node.optional or node
    if value.kind == "enum" and "default" in value.attributes:
        metadata[ENUM] = json.dumps({"symbols": value.symbols, "default": value.attributes["default"]}).encode()
    return pa.field(name, arrow_type(node), nullable(node), metadata=metadata or None)


def arrow_schema(avro: Schema) -> pa.Schema:
    """The Arrow schema of messages under an Avro schema: fields in order, required ones not nullable.

    A default other than null, with the type that gives it its meaning, aliases and the symbols of an enum that has a
    default are kept as JSON in the field's metadata: `avro.default`, `avro.aliases`, `avro.enum`.
    Raises `ContractError` for a schema that has no columns (malformed, recursive).
    """
    return pa.schema(list(arrow_type(parse(avro))))


_AVRO_LEAVES: list[tuple[Any, Any]] = [
    (pa.types.is_boolean, "boolean"),
    (lambda t: pa.types.is_signed_integer(t) and t.bit_width <= 32, "int"),
    (lambda t: pa.types.is_unsigned_integer(t) and t.bit_width <= 16, "int"),
    (lambda t: pa.types.is_int64(t) or pa.types.is_uint32(t), "long"),
    (lambda t: pa.types.is_float16(t) or pa.types.is_float32(t), "float"),
    (pa.types.is_float64, "double"),
    (lambda t: pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_null(t), "string"),
    (lambda t: pa.types.is_binary(t) or pa.types.is_large_binary(t), "bytes"),
    (pa.types.is_date, {"type": "int", "logicalType": "date"}),
    (pa.types.is_time, {"type": "long", "logicalType": "time-micros"}),
    (lambda t: pa.types.is_timestamp(t) and t.tz is not None, {"type": "long", "logicalType": "timestamp-micros"}),
    (pa.types.is_timestamp, {"type": "long", "logicalType": "local-timestamp-micros"}),
]


def avro_schema(schema: pa.Schema, name: str, namespace: str = "") -> dict[str, Any]:
    """An Avro record for an Arrow schema; nullable fields are unions with null and default to null.

    Raises `ContractError` naming the field for a type that Avro cannot say.
    """
    record = _avro_record(list(schema), name, "")
    return {"type": "record", "name": name, **({"namespace": namespace} if namespace else {}), **record}


def _avro_record(fields: list[pa.Field], name: str, path: str) -> dict[str, Any]:
    out = []
    for field in fields:
        where = f"{path}.{field.name}" if path else field.name
        if not (field.name.isidentifier() and field.name.isascii()):
            raise ContractError("not a name that Avro allows", where=where)
        type_ = _avro_type(field.type, f"{name}_{field.name}", where)
        optional = field.nullable or pa.types.is_null(field.type)
        out.append({"name": field.name, "type": ["null", type_], "default": None} if optional else
                   {"name": field.name, "type": type_})  # fmt: skip
    return {"fields": out}


def _avro_type(type_: pa.DataType, name: str, path: str) -> Any:
    for matches, avro in _AVRO_LEAVES:
        if matches(type_):
            return avro
    if pa.types.is_dictionary(type_):
        return _avro_type(type_.value_type, name, path)
    if pa.types.is_decimal(type_):
        return {"type": "bytes", "logicalType": "decimal", "precision": type_.precision, "scale": type_.scale}
    if pa.types.is_fixed_size_binary(type_):
        return {"type": "fixed", "name": name, "size": type_.byte_width}
    if pa.types.is_struct(type_):
        return {"type": "record", "name": name, **_avro_record(list(type_), name, path)}
    if pa.types.is_map(type_) and pa.types.is_string(type_.key_type):
        return {"type": "map", "values": _avro_element(type_.item_field, name, path)}
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return {"type": "array", "items": _avro_element(type_.value_field, name, path)}
    raise ContractError(f"Avro has no type for {type_}", where=path)


def _avro_element(field: pa.Field, name: str, path: str) -> Any:
    type_ = _avro_type(field.type, name, f"{path}[]")
    return ["null", type_] if field.nullable else type_


def iceberg_arrow(schema: pa.Schema) -> pa.Schema:
    """The same fields in types that Iceberg v2 has: what a table for them is created with and appended as.

    Times are microseconds, integers int or long, dictionaries their values, null columns strings. Metadata is dropped.
    Raises `ContractError` naming the field for a type that Iceberg cannot say.
    """
    return pa.schema([_iceberg_field(field, field.name) for field in schema])


def _iceberg_field(field: pa.Field, path: str) -> pa.Field:
    optional = field.nullable or pa.types.is_null(field.type)
    return pa.field(field.name, _iceberg_type(field.type, path), optional)


def _iceberg_type(t: pa.DataType, path: str) -> pa.DataType:
    if pa.types.is_null(t) or pa.types.is_large_string(t) or pa.types.is_string_view(t):
        return pa.string()
    if pa.types.is_large_binary(t) or pa.types.is_binary_view(t):
        return pa.binary()
    if pa.types.is_integer(t):
        if pa.types.is_uint64(t):
            return pa.decimal128(20, 0)
        return pa.int64() if pa.types.is_int64(t) or pa.types.is_uint32(t) else pa.int32()
    if pa.types.is_float16(t):
        return pa.float32()
    if pa.types.is_timestamp(t):
        return UTC_MICROS if t.tz is not None else LOCAL_MICROS
    if pa.types.is_time(t):
        return pa.time64("us")
    if pa.types.is_date(t):
        return pa.date32()
    if pa.types.is_dictionary(t):
        return _iceberg_type(t.value_type, path)
    if pa.types.is_struct(t):
        return pa.struct([_iceberg_field(f, f"{path}.{f.name}") for f in t])
    if pa.types.is_map(t):
        return pa.map_(_iceberg_type(t.key_type, path), _iceberg_field(t.item_field, f"{path}[]"))
    if pa.types.is_list(t) or pa.types.is_large_list(t) or pa.types.is_fixed_size_list(t):
        return pa.list_(_iceberg_field(t.value_field, f"{path}[]"))
    if pa.types.is_decimal(t) and t.precision <= 38 and t.scale >= 0:
        return pa.decimal128(t.precision, t.scale)
    kept = (pa.types.is_boolean, pa.types.is_float32, pa.types.is_float64, pa.types.is_string, pa.types.is_binary,
            pa.types.is_fixed_size_binary)  # fmt: skip
    if any(is_(t) for is_ in kept):
        return t
    raise ContractError(f"Iceberg has no type for {t}", where=path)


def default_of(field: pa.Field) -> bytes | None:
    """What `arrow_schema` kept of a field's default, for `codec.defaults.declared`; None when there is none."""
    metadata: Mapping[bytes, bytes] = field.metadata or {}
    return metadata.get(DEFAULT)


def aliases_of(field: pa.Field) -> tuple[str, ...]:
    """Further names of a field, under which writers before may have written it."""
    metadata: Mapping[bytes, bytes] = field.metadata or {}
    return tuple(json.loads(metadata[ALIASES])) if ALIASES in metadata else ()


def enum_of(field: pa.Field) -> dict[str, Any] | None:
    """`symbols` and `default` of an enum that has a default for symbols which it lacks."""
    metadata: Mapping[bytes, bytes] = field.metadata or {}
    return json.loads(metadata[ENUM]) if ENUM in metadata else None
