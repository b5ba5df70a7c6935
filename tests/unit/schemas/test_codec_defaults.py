"""Fields that a writer or a reader does not have: names, aliases, defaults."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import fastavro
import pyarrow as pa
import pytest

from schemas.codec import ChunkDecoder, Encoder, arrow_schema
from tests.unit.schemas.codec_support import ENUM, INSTANT, V1, framed, known, one, record


def test_names_and_defaults_are_read_as_fastavro_resolves_them() -> None:
    place = {"type": "record", "name": "Place", "fields": [{"name": "town", "type": "string"}]}
    writer = record(("amount", "int"), ("where", place), ("gone", "string"))
    reader: dict[str, Any] = {
        "type": "record",
        "name": "R",
        "fields": [
            {"name": "price", "type": "int", "aliases": ["cost", "amount"]},
            {
                "name": "where",
                "type": {
                    "type": "record",
                    "name": "Place",
                    "fields": [
                        {"name": "city", "type": "string", "aliases": ["town"]},
                        {"name": "country", "type": "string", "default": "DE"},
                    ],
                },
            },
            {"name": "currency", "type": "string", "default": "EUR"},
            {"name": "note", "type": ["null", "string"], "default": None},
        ],
    }
    row = {"amount": 7, "where": {"town": "Ulm"}, "gone": "x"}
    body = io.BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(writer), row)
    body.seek(0)
    expected = fastavro.schemaless_reader(body, fastavro.parse_schema(writer), fastavro.parse_schema(reader))
    message = pa.array([framed(body.getvalue())], pa.binary())
    arrow = arrow_schema(reader)
    assert ChunkDecoder(lambda _: writer, arrow).decode(message).batch.to_pylist() == [expected]
    named = ChunkDecoder(lambda _: writer, names=arrow).decode(message).batch
    assert named.to_pylist() == [{k: v for k, v in expected.items() if k != "note"} | {"gone": "x"}]


def test_names_and_defaults_inside_lists_and_maps_are_the_reader_s() -> None:
    def schema(*inner: dict[str, Any]) -> dict[str, Any]:
        item = {"type": "record", "name": "I", "fields": list(inner)}
        return record(("a", {"type": "array", "items": ["null", item]}), ("m", {"type": "map", "values": "I"}))

    writer = schema({"name": "old", "type": "int"}, {"name": "x", "type": "int"})
    reader = schema(
        {"name": "x", "type": "int"},
        {"name": "new", "type": "int", "aliases": ["x", "old"]},
        {"name": "more", "type": {"type": "array", "items": "int"}, "default": [3]},
    )
    rows = [{"a": [{"old": 1, "x": 2}, None], "m": [("k", {"old": 5, "x": 6})]}, {"a": [], "m": []}]
    messages = Encoder(writer, 1).encode(pa.RecordBatch.from_pylist(rows, schema=arrow_schema(writer)))
    expected = [
        {"a": [{"x": 2, "new": 1, "more": [3]}, None], "m": [("k", {"x": 6, "new": 5, "more": [3]})]},
        {"a": [], "m": []},
    ]
    arrow = arrow_schema(reader)
    assert ChunkDecoder(lambda _: writer, arrow).decode(messages).batch.to_pylist() == expected
    named = ChunkDecoder(lambda _: writer, names=arrow).decode(messages[:2]).batch
    named.validate(full=True)
    assert named.to_pylist() == expected


def test_the_default_of_an_enum_stands_for_symbols_that_it_lacks() -> None:
    def schema(**enum: Any) -> dict[str, Any]:
        e = {**ENUM, **enum}
        return record(("e", e), ("o", ["null", "E"]), ("a", {"type": "array", "items": "E"}))

    writer = schema(symbols=["A", "B"])
    rows = [{"e": "B", "o": None, "a": ["A", "B"]}, {"e": "A", "o": "B", "a": []}]
    messages = Encoder(writer, 1).encode(pa.RecordBatch.from_pylist(rows, schema=arrow_schema(writer)))
    reader = arrow_schema(schema(symbols=["A", "C"], default="C"))
    expected = [{"e": "C", "o": None, "a": ["A", "C"]}, {"e": "A", "o": "C", "a": []}]
    assert ChunkDecoder(lambda _: writer, reader).decode(messages).batch.to_pylist() == expected
    assert ChunkDecoder(lambda _: writer, names=reader).decode(messages).batch.to_pylist() == expected
    kept = arrow_schema(schema(symbols=["A", "C"]))
    assert ChunkDecoder(lambda _: writer, kept).decode(messages).batch.to_pylist() == rows


def test_a_default_is_for_those_writers_alone_that_lack_the_field() -> None:
    names = arrow_schema({**V1, "fields": [*V1["fields"], {"name": "more", "type": "double", "default": 9.0}]})
    found = ChunkDecoder(known, names=names).decode(pa.array([one(1, 1), one(2, 2), one(1, 3)], pa.binary()))
    assert found.batch.column("more").to_pylist() == [9.0, 0.5, 9.0]


PART = {
    "type": "record",
    "name": "Part",
    "fields": [{"name": "a", "type": "int", "default": 4}, {"name": "b", "type": "bytes"}],
}
ZONED = {"type": "string", "connect.name": "io.debezium.time.ZonedTimestamp"}
MONEY = {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}
DEFAULTS: list[tuple[Any, Any, Any]] = [
    ({"type": "array", "items": "string"}, [], []),
    ({"type": "array", "items": ["null", PART]}, [None, {"b": "\u00ff"}], [None, {"a": 4, "b": b"\xff"}]),
    ({"type": "map", "values": "long"}, {}, []),
    ({"type": "map", "values": "double"}, {"x": 1}, [("x", 1.0)]),
    (MONEY, "\u0001", Decimal("0.01")),
    ({**MONEY, "precision": 60}, "\u0001", "0.01"),
    (["long", "string"], 5, {"long": 5, "string": None}),
    (["null", "long"], 5, 5),
    (ZONED, "2024-01-02T03:04:05Z", datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)),
    (INSTANT, 1, datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC)),
    ("bytes", "\u00ff", b"\xff"),
    ({"type": "fixed", "name": "F", "size": 2}, "\u00ff\u0000", b"\xff\0"),
    (PART, {"b": "\u00ff"}, {"a": 4, "b": b"\xff"}),
    (ENUM, "A", "A"),
    ("float", 1.5, 1.5),
    ("boolean", False, False),
]


def with_default(type_: Any, default: Any) -> dict[str, Any]:
    new = {"name": "new", "type": type_, "default": default}
    return {**V1, "fields": [*V1["fields"], new]}


@pytest.mark.parametrize(("type_", "default", "expected"), DEFAULTS)
@pytest.mark.parametrize("how", ["reader", "names"])
def test_a_default_is_what_a_record_that_holds_it_decodes_to(how: str, type_: Any, default: Any, expected: Any) -> None:
    decoder = ChunkDecoder(known, **{how: arrow_schema(with_default(type_, default))})
    bad = decoder.decode(pa.array([one(1, 1) + b"!"], pa.binary()))
    assert bad.reasons == ["trailing bytes"]
    found = decoder.decode(pa.array([one(1, 1), one(1, 2)], pa.binary())).batch
    found.validate(full=True)
    assert found.column("new").to_pylist() == [expected, expected]
    assert found.schema.field("new").type == arrow_schema(with_default(type_, default)).field("new").type


UNFIT: list[tuple[Any, Any, str]] = [
    ("long", 2**63, "new.default 9223372036854775808 is not long"),
    ("float", 1e39, "new.default 1e+39 is not float"),
    ("double", 10**400, "is not double"),
    ("bytes", "\u0100", "new.default '\u0100' is not bytes"),
    (MONEY, "\u0001\u0000\u0000\u0000", "is no value of its type: too many digits"),
    ({"type": "int", "logicalType": "date"}, 2**31 - 1, "new.default 2147483647 is no value of its type: out of range"),
    (ZONED, "tomorrow", "new.default 'tomorrow' is no value of its type: invalid timestamp"),
    (PART, {"a": 1}, "new.default.b is missing and has no default"),
    ({"type": "array", "items": "long"}, ["x"], "new.default[] 'x' is not long"),
]


@pytest.mark.parametrize(("type_", "default", "words"), UNFIT)
@pytest.mark.parametrize("how", ["reader", "names"])
def test_a_default_that_cannot_be_had_makes_the_records_bad_that_need_it(
    how: str, type_: Any, default: Any, words: str
) -> None:
    decoder = ChunkDecoder(known, **{how: arrow_schema(with_default(type_, default))})
    (reason,) = decoder.decode(pa.array([one(1, 1)], pa.binary())).reasons
    assert reason.startswith("incompatible schema: 1, ")
    assert words in reason


def test_a_writer_s_default_that_cannot_be_had_is_null_where_the_field_is_not() -> None:
    schemas = {1: V1, 2: with_default("long", "x")}
    two = framed(one(1, 2)[5:] + b"\x0a", 2)
    found = ChunkDecoder(schemas.__getitem__).decode(pa.array([one(1, 1), two], pa.binary()))
    assert found.batch.column("new").to_pylist() == [None, 5]
