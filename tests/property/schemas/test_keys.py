"""Keys made by columns, against JSON made of each row."""

import base64
import json
from datetime import UTC, date, datetime
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.keys import record_keys

TEXT = st.text(max_size=8) | st.sampled_from(['"', "\\", "\n", "\x00\x1f\x7f", "a|b", 'a","b', "\u2028é😀", ""])
COLUMNS = {
    "text": (pa.string(), TEXT),
    "long": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "int": (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    "flag": (pa.bool_(), st.booleans()),
    "raw": (pa.binary(), st.binary(max_size=4)),
    "day": (pa.date32(), st.dates()),
}
PLAIN = {"day": date.isoformat, "raw": lambda value: base64.b64encode(value).decode()}

parts = st.lists(st.sampled_from(sorted(COLUMNS)), min_size=2, max_size=4, unique=True)


@st.composite
def batches(draw):
    key = draw(parts)
    rows = draw(st.lists(st.tuples(*(st.none() | COLUMNS[name][1] for name in key)), max_size=6))
    columns = [pa.array([row[i] for row in rows], COLUMNS[name][0]) for i, name in enumerate(key)]
    return key, rows, pa.RecordBatch.from_arrays(columns, key)


@given(batches())
def test_several_fields_are_a_json_array(given_):
    key, rows, batch = given_
    expected = [
        None
        if None in row
        else json.dumps(
            [PLAIN.get(name, lambda v: v)(value) for name, value in zip(key, row, strict=True)],
            ensure_ascii=False,
            separators=(",", ":"),
        ).encode()
        for row in rows
    ]
    assert record_keys(batch, key).to_pylist() == expected


@given(st.lists(st.none() | TEXT), st.randoms())
def test_one_field_is_its_text_wherever_a_batch_begins(values, random):
    start = random.randint(0, len(values))
    batch = pa.RecordBatch.from_pydict({"v": pa.array(values, pa.string())}).slice(start)
    assert record_keys(batch, ["v"]).to_pylist() == [None if v is None else v.encode() for v in values[start:]]


@pytest.mark.parametrize(
    ("value", "kind", "alone", "among"),
    [
        (7, pa.int64(), b"7", b"[1,7]"),
        (True, pa.bool_(), b"true", b"[1,true]"),
        (Decimal("1.50"), pa.decimal128(9, 2), b"1.50", b'[1,"1.50"]'),
        (b"\xff", pa.binary(), b"\xff", b'[1,"/w=="]'),
        (b"\xff", pa.binary(1), b"\xff", b'[1,"/w=="]'),
        (
            datetime(2026, 1, 2, 3, 4, 5, 6, UTC),
            pa.timestamp("us", "UTC"),
            b"2026-01-02 03:04:05.000006Z",
            b'[1,"2026-01-02 03:04:05.000006Z"]',
        ),
    ],
)
def test_each_type_has_one_form(value, kind, alone, among):
    batch = pa.RecordBatch.from_pydict({"n": pa.array([1]), "v": pa.array([value], kind)})
    assert record_keys(batch, ["v"]).to_pylist() == [alone]
    assert record_keys(batch, ["n", "v"]).to_pylist() == [among]
    assert record_keys(batch, []).to_pylist() == [None]
