"""PostgreSQL's text in the form of a table's column."""

from __future__ import annotations

from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from governance.verify.postgres import Forms, comparable, from_postgres

STAMP = pa.timestamp("us")
LAST = datetime.max


@pytest.mark.parametrize(
    ("value", "type_", "lake", "expected"),
    [
        (0.1, "float4", pa.float32(), 0.10000000149011612),
        (0.1, "float4", pa.float64(), 0.10000000149011612),
        (float("nan"), "float8", pa.float64(), "NaN"),
        ("2024-02-29", "date", pa.date32(), date(2024, 2, 29)),
        ("infinity", "date", pa.date32(), date.max),
        ("0044-03-15 BC", "date", pa.date32(), date.min),
        ("12024-01-01", "date", pa.date32(), date.max),
        ("2024-02-29 12:34:56.7", "timestamp", STAMP, datetime(2024, 2, 29, 12, 34, 56, 700_000)),
        ("2024-02-29 12:34:56+00", "timestamptz", pa.timestamp("us", "UTC"), datetime(2024, 2, 29, 12, 34, 56)),
        ("-infinity", "timestamptz", pa.timestamp("us", "UTC"), datetime.min),
        ("24:00:00", "time", pa.time64("us"), time.max),
        ("12:34:56.789012+02", "timetz", pa.string(), "10:34:56.789012Z"),
        ("23:00:00-05:30", "timetz", pa.string(), "04:30:00Z"),
        ("24:00:00+00", "timetz", pa.string(), "00:00:00Z"),
        ("12:00:00.50+00:00:30", "timetz", pa.string(), "11:59:30.5Z"),
        ("P1Y2M3DT4H5M6.789S", "interval", pa.string(), "P1Y2M3DT4H5M6.789S"),
        ("P-1DT2H", "interval", pa.string(), "P0Y0M-1DT2H0M0S"),
        ("PT0S", "interval", pa.string(), "P0Y0M0DT0H0M0S"),
        ("-$92,233,720,368,547,758.08", "money", pa.decimal128(38, 2), Decimal("-92233720368547758.08")),
        (Decimal("1.10"), "numeric", pa.string(), "1.1"),
        (Decimal("NaN"), "numeric", pa.string(), "NaN"),
        ("1", "bit", pa.bool_(), True),
        ("100000000011", "bit", pa.binary(), b"\x03\x08"),
        ("0000", "varbit", pa.binary(), b""),
        ("(1,x)", "pair", pa.binary(), b"(1,x)"),
        ("[1,2.5]", "vector", pa.list_(pa.float64()), [1.0, 2.5]),
        ("{1:1.5}/5", "sparsevec", pa.struct([]), {"dimensions": 5, "vector": [{"key": 1, "value": 1.5}]}),
        ("[1,5)", "int4range", pa.string(), "[1,5)"),
        (["2024-02-29", None], "date[]", pa.list_(pa.date32()), [date(2024, 2, 29), None]),
        (["12:34:56.789912", None], "time[]", pa.list_(pa.time64("us")), [time(12, 34, 56, 789_000), None]),
        (["12:34:56.9+02"], "timetz[]", pa.list_(pa.string()), ["10:34:56Z"]),
        (None, "date", pa.date32(), None),
    ],
)
def test_a_value_of_the_database_has_the_tables_form(value: Any, type_: str, lake: pa.DataType, expected: Any) -> None:
    assert from_postgres(value, type_, lake) == expected


def test_what_is_written_in_several_ways_compares() -> None:
    forms = Forms({"h": "hstore", "c": "circle", "t": "timestamp"}, {"h": pa.string(), "c": pa.binary(), "t": STAMP})
    text = r'"b"=>NULL, "a\"\\"=>"1"'
    database = {"h": text, "c": "<(1,1e+20),0.5>", "t": "infinity"}
    table = {"h": '{"a\\"\\\\": "1", "b": null}', "c": b"<(1.0,1.0E20),0.5>", "t": LAST.replace(microsecond=999_000)}
    assert forms.expected(database) == forms.held(table)
    for column, other in (
        ("h", '{"a\\"\\\\": "2", "b": null}'),
        ("c", b"<(1.0,1.0E20),0.6>"),
        ("t", datetime(9999, 1, 1)),
    ):
        assert forms.expected(database) != forms.held(table | {column: other})
    assert comparable(["{}", None], "hstore[]") == ["{}", None]


def test_decimals_as_text_compare_by_value() -> None:
    forms = Forms({"n": "numeric", "m": "money"}, {"n": pa.string(), "m": pa.string()})
    for number, text in (
        (Decimal("1.10"), "1.10"),
        (Decimal("NaN"), "NAN"),
        (Decimal("-Infinity"), "NEGATIVE_INFINITY"),
    ):
        assert forms.expected({"n": number, "m": "$1.10"}) == forms.held({"n": text, "m": "1.10"})
        assert forms.expected({"n": number, "m": "$1.10"}) != forms.held({"n": "1.2", "m": "1.10"})
