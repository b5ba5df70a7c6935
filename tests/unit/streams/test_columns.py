"""Columns that come, go and change their type in a topic that KPIs, lookups and syncs read."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from headrace.errors import ContractError
from tests.unit.streams.change_topic import ID, NAME, ChangeTopic, declared, envelope_of, event

X = {"name": "x", "type": "long", "default": 7}
OLD, NEW = envelope_of(ID, NAME), envelope_of(ID, NAME, X)
SUM = declared("sum", "x", name="sum")
ABOVE = declared("count", name="above", filter="x > 5")
EACH = declared("count", name="each", dimensions=["x"])
ROWS = declared("count", name="rows")


def added(topic: ChangeTopic) -> list[Any]:
    """Two rows, then `ADD COLUMN x bigint DEFAULT 7`, then one of them changes."""
    first = [event("c", None, {"id": n, "name": "n"}, n) for n in (1, 2)]
    later = event("u", {"id": 1, "name": "n", "x": 7}, {"id": 1, "name": "n", "x": 9}, 20)
    return [topic.chunk(*((1, e) for e in first)), topic.chunk((2, later))]


def test_rows_of_before_a_column_hold_its_default_however_chunks_are_cut() -> None:
    topic = ChangeTopic({1: OLD, 2: NEW})
    chunks = added(topic)
    assert topic.kpis(SUM, ABOVE, EACH, ROWS, chunks=chunks) == {
        "sum": {"{}": 16.0},
        "above": {"{}": 2.0},
        "each": {'{"x":7}': 1.0, '{"x":9}': 1.0},
        "rows": {"{}": 2.0},
    }
    assert topic.lookup("x", chunks=chunks) == [{"id": 1, "x": 9}, {"id": 2, "x": 7}]
    assert topic.sync(chunks, columns=["x"]) == [{"id": 1, "x": 9}, {"id": 2, "x": 7}]
    assert topic.sync(chunks, columns=["name"], filter="x > 8") == [{"id": 1, "name": "n"}]


def test_a_column_that_the_registry_says_nothing_of_is_null_until_it_is_met() -> None:
    topic = ChangeTopic({1: OLD, 2: NEW}, unregistered=[1, 2])
    chunks = added(topic)
    assert topic.kpis(SUM, ABOVE, EACH, ROWS, chunks=chunks[:1]) == {
        "sum": {"{}": 0.0},
        "above": {},
        "each": {'{"x":null}': 2.0},
        "rows": {"{}": 2.0},
    }
    assert topic.lookup("x", chunks=chunks) == [{"id": 1, "x": 9}, {"id": 2, "x": None}]
    assert topic.sync(chunks, columns=["x"]) == [{"id": 1, "x": 9}, {"id": 2, "x": None}]
    day = declared("count", name="daily", window="1d", event_time="x")
    assert topic.kpis(day, chunks=chunks[:1]) == {"daily": {}}


def test_a_column_that_was_dropped_is_null_to_who_begins_after_it() -> None:
    topic = ChangeTopic({1: NEW, 2: OLD})
    chunks = [topic.chunk((2, event("c", None, {"id": 1, "name": "n"}, 10)))]
    assert topic.kpis(SUM, ROWS, chunks=chunks) == {"sum": {"{}": 7.0}, "rows": {"{}": 1.0}}
    assert topic.lookup("x", chunks=chunks) == [{"id": 1, "x": 7}]
    nullable = envelope_of(ID, NAME, {"name": "x", "type": ["null", "long"]})
    topic = ChangeTopic({1: nullable, 2: OLD})
    chunks = [topic.chunk((2, event("c", None, {"id": 1, "name": "n"}, 10)))]
    assert topic.kpis(SUM, ROWS, chunks=chunks) == {"sum": {"{}": 0.0}, "rows": {"{}": 1.0}}
    assert topic.sync(chunks, columns=["x"]) == [{"id": 1, "x": None}]


def retyped(topic: ChangeTopic) -> list[Any]:
    first = event("c", None, {"id": 1, "name": "n", "x": "a"}, 10)
    later = [
        event("c", None, {"id": 2, "name": "n", "x": 5}, 20),
        event("u", {"id": 1, "name": "n", "x": 5}, {"id": 1, "name": "m", "x": 5}, 21),
    ]
    return [topic.chunk((1, first)), topic.chunk(*((2, e) for e in later))]


def test_the_type_of_a_column_that_nobody_uses_is_of_no_matter() -> None:
    text, number = ({"name": "x", "type": ["null", kind]} for kind in ("string", "long"))
    topic = ChangeTopic({1: envelope_of(ID, NAME, text), 2: envelope_of(ID, NAME, number)})
    chunks = retyped(topic)
    by_name = declared("count", name="by_name", dimensions=["name"])
    assert topic.kpis(ROWS, by_name, chunks=chunks) == {
        "rows": {"{}": 2.0},
        "by_name": {'{"name":"n"}': 1.0, '{"name":"m"}': 1.0},
    }
    assert topic.lookup("name", chunks=chunks) == [{"id": 1, "name": "m"}, {"id": 2, "name": "n"}]
    assert topic.sync(chunks) == [{"id": 1, "name": "m"}, {"id": 2, "name": "n"}]


def test_records_whose_used_column_has_another_type_are_told_of_once() -> None:
    text, number = ({"name": "x", "type": ["null", kind]} for kind in ("string", "long"))
    topic = ChangeTopic({1: envelope_of(ID, NAME, text), 2: envelope_of(ID, NAME, number)})
    one, two = retyped(topic)
    old = topic.chunk((1, event("c", None, {"id": 3, "name": "n", "x": "b"}, 30)))
    reason = "incompatible schema: 1, before.x int64 and string have no type in common"
    for read in (
        lambda: topic.kpis(SUM, chunks=[one, old]),
        lambda: topic.lookup("x", chunks=[one, two, old]),
        lambda: topic.sync([one, two, old], columns=["x"]),
    ):
        with capture_logs() as logs:
            read()
        told = [entry for entry in logs if entry["event"] == "records are left out"]
        assert [(entry["log_level"], entry["topic"], entry["reason"]) for entry in told] == [
            ("error", "shop.public.things", reason)
        ]
    assert topic.lookup("x", chunks=[one, two]) == [{"id": 1, "x": 5}, {"id": 2, "x": 5}], "the newest type counts"


def test_a_field_that_no_schema_has_stops_a_sync_and_is_told_of_elsewhere() -> None:
    topic = ChangeTopic({1: OLD, 2: NEW})
    with pytest.raises(ContractError, match="has no field 'y'"):
        topic.sync([], columns=["y"])
    with capture_logs() as logs:
        assert topic.lookup("y", chunks=added(topic)) == [{"id": 1, "y": None}, {"id": 2, "y": None}]
    assert [entry["reason"] for entry in logs] == ["no schema of the topic has the column y: it is null in every row"]
