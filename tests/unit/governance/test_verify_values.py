"""Canonical values: what Avro, tables and databases say must compare."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from governance.verify.current import Visible
from governance.verify.values import canonical, difference, from_avro, from_database


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
        (0.1, {"type": "float"}, 0.10000000149011612),
    ],
)
def test_avro_values_follow_their_schema(value: Any, schema: Any, expected: Any) -> None:
    assert from_avro(value, schema) == expected


def test_a_named_record_is_known_where_it_is_only_referred_to() -> None:
    row = {"type": "record", "name": "Value", "fields": [{"name": "at", "type": _date()}]}
    envelope = {
        "type": "record",
        "name": "Envelope",
        "fields": [{"name": "before", "type": ["null", row]}, {"name": "after", "type": ["null", "Value"]}],
    }
    assert from_avro({"before": None, "after": {"at": 0}}, envelope) == {"after": {"at": date(1970, 1, 1)}}


def _date() -> dict[str, str]:
    return {"type": "int", "connect.name": "io.debezium.time.Date"}


def test_zones_numbers_and_nan_compare_by_value() -> None:
    paris = datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))
    assert canonical(paris) == canonical(datetime(2026, 1, 1, tzinfo=UTC))
    assert canonical(Decimal("5.00")) == canonical(Decimal(5))
    assert canonical(float("nan")) == canonical(float("nan"))
    assert canonical({"a": None, "b": [1]}) == {"b": [1]}


def test_a_database_prints_single_precision_shorter() -> None:
    assert from_database(0.1, "float") == pytest.approx(0.1, rel=1e-6)
    assert from_database(0.1, "float") != 0.1
    assert from_database({"a": 1}, "string") == '{"a": 1}'


def test_difference_names_the_first_field_with_both_values() -> None:
    assert difference({"a": 1, "b": 2}, {"a": 1, "b": 2}) is None
    assert difference({"a": 1}, {"a": 2}) == "a is 2, expected 1"
    assert difference({"a": 1}, {"a": 1, "b": 3}) == "b is 3, expected None"


def test_a_database_snapshot_sees_what_was_committed_before_it() -> None:
    snapshot = Visible.parse("100:105:101,103")
    assert [x for x in range(98, 107) if snapshot.sees(x)] == [98, 99, 100, 102, 104]


def test_transaction_ids_are_reported_without_their_epoch() -> None:
    base = 3 << 32
    snapshot = Visible.parse(f"{base + 100}:{base + 105}:")
    assert snapshot.sees(104)
    assert not snapshot.sees(105)
    assert snapshot.sees(0xFFFFFFFF), "from the epoch before"
