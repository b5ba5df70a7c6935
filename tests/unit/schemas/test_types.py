from __future__ import annotations

import io
import json
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ContractError
from schemas.codec import Decoder, Encoder
from schemas.types import arrow_schema, avro_schema, iceberg_arrow
from tests.unit.schemas.debezium import ENVELOPE, change, row

LAST = datetime(9999, 12, 31, 23, 59, 59, 999999)


def raw(schema: dict[str, Any]) -> Any:
    """fastavro's schema without what it means, so that raw values can be written."""
    return fastavro.parse_schema(json.loads(json.dumps(schema).replace('"logicalType"', '"was"')))


def messages(schema: dict[str, Any], rows: list[dict[str, Any]]) -> pa.BinaryArray:
    parsed, out = raw(schema), []
    for value in rows:
        body = io.BytesIO()
        fastavro.schemaless_writer(body, parsed, value)
        out.append(b"\0\0\0\0\1" + body.getvalue())
    return pa.array(out, pa.binary())


def connect_decimal(precision: int, scale: int) -> dict[str, Any]:
    parameters = {"scale": str(scale), "connect.decimal.precision": str(precision)}
    return {"precision": precision, "scale": scale, "connect.parameters": parameters}


def after(**values: Any) -> tuple[dict[str, Any] | None, list[str]]:
    """What a changed row with the values decodes to, and the reasons when it does not."""
    decoded = Decoder(ENVELOPE).decode(messages(ENVELOPE, [change("c", None, row(**values))]))
    found = decoded.batch.to_pylist()
    return (found[0]["after"] if found else None), decoded.reasons


def test_debezium_rows_have_arrow_types_before_and_after() -> None:
    types = {f.name: f.type for f in arrow_schema(ENVELOPE).field("after").type}
    assert types["day"] == pa.date32()
    assert types["milli"] == types["micro"] == types["nano"] == pa.timestamp("us")
    assert types["zoned"] == pa.timestamp("us", "UTC")
    assert types["clock"] == types["clock_us"] == pa.time64("us")
    assert types["amount"] == pa.decimal128(12, 2)
    assert types["huge"] == types["any"] == pa.string()
    assert types["tag"] == types["doc"] == types["state"] == pa.string()
    assert types["words"] == pa.list_(pa.field("element", pa.string()))
    assert arrow_schema(ENVELOPE).field("before").type == arrow_schema(ENVELOPE).field("after").type


def test_debezium_values_mean_what_they_say() -> None:
    found, reasons = after(
        day=1,
        milli=1_500,
        micro=-1,
        nano=-1,
        zoned="2024-02-29T12:34:56.1234567+02:00",
        clock=1_001,
        clock_us=86_399_999_999,
        amount=b"\xff\x38",
        any={"scale": 3, "value": b"\1"},
        words=["a", None],
    )
    assert reasons == []
    assert found is not None
    assert found["day"] == date(1970, 1, 2)
    assert found["milli"] == datetime(1970, 1, 1, 0, 0, 1, 500_000)
    assert found["micro"] == found["nano"] == datetime(1969, 12, 31, 23, 59, 59, 999_999)
    assert found["zoned"] == datetime(2024, 2, 29, 10, 34, 56, 123_456, UTC)
    assert found["clock"] == time(0, 0, 1, 1_000)
    assert found["clock_us"] == time(23, 59, 59, 999_999)
    assert found["amount"] == Decimal("-2.00")
    assert found["any"] == "0.001"
    assert found["words"] == ["a", None]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"micro": 9223372036825200000}, LAST),
        ({"micro": -9223372036832400000}, datetime.min),
        ({"milli": 9223372036825200}, LAST.replace(microsecond=999_000)),
        ({"day": 2932897}, date.max),
        ({"day": -622191234}, date.max),
        ({"day": -2147472692}, date.max),
        ({"day": 2**31 - 1}, date.max),
        ({"day": -735160}, date.min),
        ({"day": -625821272}, date.min),
        ({"day": -2147472691}, date.min),
        ({"clock": 86_400_000}, time(23, 59, 59, 999_000)),
        ({"clock_us": 86_400_000_000}, time(23, 59, 59, 999_999)),
        ({"zoned": "infinity"}, LAST.replace(tzinfo=UTC)),
        ({"zoned": "-infinity"}, datetime.min.replace(tzinfo=UTC)),
        ({"zoned": "+292269055-12-02T23:00:00.000000Z"}, datetime.min.replace(tzinfo=UTC)),
        ({"zoned": "+292278994-08-16T23:00:00Z"}, LAST.replace(tzinfo=UTC)),
        ({"zoned": "-0044-03-15T00:00:00Z"}, datetime.min.replace(tzinfo=UTC)),
        ({"zoned": "9999-12-31T23:59:59-12:00"}, LAST.replace(tzinfo=UTC)),
    ],
)
def test_open_ends_saturate(values: dict[str, Any], expected: Any) -> None:
    found, reasons = after(**values)
    assert reasons == []
    assert found is not None
    assert [found[name] for name in values] == [expected]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"zoned": text}, "invalid timestamp: after.zoned")
        for text in (
            "", "Infinity", "2024-01-01", "2024-13-01T00:00:00Z", "2024-02-30T00:00:00Z", "2023-02-29T00:00:00Z",
            "2024-01-01T24:00:00Z", "2024-01-01T00:60:00Z", "2024-01-01T00:00:00", "2024-01-01T00:00:00.Z",
            "2024-01-01T00:00:00ZZ", "2024-01-01T00:00:00+2", "2024-01-01T00:00:00+02:0x", "24-01-01T00:00:00Z",
            "2024-01-01 00:00:00Z", "2024-1-01T00:00:00ZZ", "-", "x" * 40, "2024-01-01T00:00:00.5",
            "2024-01-01T00:00Z0",
        )
    ]
    + [
        ({"clock": -1}, "out of range: after.clock"),
        ({"clock_us": 86_400_000_001}, "out of range: after.clock_us"),
        ({"day": -3_000_000}, "out of range: after.day"),
        ({"amount": b"\x01" + b"\0" * 5}, "too many digits: after.amount"),
        ({"amount": b"\x01" + b"\0" * 16}, "too many digits: after.amount"),
    ],
)  # fmt: skip
def test_what_does_not_convert_makes_the_row_bad(values: dict[str, Any], reason: str) -> None:
    assert after(**values) == (None, [reason])


@given(
    st.datetimes(min_value=datetime(2, 1, 1), max_value=datetime(9998, 12, 31)),
    st.integers(-18 * 60, 18 * 60),
    st.sampled_from(["auto", "minutes", "seconds", "milliseconds", "microseconds"]),
)
def test_zoned_timestamps_are_read_as_python_reads_them(local: datetime, minutes: int, precision: str) -> None:
    text = local.replace(tzinfo=timezone(timedelta(minutes=minutes))).isoformat(timespec=precision)
    found, reasons = after(zoned=text)
    assert reasons == []
    assert found is not None
    assert found["zoned"] == datetime.fromisoformat(text)


def test_decimals_longer_than_they_need_be_are_read() -> None:
    for encoded, value in (
        (b"", 0),
        (b"\0" * 30 + b"\x7f", 127),
        (b"\xff" * 30, -1),
        (b"\0\x80", 128),
        (b"\x80", -128),
    ):
        found, _ = after(amount=encoded)
        assert found is not None
        assert found["amount"] == Decimal(value).scaleb(-2)


@pytest.mark.parametrize(
    ("attributes", "arrow"),
    [
        ({"precision": 64, "scale": 2, "connect.parameters": {"scale": "2"}}, pa.decimal128(38, 2)),  # money
        (connect_decimal(2, 4), pa.decimal128(4, 4)),
        (connect_decimal(50, 5), pa.string()),
        (connect_decimal(3, 2046), pa.string()),  # numeric(3, -2)
        ({"logicalType": "decimal", "precision": 39, "scale": 2}, pa.string()),
        ({"logicalType": "decimal", "precision": 2, "scale": 4}, pa.binary()),
    ],
)
def test_decimals_that_iceberg_has_and_has_not(attributes: dict[str, Any], arrow: pa.DataType) -> None:
    leaf = {"type": "bytes", **attributes}
    if "logicalType" not in attributes:
        leaf["connect.name"] = "org.apache.kafka.connect.data.Decimal"
    assert (
        arrow_schema({"type": "record", "name": "R", "fields": [{"name": "n", "type": leaf}]}).field("n").type == arrow
    )


def test_logical_types_out_of_range_are_bad() -> None:
    fields = {"timestamp-millis": 253_402_300_800_000, "timestamp-micros": -62_135_596_800_000_001}
    for logical, value in fields.items():
        schema = {
            "type": "record",
            "name": "R",
            "fields": [{"name": "t", "type": {"type": "long", "logicalType": logical}}],
        }
        assert Decoder(schema).decode(messages(schema, [{"t": value}])).reasons == ["out of range: t"]


def test_encodes_debezium_rows_back() -> None:
    values = row(zoned="2024-02-29T10:34:56.123456Z", amount=b"\xff\x38", micro=5, day=3, words=["a", None])
    values |= {"any": {"scale": 1, "value": b"\xff"}, "huge": b"\x0c" * 30}
    made = messages(ENVELOPE, [change("u", values, values), change("d", values, None)])
    assert Encoder(ENVELOPE, 1).encode(Decoder(ENVELOPE).decode(made).batch).equals(made)


def test_arrow_to_avro_and_back() -> None:
    schema = pa.schema(
        [
            pa.field("i", pa.int32(), False),
            pa.field("l", pa.int64()),
            pa.field("amount", pa.decimal128(12, 2)),
            pa.field("at", pa.timestamp("us", "UTC"), False),
            pa.field("local", pa.timestamp("us")),
            pa.field("day", pa.date32()),
            pa.field("clock", pa.time64("us")),
            pa.field("inner", pa.struct([pa.field("x", pa.binary(4), False), pa.field("y", pa.bool_())])),
            pa.field("many", pa.list_(pa.field("element", pa.struct([pa.field("z", pa.float32())]), False))),
            pa.field("by", pa.map_(pa.string(), pa.field("value", pa.float64()))),
        ]
    )
    assert arrow_schema(avro_schema(schema, "R", "n")).equals(schema)
    with pytest.raises(ContractError, match=r"a\.b-c: not a name"):
        avro_schema(pa.schema([pa.field("a", pa.struct([pa.field("b-c", pa.int8())]))]), "R")


def test_iceberg_types() -> None:
    source = {
        "a": pa.timestamp("ns"),
        "b": pa.timestamp("ms", "Europe/Paris"),
        "c": pa.dictionary(pa.int32(), pa.string()),
        "d": pa.uint32(),
        "e": pa.null(),
        "f": pa.struct([pa.field("x", pa.int8())]),
        "g": pa.list_(pa.uint64()),
        "h": pa.time32("ms"),
    }
    found = iceberg_arrow(pa.schema(source))
    assert found.types == [
        pa.timestamp("us"),
        pa.timestamp("us", "UTC"),
        pa.string(),
        pa.int64(),
        pa.string(),
        pa.struct([pa.field("x", pa.int32())]),
        pa.list_(pa.decimal128(20, 0)),
        pa.time64("us"),
    ]
    with pytest.raises(ContractError, match="d: Iceberg has no type"):
        iceberg_arrow(pa.schema({"d": pa.decimal256(60, 0)}))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ([{"name": "x", "type": "Nope"}], "x: unknown type Nope"),
        ([{"name": "x", "type": ["null", "R"]}], "x: R contains itself"),
        ([{"name": "x", "type": {"type": "array", "items": "null"}}], "no bytes"),
        ([{"name": "x"}], "malformed record R"),
        ([{"name": "x", "type": "int"}, {"name": "x", "type": "int"}], "twice"),
        ([{"name": "x", "type": ["null"]}], "a union of null alone"),
        ([{"name": "x", "type": ["null", ["int"]]}], "no unions"),
    ],
)
def test_schemas_without_columns_are_refused(fields: list[Any], words: str) -> None:
    with pytest.raises(ContractError, match=words):
        Decoder({"type": "record", "name": "R", "fields": fields})


def test_references_cannot_multiply_without_end() -> None:
    fields: Any = "int"
    for depth in range(40):
        inner: dict[str, Any] = {"type": "record", "name": f"R{depth}", "fields": [{"name": "a", "type": fields}]}
        fields = {**inner, "fields": [*inner["fields"], {"name": "b", "type": f"R{depth - 1}" if depth else "int"}]}
    with pytest.raises(ContractError, match="more than"):
        arrow_schema(fields)
