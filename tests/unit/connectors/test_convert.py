from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from connectors.convert import JsonConverter, RowError

MICROS = {"type": "long", "logicalType": "timestamp-micros"}
READING = {
    "type": "record",
    "name": "Reading",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "at", "type": MICROS},
        {"name": "value", "type": ["null", "double"], "default": None},
    ],
}


def one(avro: Any, value: Any) -> Any:
    """The converted value, or the message that refuses it."""
    schema = {"type": "record", "name": "R", "fields": [{"name": "x", "type": avro}]}
    found = JsonConverter(schema).convert([{"x": value}])
    return found.errors[0].message if found.errors else found.batch.column(0)[0].as_py()


def test_good_rows_pass_whatever_their_neighbours_are() -> None:
    rows: list[Any] = [
        {"id": "a", "at": 1500, "value": 1},
        {"id": "b", "at": "2020-01-01T00:00:00"},
        [],
        {"id": "c", "at": "2020-01-01T01:00:00+01:00"},
        {"id": "d"},
        {"id": "e", "at": 0, "colour": "red"},
        {"id": 7, "at": "later", "value": None},
    ]
    found = JsonConverter(READING).convert(rows)
    assert found.rows.tolist() == [0, 3]
    assert found.batch.to_pylist() == [
        {"id": "a", "at": datetime(1970, 1, 1, 0, 0, 1, 500000, UTC), "value": 1.0},
        {"id": "c", "at": datetime(2020, 1, 1, tzinfo=UTC), "value": None},
    ]
    assert found.errors == [
        RowError(1, "at", "has no time zone"),
        RowError(2, "", "must be an object"),
        RowError(4, "at", "is missing"),
        RowError(5, "colour", "is not in the contract"),
        RowError(6, "id", "must be text"),
    ]
    assert JsonConverter(READING).convert([]).batch.num_rows == 0


@pytest.mark.parametrize(
    ("avro", "given", "expected"),
    [
        ("int", 2**31 - 1, 2**31 - 1),
        ("int", 2**31, "must be between -2147483648 and 2147483647"),
        ("long", True, "must be a whole number"),
        ("long", 5.0, 5),
        ("long", 5.5, "must be a whole number"),
        ("long", 2**63, f"must be between {-(2**63)} and {2**63 - 1}"),
        ("double", "5", "must be a number"),
        ("float", 1e39, "is too large for a float"),
        ("boolean", 1, "must be true or false"),
        ("boolean", False, False),
        ("string", None, "must be text"),
        ("bytes", "AAE=", b"\0\1"),
        ("bytes", "é", "must be base64 text"),
        ({"type": "fixed", "name": "F", "size": 2}, "AAEC", "must be 2 bytes"),
        ({"type": "enum", "name": "E", "symbols": ["A", "B"]}, "B", "B"),
        ({"type": "enum", "name": "E", "symbols": ["A", "B"]}, ["B"], "must be one of A, B"),
        ({"type": "int", "logicalType": "date"}, "2024-02-29", date(2024, 2, 29)),
        ({"type": "int", "logicalType": "date"}, "2023-02-29", "must be YYYY-MM-DD or days since the epoch"),
        (MICROS, 2**63, "is beyond the years 1 to 9999"),
        (MICROS, float("inf"), "must be ISO 8601 or milliseconds since the epoch"),
        ({"type": "bytes", "logicalType": "decimal", "precision": 5, "scale": 2}, 12.3, Decimal("12.30")),
        ({"type": "bytes", "logicalType": "decimal", "precision": 5, "scale": 2}, "1.005", "has more than 2 decimals"),
        ({"type": "bytes", "logicalType": "decimal", "precision": 5, "scale": 2}, 0, Decimal("0.00")),
        (
            {"type": "bytes", "logicalType": "decimal", "precision": 5, "scale": 2},
            1000,
            "has more than 3 digits before the point",
        ),
        ({"type": "string", "logicalType": "uuid"}, "nope", "must be a UUID"),
        ({"type": "array", "items": "int"}, [1, 2], [1, 2]),
        ({"type": "map", "values": "int"}, {"a": 1}, [("a", 1)]),
        (["null", "long", "string"], "x", {"long": None, "string": "x"}),
        (["null", "long", "string"], 1.5, "must be one of long, string"),
    ],
)
def test_values(avro: Any, given: Any, expected: Any) -> None:
    if isinstance(avro, dict) and avro.get("logicalType") == "uuid":
        assert one(avro, "6F9619FF-8B86-D011-B42D-00C04FC964FF") == "6f9619ff-8b86-d011-b42d-00c04fc964ff"
    assert one(avro, given) == expected


def test_an_error_inside_names_its_place() -> None:
    inner = {"type": "record", "name": "I", "fields": [{"name": "y", "type": {"type": "array", "items": "int"}}]}
    schema = {"type": "record", "name": "R", "fields": [{"name": "x", "type": inner}]}
    found = JsonConverter(schema).convert([{"x": {"y": [1, "2"]}}, {"x": {}}, {"x": {"y": [], "z": 1}}])
    assert [(e.field, e.message) for e in found.errors] == [
        ("x.y.[1]", "must be a whole number"),
        ("x.y", "is missing"),
        ("x.z", "is not in the contract"),
    ]
