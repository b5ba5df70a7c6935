"""Expressions mean what DuckDB takes them to mean."""

import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from schemas.expressions import compile_value

SCHEMA = pa.schema(
    [
        ("i", pa.int64()),
        ("j", pa.int32()),
        ("x", pa.float64()),
        ("y", pa.float32()),
        ("m", pa.decimal128(12, 2)),
        ("s", pa.string()),
        ("b", pa.bool_()),
        ("t", pa.timestamp("us", "UTC")),
        ("r", pa.struct([("n", pa.int64()), ("s", pa.string())])),
    ]
)
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def opt(strategy):
    return st.one_of(st.none(), strategy)


TEXTS = st.text("aBé€ß'% ", max_size=3)
DOUBLES = st.one_of(
    st.sampled_from([0.0, -0.0, 0.1, math.inf, -math.inf, math.nan]), st.floats(-5, 5), st.integers(-3, 3).map(float)
)
CENTS = st.integers(-400, 400).map(lambda c: Decimal(c).scaleb(-2))
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "i": opt(st.one_of(st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1))),
            "j": opt(st.integers(-3, 3)),
            "x": opt(DOUBLES),
            "y": opt(st.floats(-5, 5, width=32)),
            "m": opt(CENTS),
            "s": opt(TEXTS),
            "b": opt(st.booleans()),
            "t": opt(st.integers(-3, 3).map(lambda n: EPOCH + timedelta(microseconds=n))),
            "r": opt(st.fixed_dictionaries({"n": opt(st.integers(-3, 3)), "s": opt(TEXTS)})),
        }
    ),
    min_size=1,
    max_size=8,
)


def quoted(text):
    return "'" + text.replace("'", "''") + "'"


NUMBER_LEAVES = st.one_of(
    st.sampled_from(["i", "j", "x", "y", "m", "r.n", "null"]),
    st.integers(-3, 3).map(str),
    CENTS.map(str),
    st.sampled_from(["1e0", "-25e-1", "0.1", "9223372036854775807"]),
)
TEXT_LEAVES = st.one_of(st.sampled_from(["s", "r.s", "null"]), TEXTS.map(quoted))


def numbers(inner):
    return st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda p: f"({p[0]} {p[1]} {p[2]})"),
        inner.map(lambda n: f"(- {n})"),
        inner.map(lambda n: f"abs({n})"),
        st.tuples(inner, inner).map(lambda p: f"coalesce({p[0]}, {p[1]})"),
        st.tuples(st.sampled_from(["i", "j", "r.n", "7"]), st.sampled_from(["i", "j", "2", "-1", "0"])).map(
            lambda p: f"({p[0]} % {p[1]})"
        ),
        texts.map(lambda t: f"length({t})"),
    )


texts = st.recursive(
    TEXT_LEAVES,
    lambda inner: st.one_of(
        inner.map(lambda t: f"lower({t})"),
        inner.map(lambda t: f"upper({t})"),
        st.tuples(inner, inner).map(lambda p: f"coalesce({p[0]}, {p[1]})"),
    ),
    max_leaves=3,
)
numeric = st.recursive(NUMBER_LEAVES, numbers, max_leaves=4)
COMPARE = st.sampled_from(["=", "<>", "<", "<=", ">", ">="])


def compared(of):
    return st.one_of(
        st.tuples(of, COMPARE, of).map(" ".join),
        st.tuples(of, st.sampled_from(["", "not "]), of, of).map(lambda p: f"{p[0]} {p[1]}between {p[2]} and {p[3]}"),
        st.tuples(of, st.sampled_from(["", "not "]), st.lists(of, min_size=1, max_size=3)).map(
            lambda p: f"{p[0]} {p[1]}in ({', '.join(p[2])})"
        ),
        st.tuples(of, st.sampled_from(["is null", "is not null"])).map(" ".join),
    )


TIMES = st.sampled_from(["t", "'2026-01-01T00:00:00Z'", "TIMESTAMPTZ '2026-01-01T01:00:00.000001+01:00'", "null"])
conditions = st.recursive(
    st.one_of(
        compared(numeric),
        compared(texts),
        st.tuples(st.just("t"), COMPARE, TIMES).map(" ".join),
        st.sampled_from(["b", "true", "false", "null", "b = true", "r is null", "b is not true", "b is false"]),
    ),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda p: f"({p[0]} {p[1]} {p[2]})"),
        inner.map(lambda c: f"not ({c})"),
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def database():
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        # It would answer `(x + 1) is null` without adding, and so without the overflow.
        connection.execute("PRAGMA disable_optimizer")
        yield connection


def answer(database, sql):
    try:
        return [row[0] for row in database.execute(f"SELECT ({sql}) FROM rows").fetchall()]
    except (duckdb.OutOfRangeException, duckdb.ConversionException):
        return None


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(conditions, ROWS)
def test_conditions_agree_with_duckdb(database, sql, rows):
    batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
    database.register("rows", pa.Table.from_batches([batch]))
    expected = answer(database, sql)
    assume(expected is not None)
    got = compile_value(sql, SCHEMA)(batch)
    assert len(got) == len(rows)
    assert got.to_pylist() == expected
