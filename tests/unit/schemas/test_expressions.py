import pyarrow as pa
import pytest

from headrace.errors import ContractError
from schemas.expressions import columns_of, compile_expression, compile_value

SCHEMA = pa.schema(
    [
        ("amount", pa.decimal128(12, 2)),
        ("status", pa.string()),
        ("n", pa.int64()),
        ("tags", pa.list_(pa.string())),
        ("at", pa.timestamp("us", "UTC")),
        ("customer", pa.struct([("country", pa.string())])),
    ]
)


def rows(*given):
    return pa.RecordBatch.from_pylist(list(given), schema=SCHEMA)


def test_reads_nested_fields_and_names_its_columns():
    expression = compile_expression("customer.country = 'FI' and amount > 10.5 or n is null", SCHEMA)
    assert expression.columns == ("customer.country", "amount", "n")
    batch = rows({"customer": {"country": "FI"}, "amount": 11, "n": 1}, {"customer": None, "amount": 11, "n": 1}, {})
    assert expression(batch).to_pylist() == [True, None, True]
    assert expression(batch.slice(1)).to_pylist() == [None, True]


def test_constants_have_a_value_for_each_row():
    assert compile_expression("1 < 2", SCHEMA)(rows({}, {})).to_pylist() == [True, True]
    assert compile_expression("null", SCHEMA)(rows({}, {})).to_pylist() == [None, None]
    assert len(compile_expression("n > 1", SCHEMA)(rows())) == 0


def test_a_whole_number_that_overflows_is_null_and_its_neighbours_are_not():
    batch = rows({"n": 2**63 - 1}, {"n": 1}, {"n": None})
    assert compile_value("n + 1", SCHEMA)(batch).to_pylist() == [None, 2, None]
    assert compile_value("n * n", SCHEMA)(batch).to_pylist() == [None, 1, None]
    assert compile_value("-n", SCHEMA)(rows({"n": -(2**63)})).to_pylist() == [None]
    assert compile_value("n % -1", SCHEMA)(rows({"n": -(2**63)})).to_pylist() == [0]


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("n > 1 and amuont > 2", r"position 11: no column amuont \(did you mean amount\?\)"),
        ("customer.contry = 'FI'", r"position 1: no column customer.contry \(did you mean customer.country\?\)"),
        ("status.x = 1", "no column status.x"),
        ("n > ", "does not parse"),
        ("n = 1; n = 2", "not one expression"),
        ("", "not one expression"),
        ("n + 1", "a number, not a condition"),
        ("status", "a text, not a condition"),
        ("not n", "`n` is a number, not a condition"),
        ("n > 'a'", "compares a number with a text"),
        ("status + 1 > 2", "position 1: `status` is a text, not a number"),
        ("lower(n) = 'a'", "not a text"),
        ("tags = tags", "does not compare"),
        ("amount % 2 = 0", "only whole numbers"),
        ("at > 'yesterday'", "not a time"),
        ("at > '2026-01-01'", "has no time zone"),
        ("at > TIMESTAMP '2026-01-01'", "times of the same kind"),
        ("random() > 0.5", "not supported"),
        ("(select 1) = n", "not supported"),
        ("select 1", "not supported"),
        ("n in (select 1)", "not supported"),
        ("case when n = 1 then true end", "not supported"),
        ("n is distinct from 1", "not supported"),
        ("*", "not supported|not a column"),
        (" * ".join(["amount"] * 9) + " > 1", "more than 76 digits"),
        ("(" * 5000 + "n" + ")" * 5000 + " > 1", "nested too deeply|does not parse"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(sql, said):
    with pytest.raises(ContractError, match=said):
        compile_expression(sql, SCHEMA)


def test_the_columns_of_an_expression_are_known_without_a_schema() -> None:
    assert columns_of("a > 1 and lower(b.c) in ('x', 'd') or a is null") == ("a", "b")
    assert columns_of("not ( one") == ()


def test_a_field_of_a_column_that_no_schema_has_is_null() -> None:
    batch = pa.RecordBatch.from_arrays([pa.nulls(2)], names=["a"])
    assert compile_expression("a.b.c > 1 or a.b is null", batch.schema)(batch).to_pylist() == [True, True]
