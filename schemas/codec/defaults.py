"""What a default is in columns: what a record that holds it decodes to, whatever its type means."""

from __future__ import annotations

import json
import struct
from functools import lru_cache
from typing import Any

import pyarrow as pa

from headrace.errors import ContractError
from schemas.avro import NO_DEFAULT, Node, Schema, parse
from schemas.codec.decoder import Decoder

_BOUNDS = {"int": 2**31, "long": 2**63}


def default_array(schema: Schema, default: Any) -> pa.Array:
    """An array of one value: the default, as JSON has it, of a type.

    Raises `ContractError`, with `default` and the path inside of it, where no record can hold it.
    """
    row = {"type": "record", "name": "?", "fields": [{"name": "default", "type": schema}]}
    message = _encoded(parse(row).fields[0].node, default)
    decoded = Decoder(row).decode(pa.array([message], pa.binary()), skip=0)
    for reason in decoded.reasons:
        rule, _, path = reason.partition(": ")
        raise ContractError(f"{default!r} is no value of its type: {rule}", where=path)
    return decoded.batch.column(0)


@lru_cache(maxsize=1024)
def declared(declaration: bytes) -> pa.Array:
    """The same for what `schemas.types.default_of` gives."""
    said = json.loads(declaration)
    return default_array(said["type"], said["default"])


def _encoded(node: Node, value: Any) -> bytes:
    """JSON data as an Avro value. A union takes the first branch that takes it; a record has its own defaults."""
    try:
        match node.kind, value:
            case "null", None:
                return b""
            case "union", _:
                return _branch(node, value)
            case "boolean", bool():
                return bytes([value])
            case "int" | "long", int() if not isinstance(value, bool):
                if -_BOUNDS[node.kind] <= value < _BOUNDS[node.kind]:
                    return _varint(value)
            case "float" | "double", int() | float() if not isinstance(value, bool):
                return struct.pack("<f" if node.kind == "float" else "<d", value)
            case "string", str():
                return _sized(value.encode())
            case "bytes", str():
                return _sized(value.encode("latin-1"))
            case "fixed", str() if len(value) == node.size:
                return value.encode("latin-1")
            case "enum", str() if value in node.symbols:
                return _varint(node.symbols.index(value))
            case "array", list():
                return _items(node, [(b"", item) for item in value])
            case "map", dict():
                return _items(node, [(_sized(key.encode()), item) for key, item in value.items()])
            case "record", dict():
                return b"".join(_encoded(f.node, value.get(f.name, f.default)) for f in node.fields)
    except (ValueError, OverflowError, struct.error):
        pass
    what = "is missing and has no default" if value is NO_DEFAULT else f"{value!r} is not {node.kind}"
    raise ContractError(what, where=node.path)


def _branch(union: Node, value: Any) -> bytes:
    for index, branch in enumerate(union.branches):
        try:
            return _varint(index) + _encoded(branch, value)
        except ContractError:
            continue
    raise ValueError


def _items(node: Node, items: list[tuple[bytes, Any]]) -> bytes:
    assert node.items is not None
    block = [key + _encoded(node.items, item) for key, item in items]
    return b"".join([*([_varint(len(block))] if block else []), *block, b"\0"])


def _sized(data: bytes) -> bytes:
    return _varint(len(data)) + data


def _varint(value: int) -> bytes:
    rest = (value << 1) ^ (value >> 63)
    out = bytearray()
    while rest > 127:
        out.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*out, rest])
