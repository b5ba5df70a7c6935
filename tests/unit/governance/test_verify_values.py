"""Canonical values: what Avro, tables and databases say must compare."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import fastavro
import pyarrow as pa
import pytest

from governance.verify.avro import readable
from governance.verify.current import Visible
from governance.verify.values import canonical, difference, number_text, reader_of, reader_of_arrow


@pytest.mark.parametrize(
    ("value", "schema", "expected"),
    [
        (1, {"type": "int", "connect.name": "io.debezium.time.Date"}, date(1970, 1, 2)),
        (
            1_000_001,
            {"type": "long", "connect.name": "io.debezium.time.MicroTimestamp"},
            datetime(1970, 1, 1, 0, 0, 1, 1),
        ),
        (
            "2026-01-01T02:00:00.5+02:00",
            {"type": "string", "connect.name": "io.debezium.time.ZonedTimestamp"},
            datetime(2026, 1, 1, 0, 0, 0, 500_000),
        ),
        (Decimal("1.10"), {"type": "bytes", "logicalType": "decimal"}, Decimal("1.1")),
        (None, ["null", "string"], None),
        ([1, None], {"type": "array", "items": ["null", "int"]}, [1, None]),
        (
            {"a": 1, "b": None},
            {"type": "map", "values": ["null", {"type": "int", "connect.name": "io.debezium.time.Date"}]},
            {"a": date(1970, 1, 2), "b": None},
        ),
        (0.1, {"type": "float"}, 0.10000000149011612),
    ],
)
def test_avro_values_follow_their_schema(value: Any, schema: Any, expected: Any) -> None:
    assert reader_of(schema)(value) == expected


def test_a_named_record_is_known_where_it_is_only_referred_to() -> None:
    row = {"type": "record", "name": "Value", "fields": [{"name": "at", "type": _date()}]}
    envelope = {
        "type": "record",
        "name": "Envelope",
        "fields": [{"name": "before", "type": ["null", row]}, {"name": "after", "type": ["null", "Value"]}],
    }
    assert reader_of(envelope)({"before": None, "after": {"at": 0}}) == {"after": {"at": date(1970, 1, 1)}}


def _date() -> dict[str, str]:
    return {"type": "int", "connect.name": "io.debezium.time.Date"}


def test_zones_numbers_and_nan_compare_by_value() -> None:
    paris = datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))
    assert canonical(paris) == canonical(datetime(2026, 1, 1, tzinfo=UTC))
    assert canonical(Decimal("5.00")) == canonical(Decimal(5))
    assert canonical(float("nan")) == canonical(float("nan"))
    assert canonical({"a": None, "b": [1]}) == {"b": [1]}


def test_a_column_of_a_table_is_read_as_each_of_its_values_is() -> None:
    rows = [
        {
            "n": 1,
            "f": float("nan"),
            "d": Decimal("1.50"),
            "s": {"t": datetime(2026, 1, 1), "x": None},
            "l": [1.5, None],
        },
        {"n": None, "f": None, "d": None, "s": None, "l": None},
    ]
    types = [pa.int32(), pa.float64(), pa.decimal128(9, 2), pa.struct({"t": pa.timestamp("us"), "x": pa.string()})]
    for name, type_ in zip("nfdsl", [*types, pa.list_(pa.float64())], strict=True):
        read = reader_of_arrow(type_)
        values = pa.array([row[name] for row in rows], type_).to_pylist()
        assert [read(value) for value in values] == [canonical(value) for value in values], name
    assert reader_of_arrow(types[3])({"t": datetime(2026, 1, 1, tzinfo=UTC), "x": None}) == {"t": datetime(2026, 1, 1)}


def _connect(kind: str, name: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "connect.name": name, **more}


def _decimal(precision: int, scale: int) -> dict[str, Any]:
    parameters = {"scale": str(scale), "connect.decimal.precision": str(precision)}
    name = "org.apache.kafka.connect.data.Decimal"
    return _connect("bytes", name, precision=precision, scale=scale, **{"connect.parameters": parameters})


VARIABLE = {
    "type": "record",
    "name": "V",
    "fields": [{"name": "scale", "type": "int"}, {"name": "value", "type": "bytes"}],
    "connect.name": "io.debezium.data.VariableScaleDecimal",
}
LAST = datetime.max


@pytest.mark.parametrize(
    ("value", "schema", "expected"),
    [
        ({"scale": 2, "value": b"\xff\x38"}, VARIABLE, "-2"),
        (Decimal("1.50000"), _decimal(50, 5) | {"logicalType": "decimal"}, "1.5"),
        (b"\x9d", _decimal(2, 4), Decimal("-0.0099")),
        ((12300 * 10**2046).to_bytes(900, "big"), _decimal(3, 2046), "12300"),
        (Decimal(10) ** 40, _connect("bytes", "org.apache.kafka.connect.data.Decimal", scale=0), Decimal(10) ** 40),
        (Decimal(1), _decimal(38, 0) | {"logicalType": "decimal"}, Decimal(1)),
        (Decimal(1), _decimal(39, 0) | {"logicalType": "decimal"}, "1"),
        (-622191234, _connect("int", "io.debezium.time.Date"), date.max),
        (-622191232, _connect("int", "io.debezium.time.Date"), date.max),
        (-2147472692, _connect("int", "io.debezium.time.Date"), date.max),
        (1_001, _connect("long", "io.debezium.time.NanoTimestamp"), datetime(1970, 1, 1, 0, 0, 0, 1)),
        (86_400_000, _connect("int", "io.debezium.time.Time"), time.max.replace(microsecond=999_000)),
        ("-infinity", _connect("string", "io.debezium.time.ZonedTimestamp"), datetime.min),
        ("0000-03-15T00:00:00Z", _connect("string", "io.debezium.time.ZonedTimestamp"), datetime.min),
        ("9999-03-15T00:00:00Z", _connect("string", "io.debezium.time.ZonedTimestamp"), datetime(9999, 3, 15)),
        (-625821272, _connect("int", "io.debezium.time.Date"), date.min),
        (9223372036825200000, _connect("long", "io.debezium.time.MicroTimestamp"), LAST),
        (-9223372036832400000, _connect("long", "io.debezium.time.MicroTimestamp"), datetime.min),
        (9223372036825200, _connect("long", "io.debezium.time.Timestamp"), LAST.replace(microsecond=999_000)),
        (86_400_000_000, _connect("long", "io.debezium.time.MicroTime"), time.max),
        ("infinity", _connect("string", "io.debezium.time.ZonedTimestamp"), LAST),
        ("-0043-03-15T00:00:00Z", _connect("string", "io.debezium.time.ZonedTimestamp"), datetime.min),
        ("+12024-01-01T00:00:00Z", _connect("string", "io.debezium.time.ZonedTimestamp"), LAST),
        ("+292269055-12-02T23:00:00Z", _connect("string", "io.debezium.time.ZonedTimestamp"), datetime.min),
    ],
)
def test_what_no_reader_holds_has_the_form_that_the_documentation_says(value: Any, schema: Any, expected: Any) -> None:
    assert reader_of(schema)(value) == expected


def test_every_digit_of_a_number_counts() -> None:
    long = Decimal("9999999999999999999999999999.9999999999")
    assert canonical(long) != canonical(long - Decimal("0.0000000001"))
    assert [
        number_text(Decimal(text)) for text in ("1.10", "-1.10", "-1E65", "0.0", "1E64", "1E65", "12E-66", "12E-67")
    ] == [
        "1.1",
        "-1.1",
        "-1E65",
        "0",
        "1" + "0" * 64,
        "1E65",
        "0." + "0" * 64 + "12",
        "12E-67",
    ]


def test_a_decimal_that_fastavro_refuses_is_read_as_bytes() -> None:
    odd = _decimal(2, 4) | {"logicalType": "decimal"}
    schema = {"type": "record", "name": "R", "fields": [{"name": "n", "type": ["null", odd]}]}
    fastavro.parse_schema(readable(schema))
    assert readable({"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2})["logicalType"] == "decimal"


def test_difference_names_the_first_field_with_both_values() -> None:
    assert difference({"a": 1, "b": 2}, {"a": 1, "b": 2}) is None
    assert difference({"a": 1}, {"a": 2}) == "a is 2, expected 1"
    assert difference({"a": 1}, {"a": 1, "b": 3}) == "b is 3, expected None"
    assert difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == "a.c is 3, expected 2"
    assert difference({"a": {"b": 1}}, {}) == "a is None, expected {'b': 1}"


def test_a_database_snapshot_sees_what_was_committed_before_it() -> None:
    snapshot = Visible.parse("100:105:101,103")
    assert [x for x in range(98, 107) if snapshot.sees(x)] == [98, 99, 100, 102, 104]


def test_transaction_ids_are_reported_without_their_epoch() -> None:
    base = 3 << 32
    snapshot = Visible.parse(f"{base + 100}:{base + 105}:")
    assert snapshot.sees(104)
    assert not snapshot.sees(105)
    assert snapshot.sees(0xFFFFFFFF), "from the epoch before"
