"""Avro schemas with data for them, and what they decode to according to fastavro."""

from __future__ import annotations

import ctypes
import io
import json
import mmap
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import fastavro
import fastavro.read
import fastavro.write
import pyarrow as pa
from hypothesis import strategies as st

from schemas.avro import Node, parse
from schemas.types import branch_names

HEADER = b"\0\0\0\0\7"

Typed = tuple[Any, st.SearchStrategy[Any]]

_I32 = st.integers(-(2**31), 2**31 - 1)
_I64 = st.integers(-(2**63), 2**63 - 1)
_F32 = st.floats(width=32)
_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
_INSTANT = st.datetimes(timezones=st.just(UTC))
_NEAR = st.datetimes(datetime(1678, 1, 1), datetime(2262, 1, 1))  # what nanoseconds reach

# fastavro knows no nanoseconds; here they are microseconds, as they are for the codec.
for _kind, _epoch in (
    ("long-timestamp-nanos", datetime(1970, 1, 1, tzinfo=UTC)),
    ("long-local-timestamp-nanos", datetime(1970, 1, 1)),
):

    def _to_nanos(value: Any, _: Any, epoch: datetime = _epoch) -> Any:
        return (value - epoch) // timedelta(microseconds=1) * 1000 if isinstance(value, datetime) else value

    def _of_nanos(nanos: int, *_: Any, epoch: datetime = _epoch) -> datetime:
        return epoch + timedelta(microseconds=nanos // 1000)

    fastavro.write.LOGICAL_WRITERS[_kind] = _to_nanos
    fastavro.read.LOGICAL_READERS[_kind] = _of_nanos


def _in_millis(value: Any) -> Any:
    return value.replace(microsecond=value.microsecond // 1000 * 1000)


_LEAVES: list[Typed] = [
    ("null", st.none()),
    ("boolean", st.booleans()),
    ("int", _I32),
    ("long", _I64),
    ("float", _F32),
    ("double", st.floats()),
    ("bytes", st.binary(max_size=40)),
    ("string", _TEXT),
    ({"type": "enum", "name": "?", "symbols": ["A", "BB", "C" * 30]}, st.sampled_from(["A", "BB", "C" * 30])),
    ({"type": "fixed", "name": "?", "size": 3}, st.binary(min_size=3, max_size=3)),
    ({"type": "int", "logicalType": "date"}, st.dates()),
    ({"type": "int", "logicalType": "time-millis"}, st.times().map(_in_millis)),
    ({"type": "long", "logicalType": "time-micros"}, st.times()),
    ({"type": "long", "logicalType": "timestamp-millis"}, _INSTANT.map(_in_millis)),
    ({"type": "long", "logicalType": "timestamp-micros"}, _INSTANT),
    ({"type": "long", "logicalType": "local-timestamp-micros"}, st.datetimes()),
    ({"type": "string", "logicalType": "uuid"}, st.uuids()),
    ({"type": "long", "logicalType": "local-timestamp-millis"}, st.datetimes().map(_in_millis)),
    ({"type": "long", "logicalType": "timestamp-nanos"}, _NEAR.map(lambda near: near.replace(tzinfo=UTC))),
    ({"type": "long", "logicalType": "local-timestamp-nanos"}, _NEAR),
    # What stays what it is beneath.
    ({"type": "fixed", "name": "?", "size": 16, "logicalType": "uuid"}, st.binary(min_size=16, max_size=16)),
    ({"type": "fixed", "name": "?", "size": 12, "logicalType": "duration"}, st.binary(min_size=12, max_size=12)),
    ({"type": "bytes", "logicalType": "big-decimal"}, st.binary(max_size=20)),
]


@st.composite
def _decimals(draw: st.DrawFn) -> Typed:
    precision = draw(st.integers(1, 38))
    scale = draw(st.integers(0, precision))
    said = {"logicalType": "decimal", "precision": precision, "scale": scale}
    number = st.integers(-(10**precision) + 1, 10**precision - 1).map(
        lambda i: Decimal((int(i < 0), tuple(map(int, str(abs(i)))), -scale))
    )
    if draw(st.booleans()):
        return {"type": "bytes", **said}, number
    size = next(n for n in range(1, 20) if 10**precision <= 2 ** (8 * n - 1)) + draw(st.integers(0, 3))
    return {"type": "fixed", "name": "?", "size": size, **said}, number


def _record(fields: list[Typed]) -> Typed:
    schema = {
        "type": "record",
        "name": "?",
        "fields": [{"name": f"f{i}", "type": t} for i, (t, _) in enumerate(fields)],
    }
    return schema, st.fixed_dictionaries({f"f{i}": values for i, (_, values) in enumerate(fields)})


def _optional(inner: Typed) -> Typed:
    return inner if _has_null(inner[0]) else (["null", inner[0]], st.none() | inner[1])


def _optional_last(inner: Typed) -> Typed:
    return inner if _has_null(inner[0]) else ([inner[0], "null"], inner[1] | st.none())


def _array(inner: Typed) -> Typed:
    """The inner type alone when its items may take no bytes: the codec bounds the number of items by the bytes."""
    return inner if _may_be_empty(inner[0]) else ({"type": "array", "items": inner[0]}, st.lists(inner[1], max_size=4))


def _map(inner: Typed) -> Typed:
    return {"type": "map", "values": inner[0]}, st.dictionaries(_TEXT, inner[1], max_size=4)


_X = {"type": "record", "name": "?", "fields": [{"name": "x", "type": "string"}]}
_UNIONS: list[Typed] = [
    (["null", "string", "long"], st.none() | _TEXT | _I64),
    (["double", "string"], st.floats() | _TEXT),
    (
        ["null", {"type": "array", "items": "long"}, _X],
        st.none() | st.lists(_I64, max_size=3) | st.fixed_dictionaries({"x": _TEXT}),
    ),
]


def _nest(children: st.SearchStrategy[Typed]) -> st.SearchStrategy[Typed]:
    # Mapped to something else where they do not fit, never filtered: Hypothesis gives up on too many misses.
    return st.one_of(
        st.lists(children, min_size=0, max_size=4).map(_record),
        children.map(_optional),
        children.map(_optional_last),
        children.map(_array),
        children.map(_map),
    )


def _has_null(schema: Any) -> bool:
    """Whether it can be no branch of another union: null itself, or a union."""
    return schema == "null" or isinstance(schema, list)


def _may_be_empty(schema: Any) -> bool:
    if isinstance(schema, dict) and schema["type"] == "record":
        return all(_may_be_empty(f["type"]) for f in schema["fields"])
    return bool(schema == "null")


def _named(schema: Any, count: list[int]) -> Any:
    """The schema with a name of its own for each named type."""
    if isinstance(schema, list):
        return [_named(branch, count) for branch in schema]
    if not isinstance(schema, dict):
        return schema
    out = dict(schema)
    if "name" in out:
        count[0] += 1
        out["name"] = f"N{count[0]}"
    if "fields" in out:
        out["fields"] = [{**f, "type": _named(f["type"], count)} for f in out["fields"]]
    for inner in ("items", "values"):
        if inner in out:
            out[inner] = _named(out[inner], count)
    return out


@dataclass(frozen=True)
class Case:
    """A schema, data for it and the messages that fastavro makes of them."""

    schema: dict[str, Any]
    rows: list[dict[str, Any]]
    messages: list[bytes]


def types() -> st.SearchStrategy[Typed]:
    leaves = st.one_of(st.sampled_from(_LEAVES), _decimals(), st.sampled_from(_UNIONS))
    return st.recursive(leaves, lambda inner: _nest(inner), max_leaves=6)


@st.composite
def cases(draw: st.DrawFn, max_rows: int = 6) -> Case:
    leaves = st.sampled_from(_LEAVES)
    schema, values = _record(draw(st.lists(types(), min_size=1, max_size=4)) + draw(st.lists(leaves, max_size=3)))
    named = _named(schema, [0])
    return case(named, draw(st.lists(values, min_size=1, max_size=max_rows)))


def one_leaf() -> st.SearchStrategy[Case]:
    """A record with one field of one leaf type but null, and one row."""
    leaf = st.sampled_from(_LEAVES[1:]) | _decimals()
    one = leaf.map(lambda typed: _record([typed]))
    return one.flatmap(lambda typed: typed[1].map(lambda row: case(_named(typed[0], [0]), [row])))


@st.composite
def one_of_each(draw: st.DrawFn) -> Case:
    """A record with every leaf, a decimal of each kind and every way to nest them, and one row."""
    fields = [*_LEAVES, *_UNIONS, draw(_decimals()), _optional(_array(_LEAVES[7])), _map(_LEAVES[4])]
    schema, values = _record(fields)
    return case(_named(schema, [0]), [draw(values)])


def case(schema: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Case:
    parsed = fastavro.parse_schema(schema)
    messages = []
    for row in rows:
        out = io.BytesIO(HEADER)
        out.seek(0, io.SEEK_END)
        fastavro.schemaless_writer(out, parsed, row)
        messages.append(out.getvalue())
    return Case(schema, list(rows), messages)


def oracle(schema: dict[str, Any]) -> Callable[[bytes], Any]:
    """fastavro's reader for one message, raising whatever it raises, and ValueError for bytes left over.

    It reads UUIDs as text, as the codec does on purpose.
    """
    parsed = _with_text_uuids(schema)

    def read(message: bytes) -> Any:
        body = io.BytesIO(message[len(HEADER) :])
        value = fastavro.schemaless_reader(body, parsed, None)
        if body.tell() != len(message) - len(HEADER):
            raise ValueError("trailing bytes")
        return value

    return read


def _with_text_uuids(schema: Any) -> Any:
    return fastavro.parse_schema(json.loads(json.dumps(schema).replace('"logicalType": "uuid"', '"doc": "uuid"')))


@dataclass(frozen=True)
class Resolution:
    """Messages of a writer, another schema to read them by, and the rows that fastavro reads by it."""

    writer: dict[str, Any]
    reader: dict[str, Any]
    messages: list[bytes]
    expected: list[Any]


@st.composite
def resolutions(draw: st.DrawFn) -> Resolution:
    """Fields renamed, removed, reordered and added, at all depths; ints widened; symbols of enums gone."""
    made = draw(cases(max_rows=3))
    values: list[Any] = []
    reader = _evolved(draw, made.schema, [1000], values)
    # fastavro takes a default for the value that it is in JSON; it is told here what a record with it holds.
    parsed = _told(_with_text_uuids(reader), values)
    writer = _with_text_uuids(made.schema)
    bodies = [io.BytesIO(message[len(HEADER) :]) for message in made.messages]
    rows = [fastavro.schemaless_reader(body, writer, parsed) for body in bodies]
    return Resolution(made.schema, reader, made.messages, rows)


def _evolved(draw: st.DrawFn, schema: Any, count: list[int], values: list[Any]) -> Any:
    if isinstance(schema, list):
        optional = len(schema) == 2 and "null" in schema
        return [_evolved(draw, branch, count, values) for branch in schema] if optional else schema
    if schema == "int":
        return draw(st.sampled_from(["int", "long"]))
    if not isinstance(schema, dict):
        return schema
    if schema["type"] == "enum" and draw(st.booleans()):
        return {**schema, "symbols": ["A", "D"], "default": "D"}
    for inner in ("items", "values"):
        if inner in schema:
            return {**schema, inner: _evolved(draw, schema[inner], count, values)}
    if schema["type"] != "record":
        return schema
    fields = []
    for field in schema["fields"]:
        fate = draw(st.sampled_from(["kept", "renamed", "removed"]))
        if fate != "removed":
            fields.append({**field, "type": _evolved(draw, field["type"], count, values)})
        if fate == "renamed":
            fields[-1] |= {"name": f"r_{field['name']}", "aliases": ["nobody", field["name"]]}
    fields += [_added(draw, f"a{n}", count, values) for n in range(draw(st.integers(0, 2)))]
    new = {**schema, "fields": draw(st.permutations(fields))}
    return schema if _may_be_empty(new) else new


def _added(draw: st.DrawFn, name: str, count: list[int], values: list[Any]) -> dict[str, Any]:
    """A field with a default, and what a record with it holds at the place `held` of the values."""
    schema, strategy = draw(types())
    schema, value = _named(schema, count), draw(strategy)
    made = case({"type": "record", "name": "R", "fields": [{"name": "x", "type": schema}]}, [{"x": value}])
    values.append(oracle(made.schema)(made.messages[0])["x"])
    beneath = json.loads(json.dumps(made.schema).replace('"logicalType"', '"doc"'))
    default = _as_json(oracle(beneath)(made.messages[0])["x"])
    if isinstance(default, dict) and isinstance(schema, dict) and schema["type"] == "record" and default:
        first, *rest = schema["fields"]
        schema = {**schema, "fields": [{**first, "default": default.pop(first["name"])}, *rest]}
    return {"name": name, "type": schema, "default": default, "held": len(values) - 1}


def _as_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, list) else value


def _told(parsed: Any, values: list[Any]) -> Any:
    if isinstance(parsed, list):
        return [_told(part, values) for part in parsed]
    if not isinstance(parsed, dict):
        return parsed
    out = {
        key: _told(part, values) if key in ("type", "items", "values", "fields") else part
        for key, part in parsed.items()
    }
    return out | {"default": values[parsed["held"]]} if "held" in parsed else out


def comparable(value: Any) -> Any:
    """A value so that equal means the same: floats by their bits, zones apart from local times."""
    if isinstance(value, float):
        return ("float", struct.pack("<d", value)) if value == value else "nan"
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [comparable(item) for item in value]
    if isinstance(value, datetime):
        return ("datetime", value.replace(tzinfo=None), value.tzinfo is not None)
    if isinstance(value, (date, time)):
        return (type(value).__name__, value)
    return value


def _as_fastavro(node: Node, value: Any) -> Any:
    """A value of a decoded batch in the form that fastavro gives it."""
    if value is None:
        return None
    if node.kind == "union":
        if node.optional is not None:
            return _as_fastavro(node.optional, value)
        branches = zip(branch_names(node), node.branches, strict=True)
        set_ = [_as_fastavro(branch, value[name]) for name, branch in branches if name and value[name] is not None]
        assert len(set_) == 1
        return set_[0]
    if node.kind == "record":
        return {f.name: _as_fastavro(f.node, value.get(f.name)) for f in node.fields}
    if node.items is not None:
        items = node.items
        if node.kind == "map":
            return {key: _as_fastavro(items, item) for key, item in value}
        return [_as_fastavro(items, item) for item in value]
    return value


def comparable_rows(schema: dict[str, Any], batch: pa.RecordBatch) -> list[Any]:
    """The rows of a decoded batch as `comparable` values of what fastavro reads."""
    root = parse(schema)
    return [comparable(_as_fastavro(root, row)) for row in batch.to_pylist()]


class Guarded:
    """Messages as a BinaryArray whose last byte is the last byte that may be read: one more kills the process."""

    def __init__(self, messages: Sequence[bytes | None]) -> None:
        data = b"".join(m or b"" for m in messages)
        page = mmap.PAGESIZE
        size = (len(data) // page + 1) * page
        self._memory = mmap.mmap(-1, size + page)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(address + size), ctypes.c_size_t(page), 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
        self._memory[size - len(data) : size] = data
        buffer = pa.foreign_buffer(address + size - len(data), len(data), self._memory)
        like = pa.array(messages, pa.binary())
        self.values = pa.Array.from_buffers(pa.binary(), len(messages), [like.buffers()[0], like.buffers()[1], buffer])
