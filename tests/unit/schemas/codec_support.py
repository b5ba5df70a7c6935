"""Schemas and messages that the tests of the codec share."""

from __future__ import annotations

import struct
from typing import Any

import pyarrow as pa

from headrace.errors import SchemaNotFoundError
from schemas.codec import Encoder


def record(*fields: tuple[str, Any], name: str = "R") -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [{"name": n, "type": t} for n, t in fields]}


def framed(body: bytes, schema_id: int = 1) -> bytes:
    return b"\0" + struct.pack(">I", schema_id) + body


ENUM = {"type": "enum", "name": "E", "symbols": ["A"]}
INSTANT = {"type": "long", "logicalType": "timestamp-micros"}
V1 = record(("id", "int"), ("text", "string"))
V2 = record(("id", "long"), ("more", ["null", "double"]), ("text", "string"))
SCHEMAS: dict[int, Any] = {1: V1, 2: V2, 3: record(("id", "string")), 4: record(("x", ["null", "R"]))}


def known(schema_id: int) -> dict[str, Any]:
    if schema_id not in SCHEMAS:
        raise SchemaNotFoundError("not there")
    return dict(SCHEMAS[schema_id])


def one(schema_id: int, number: int) -> bytes:
    columns: dict[int, Any] = {
        1: {"id": [number], "text": ["t"]},
        2: {"id": [number], "more": [0.5], "text": ["t"]},
        3: {"id": [str(number)]},
    }
    batch = pa.RecordBatch.from_pydict(columns[schema_id])
    message: bytes = Encoder(SCHEMAS[schema_id], schema_id).encode(batch)[0].as_py()
    return message
