"""Avro schemas with data for them, and what they decode to according to fastavro."""

from __future__ import annotations

import ctypes
import io
import json
import mmap
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import fastavro
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
    parsed = fastavro.parse_schema(json.loads(json.dumps(schema).replace('"logicalType": "uuid"', '"doc": "uuid"')))

    def read(message: bytes) -> Any:
        body = io.BytesIO(message[len(HEADER) :])
        value = fastavro.schemaless_reader(body, parsed, None)
        if body.tell() != len(message) - len(HEADER):
            raise ValueError("trailing bytes")
        return value

    return read


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
        return {f.name: _as_fastavro(f.node, value[f.name]) for f in node.fields}
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
