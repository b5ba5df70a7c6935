"""Numbers of any size: Python's decimals are the oracle."""

from __future__ import annotations

import io
from decimal import Context, Decimal
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ContractError
from schemas.codec import Decoder, Encoder
from schemas.codec.numbers import MAX_BYTES

NUMBER = {
    "type": "record",
    "name": "VariableScaleDecimal",
    "namespace": "io.debezium.data",
    "fields": [{"name": "scale", "type": "int"}, {"name": "value", "type": "bytes"}],
    "connect.name": "io.debezium.data.VariableScaleDecimal",
}
SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "R",
    "fields": [
        {"name": "must", "type": NUMBER},
        {"name": "may", "type": ["null", "io.debezium.data.VariableScaleDecimal"]},
        {"name": "many", "type": {"type": "array", "items": ["null", "io.debezium.data.VariableScaleDecimal"]}},
        {"name": "fixed", "type": {"type": "bytes", "logicalType": "decimal", "precision": 60, "scale": 5}},
    ],
}
EXACT = Context(prec=200_000, Emax=10**9, Emin=-(10**9))


def encoded(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)


def wide(number: int) -> bytes:
    """More bytes than it needs."""
    return number.to_bytes(number.bit_length() // 8 + 9, "big", signed=True)


def messages(*rows: dict[str, Any]) -> pa.BinaryArray:
    raw = {**SCHEMA, "fields": [*SCHEMA["fields"][:3], {"name": "fixed", "type": "bytes"}]}
    out = []
    for row in rows:
        body = io.BytesIO()
        fastavro.schemaless_writer(body, fastavro.parse_schema(raw), row)
        out.append(b"\0\0\0\0\1" + body.getvalue())
    return pa.array(out, pa.binary())


def one(scale: int, value: bytes) -> dict[str, Any]:
    number = {"scale": scale, "value": value}
    return {"must": number, "may": None, "many": [None, number], "fixed": b"\1"}


INTEGERS = st.one_of(
    st.integers(-(2**70), 2**70), st.integers(-(10**200), 10**200), st.integers(0, 600).map(lambda n: -(10**n))
)


@given(st.lists(st.tuples(INTEGERS, st.integers(-300, 300), st.booleans()), min_size=1, max_size=8))
def test_text_is_the_number_and_the_same_for_equal_numbers(numbers: list[tuple[int, int, bool]]) -> None:
    rows = [one(scale, (wide if long else encoded)(number)) for number, scale, long in numbers]
    decoded = Decoder(SCHEMA).decode(messages(*rows))
    assert decoded.reasons == []
    decoded.batch.validate(full=True)
    texts = decoded.batch.column("must").to_pylist()
    assert decoded.batch.column("may").null_count == len(rows)
    assert decoded.batch.column("many").to_pylist() == [[None, text] for text in texts]
    for text, (number, scale, _) in zip(texts, numbers, strict=True):
        assert Decimal(text) == Decimal(number).scaleb(-scale, EXACT)
        assert not (text.startswith("-0") and Decimal(text) == 0)
        assert "." not in text or not text.endswith("0")
        again = Decoder(SCHEMA).decode(messages(one(scale + 3, encoded(number * 1000)))).batch
        assert again.column("must").to_pylist() == [text]


@given(st.lists(st.tuples(INTEGERS, st.integers(0, 100)), min_size=1, max_size=8))
def test_text_goes_back_to_the_same_number(numbers: list[tuple[int, int]]) -> None:
    batch = Decoder(SCHEMA).decode(messages(*(one(scale, encoded(number)) for number, scale in numbers))).batch
    again = Decoder(SCHEMA).decode(Encoder(SCHEMA, 1).encode(batch))
    assert again.reasons == []
    assert again.batch.equals(batch)


@pytest.mark.parametrize(
    ("scale", "number", "text"),
    [
        (0, 0, "0"),
        (5, 0, "0"),
        (2, -150, "-1.5"),
        (-2, 3, "300"),
        (3, 1, "0.001"),
        (0, -(2**63), str(-(2**63))),
        (0, 10**64, "1" + "0" * 64),
        (0, 10**65, "1E65"),
        (65, 1, "0." + "0" * 64 + "1"),
        (66, 12, "0." + "0" * 64 + "12"),
        (67, 12, "12E-67"),
        (2**31 - 1, 7, "7E-2147483647"),
        (-(2**31), 7, "7E2147483648"),
        (0, int("9" * 4000), "9" * 4000),
    ],
)
def test_how_a_number_is_written(scale: int, number: int, text: str) -> None:
    assert Decoder(SCHEMA).decode(messages(one(scale, encoded(number)))).batch.column("must").to_pylist() == [text]


def test_the_scale_of_a_schema_and_a_number_beyond_all_use() -> None:
    good, bad = one(0, b"\1"), one(0, b"\1" * (MAX_BYTES + 1))
    decoded = Decoder(SCHEMA).decode(messages(good, bad, good))
    assert decoded.rows.tolist() == [0, 2]
    assert decoded.reasons == ["too many digits: must.value"]
    assert decoded.batch.column("fixed").to_pylist() == ["0.00001"] * 2
    assert decoded.batch.column("many").to_pylist() == [[None, "1"]] * 2


@pytest.mark.parametrize(
    ("field", "text"),
    [("must", "x"), ("must", "NaN"), ("may", "-Infinity"), ("must", "1E-2147483649"), ("fixed", "0.000001")],
)
def test_text_that_is_no_such_number_is_not_encoded(field: str, text: str) -> None:
    batch = Decoder(SCHEMA).decode(messages(one(0, b"\1"))).batch
    row = batch.to_pylist()[0] | {field: text}
    with pytest.raises(ContractError) as e:
        Encoder(SCHEMA, 1).encode(pa.RecordBatch.from_pylist([row], schema=batch.schema))
    assert e.value.where == f"{field} in row 0"


def test_digits_that_are_no_text_are_not_encoded() -> None:
    batch = Decoder(SCHEMA).decode(messages(one(0, b"\1"))).batch
    broken = batch.set_column(1, "may", pa.array([b"\xff"]).view(pa.string()))
    with pytest.raises(ContractError, match="may: row 0 has text that is not UTF-8"):
        Encoder(SCHEMA, 1).encode(broken)


def test_the_rows_for_whose_digits_a_column_has_no_room_are_bad_alone() -> None:
    number = b"\x02\x02\x00\x02\x07\0"  # a list of 7 alone
    nulls = b"\x80\x80\xe0\x15" + bytes(22_806_528) + b"\0"  # more nulls than there is room for numbers
    many = {"name": "n", "type": {"type": "array", "items": ["null", NUMBER]}}
    values = pa.array([number, nulls, number, b"\0"], pa.binary())
    decoded = Decoder({"type": "record", "name": "R", "fields": [many]}).decode(values, skip=0)
    assert decoded.rows.tolist() == [0, 1, 3]
    assert decoded.reasons == ["too large: n[].value"]
    assert decoded.batch.column("n")[0].as_py() == ["7"]
