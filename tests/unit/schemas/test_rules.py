import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from headrace.errors import ContractError
from schemas.contracts import load_contract
from schemas.rules import compile_rules

MICROS = {"type": "long", "logicalType": "timestamp-micros"}


@pytest.fixture
def contract(tmp_path):
    def make(*fields, **attributes):
        path = tmp_path / "c.avsc"
        known = {"type": "record", "name": "C", "owner": "me", "topic": "c", "fields": list(fields)}
        path.write_text(json.dumps(known | attributes))
        return load_contract(path)

    return make


def optional(type_, *rules, **more):
    return {"name": "v", "type": ["null", type_], "default": None, "rules": list(rules), **more}


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("type_", "rule", "values", "kept"),
    [
        ("double", "between -60 90", [-60.0, 90.0, 90.1, None, NAN, INF], [1, 1, 0, 1, 0, 0]),
        ("double", "min 0", [0.0, -1.0, INF, NAN], [1, 0, 0, 0]),
        ("float", "max 0.1", [0.1, 0.2], [1, 0]),
        ("double", "finite", [1.0, NAN, INF, None], [1, 0, 0, 1]),
        ("long", "between 1 2.5", [1, 2, 3, None], [1, 1, 0, 1]),
        ("int", "min 1", [0, 1], [0, 1]),
        (
            {"type": "bytes", "logicalType": "decimal", "precision": 5, "scale": 2},
            "max 9.99",
            [Decimal("9.99"), Decimal("10")],
            [1, 0],
        ),
        (
            {"type": "int", "logicalType": "date"},
            "min 2026-01-01",
            [datetime(2026, 1, 1).date(), datetime(2025, 12, 31).date()],
            [1, 0],
        ),
        (
            MICROS,
            "max 2026-01-01T00:00:00Z",
            [datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)],
            [1, 0],
        ),
        ("string", "pattern ^a b{2}$", ["a bb", "a b", "xa bb", None], [1, 0, 0, 1]),
        ("string", "one_of [new, paid]", ["new", "old", None], [1, 0, 1]),
        ("string", 'one_of ["a, b", "1"]', ["a, b", "a", "1"], [1, 0, 1]),
        ("string", "one_of [1, 2]", ["1", "3"], [1, 0]),
        ("long", "one_of [1, 2]", [1, 3, None], [1, 0, 1]),
        ("string", "length 2", ["é€", "a", None], [1, 0, 1]),
        ("string", "length 1 2", ["", "a", "ab", "abc"], [0, 1, 1, 0]),
        ("string", "not_empty", ["", " ", "a", None], [0, 0, 1, 1]),
        ("boolean", "not_null", [True, None], [1, 0]),
    ],
)
def test_rules_of_a_field(contract, type_, rule, values, kept):
    made = contract(optional(type_, rule))
    type_rule, checked = compile_rules(made)
    batch = pa.RecordBatch.from_pylist(
        [{"v": v} for v in values], schema=pa.schema([("v", type_rule._schema.field("v").type)])
    )
    assert checked.name == f"v: {rule}"
    assert checked.mask(batch).to_pylist() == [bool(k) for k in kept]
    assert type_rule.mask(batch).to_pylist() == [True] * len(values)
    assert len(checked.mask(batch.slice(0, 0))) == 0


def test_future_is_measured_from_when_kafka_got_the_record(contract):
    rule = compile_rules(contract(optional(MICROS, "not_in_future 5m")))[-1]
    then = datetime(2026, 1, 1, tzinfo=UTC)
    late = [then + timedelta(minutes=5), then + timedelta(minutes=5, microseconds=1), None]
    kind = pa.timestamp("us", "UTC")
    batch = pa.RecordBatch.from_pydict({"v": pa.array(late, kind)})
    received = np.full(3, int(then.timestamp() * 1000))
    assert rule.mask(batch, received).to_pylist() == [True, False, True]
    assert rule.mask(batch.append_column("_timestamp", pa.array([then] * 3, kind))).to_pylist() == [True, False, True]
    assert rule.mask(
        pa.RecordBatch.from_pydict({"v": pa.array([datetime.now(UTC) + timedelta(minutes=m) for m in (4, 6)], kind)})
    ).to_pylist() == [True, False]


def test_implied_rules_hold_what_others_write_to_the_contract(contract):
    made = contract({"name": "id", "type": "int"}, optional("string"))
    rules = {r.name: r for r in compile_rules(made)}
    assert list(rules) == ["id: type int32", "id: not_null", "v: type string"]
    wide = pa.RecordBatch.from_pydict({"id": [1, 2**40, None], "v": [1, None, 2]})
    assert rules["id: type int32"].mask(wide).to_pylist() == [True, False, True]
    assert rules["id: type int32"].value(wide).to_pylist() == ["1", str(2**40), "null"]
    assert rules["id: not_null"].mask(wide).to_pylist() == [True, False, False]
    assert rules["v: type string"].mask(wide).to_pylist() == [False, True, False]
    without = pa.RecordBatch.from_pydict({"other": [1]})
    assert rules["id: not_null"].mask(without).to_pylist() == [False]
    assert rules["v: type string"].mask(without).to_pylist() == [True]


def test_rules_of_a_nested_record_pass_where_it_is_missing(contract):
    inner = {"type": "record", "name": "In", "fields": [{"name": "n", "type": "long", "rules": ["min 1"]}]}
    rules = {r.name: r for r in compile_rules(contract(optional(inner), rules=["v.n <> 7"]))}
    batch = pa.RecordBatch.from_pylist([{"v": None}, {"v": {"n": 0}}, {"v": {"n": 7}}])
    assert rules["v.n: not_null"].mask(batch).to_pylist() == [True, True, True]
    assert rules["v.n: min 1"].mask(batch).to_pylist() == [True, False, True]
    assert rules["record: v.n <> 7"].mask(batch).to_pylist() == [True, True, False]


def test_record_rules_pass_when_unknown_and_show_their_values(contract):
    made = contract(
        {"name": "low", "type": ["null", "double"]},
        {"name": "high", "type": "double", "pii": "health"},
        rules=["low <= high"],
    )
    rule = compile_rules(made)[-1]
    batch = pa.RecordBatch.from_pydict({"low": [1.0, 3.0, None], "high": [2.0, 2.0, 2.0]})
    assert (rule.name, rule.field) == ("record: low <= high", "")
    assert rule.mask(batch).to_pylist() == [True, False, True]
    assert rule.value(batch.slice(1)).to_pylist() == ["low=3, high=***", "low=null, high=***"]


def test_values_are_short_and_personal_data_is_masked(contract):
    long = "x" * 500
    plain = compile_rules(contract(optional("string", "length 1")))[-1]
    text = plain.value(pa.RecordBatch.from_pydict({"v": [long, None]})).to_pylist()
    assert (len(text[0]), text[0][-1], text[1]) == (200, "…", "null")
    masked = compile_rules(contract(optional("string", "length 1", pii="name")))[-1]
    assert masked.value(pa.RecordBatch.from_pydict({"v": ["Ann", None]})).to_pylist() == ["***", "null"]
    raw = compile_rules(contract(optional("bytes")))[0]
    assert raw.value(pa.RecordBatch.from_pydict({"v": [b"\xff\x00"]})).to_pylist() == ["2 bytes"]


@pytest.mark.parametrize(
    ("type_", "rule", "said"),
    [
        ("double", "betwen 1 2", "did you mean between"),
        ("double", "unique", "step of an agent"),
        ("double", "between 2 1", "2 is above 1"),
        ("double", "between 1", "write between 0 100"),
        ("double", "min a", "not 1 number"),
        ("double", "min 1; drop", "not 1 number"),
        ("string", "between 1 2", "does not fit type string"),
        ("string", "finite", "only float and double"),
        ("string", "pattern (", "not a regular expression"),
        ("string", "pattern", "no pattern"),
        ("long", "pattern a", "needs a text"),
        ("long", "one_of [a]", "does not fit type int64"),
        ("string", "one_of new", "not a list"),
        ("string", "one_of []", "not a list"),
        ("long", "one_of [1, null]", "null"),
        ("string", "length 3 1", "not a length"),
        ("string", "not_null really", "takes nothing"),
        ("long", "not_in_future 5m", "point in time"),
        (MICROS, "not_in_future soon", "not a duration"),
        (MICROS, "min 2026-99-01T00:00:00Z", "not a time"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_with_its_place(contract, type_, rule, said):
    with pytest.raises(ContractError, match=said) as e:
        compile_rules(contract(optional(type_, rule)))
    assert f"c.avsc: v: {rule}" in e.value.where


def test_a_record_rule_names_the_column_it_misses(contract):
    with pytest.raises(ContractError, match=r"rules: lo < v: position 1: no column lo"):
        compile_rules(contract(optional("double"), rules=["lo < v"]))
