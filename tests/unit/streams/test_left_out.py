"""Single change events that KPIs, lookups and syncs cannot count, among others that they can."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from headrace.errors import ContractError
from schemas.envelope import UNAVAILABLE
from tests.unit.streams.change_topic import ID, NAME, TOPIC, ChangeTopic, declared, envelope_of, event

ROWS = declared("count", name="rows")


def created(key: int, lsn: int, **source: Any) -> dict[str, Any]:
    return event("c", None, {"id": key, "name": "n"}, lsn, **source)


def dropped(rule: str) -> dict[str, float]:
    """How many rows of each flow the rule has dropped so far."""
    flows = ("kpi", "lookup:things", "sync:s")
    labels = [{"flow": flow, "topic": TOPIC, "rule": rule} for flow in flows]
    return {of["flow"]: REGISTRY.get_sample_value("headrace_flow_rows_dropped_total", of) or 0.0 for of in labels}


def read_around(wrong: dict[str, Any], rule: str, rows: int = 1) -> tuple[Any, Any, Any, list[Any]]:
    """What KPI, lookup and sync make of two rows, a wrong event in the next chunk, and a third row behind it."""
    topic = ChangeTopic({1: envelope_of(ID, NAME)})
    chunks = [topic.chunk((1, created(1, 10)), (1, created(2, 11))), topic.chunk((1, wrong), (1, created(3, 30)))]
    before = dropped(rule)
    with capture_logs() as logs:
        made = topic.kpis(ROWS, chunks=chunks, there=2), topic.lookup("name", chunks=chunks), topic.sync(chunks)
    assert {flow: n - before[flow] for flow, n in dropped(rule).items()} == dict.fromkeys(before, rows)
    return *made, [(entry["log_level"], entry["flow"], entry["reason"]) for entry in logs if "reason" in entry]


THREE = [{"id": n, "name": "n"} for n in (1, 2, 3)]


def no_sequence() -> dict[str, Any]:
    return created(5, 20, sequence=None)


def no_transaction() -> dict[str, Any]:
    return created(5, 20) | {"transaction": None}


@pytest.mark.parametrize("make", [no_sequence, no_transaction])
def test_a_change_that_does_not_say_its_place_is_left_out(make: Any) -> None:
    kpis, lookup, sync, told = read_around(make(), "position")
    assert (kpis, lookup, sync) == ({"rows": {"{}": 3.0}}, THREE, THREE)
    assert [flow for _, flow, _ in told] == ["kpi", "lookup:things", "sync:s"], "each says it once"
    assert all(level == "error" and "provide.transaction.metadata" in reason for level, _, reason in told)


@pytest.mark.parametrize(
    "foreign",
    [
        created(5, 20, table="others"),
        created(5, 10**17, table="others"),
        created(5, 20, schema="private"),
        event("d", {"id": 1, "name": "n"}, None, 20, table="others"),
        event("t", None, None, 20, table="others"),
    ],
)
def test_a_change_of_another_table_is_left_out_and_makes_no_later_one_a_repeat(foreign: dict[str, Any]) -> None:
    kpis, lookup, sync, told = read_around(foreign, "of another table")
    assert (kpis, lookup, sync) == ({"rows": {"{}": 3.0}}, THREE, THREE)
    assert [flow for _, flow, _ in told] == ["kpi", "lookup:things", "sync:s"]


def test_a_change_that_names_no_table_is_the_topics() -> None:
    kpis, lookup, sync, told = read_around(created(5, 20, table=None), "of another table", rows=0)
    assert kpis == {"rows": {"{}": 4.0}}
    assert (len(lookup), len(sync), told) == (4, 4, [])


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        (created(5, 20) | {"op": "x"}, "unknown operation"),
        (event("c", None, None, 20), "no row"),
        (event("r", None, None, 20), "no row"),
        (event("u", {"id": 1, "name": "n"}, None, 20), "no row"),
    ],
)
def test_a_change_that_says_nothing_of_a_row_is_left_out(wrong: dict[str, Any], rule: str) -> None:
    kpis, lookup, sync, told = read_around(wrong, rule)
    assert (kpis, lookup, sync) == ({"rows": {"{}": 3.0}}, THREE, THREE)
    assert [flow for _, flow, _ in told] == ["kpi", "lookup:things", "sync:s"]


@pytest.mark.parametrize("name", ["Reading", f"{TOPIC}.Envelope"])
@pytest.mark.parametrize("first", [True, False])
def test_a_record_that_is_no_change_is_left_out_and_never_taken_for_one(name: str, first: bool) -> None:
    plain = {"type": "record", "name": name, "fields": [ID, NAME]}
    topic = ChangeTopic({1: envelope_of(ID, NAME), 2: plain}, unregistered=[1, 2])
    said = [[(2, {"id": 9, "name": "p"})], [(1, created(key, 10 + key)) for key in (1, 2, 3)]]
    chunks = [topic.chunk(*records) for records in (said if first else reversed(said))]
    before = dropped("unknown operation")
    assert topic.kpis(ROWS, chunks=chunks) == {"rows": {"{}": 3.0}}
    assert topic.lookup("name", chunks=chunks) == topic.sync(chunks) == THREE
    assert dropped("unknown operation") == before


def test_a_deletion_that_does_not_say_of_what_deletes_nothing() -> None:
    topic = ChangeTopic({1: envelope_of(ID, NAME)})
    chunks = [topic.chunk((1, created(1, 10)), (1, event("d", None, None, 20)))]
    before = dropped("no row")
    assert topic.lookup("name", chunks=chunks) == topic.sync(chunks) == THREE[:1]
    assert {flow: n - before[flow] for flow, n in dropped("no row").items()} == {
        "kpi": 0.0,
        "lookup:things": 1.0,
        "sync:s": 1.0,
    }
    with pytest.raises(ContractError, match="does not carry the row as it was"):
        topic.kpis(ROWS, chunks=chunks)


def test_a_value_that_could_not_be_read_stays_out_of_what_a_sync_wants() -> None:
    topic = ChangeTopic({1: envelope_of(ID, NAME)})
    update = event("u", {"id": 1, "name": "n"}, {"id": 1, "name": UNAVAILABLE}, 20)
    assert topic.sync([topic.chunk((1, created(1, 10))), topic.chunk((1, update))]) == THREE[:1]


def test_a_truncation_is_told_of_by_a_sync_which_cannot_follow_it() -> None:
    topic = ChangeTopic({1: envelope_of(ID, NAME)})
    truncation = event("t", None, None, 20)
    chunks = [topic.chunk((1, created(1, 10)), (1, truncation)), topic.chunk((1, truncation), (1, created(2, 30)))]
    before = dropped("truncation")
    with capture_logs() as logs:
        assert topic.sync(chunks) == THREE[:2]
    assert dropped("truncation")["sync:s"] - before["sync:s"] == 1, "the second is a repeat"
    assert [entry["log_level"] for entry in logs if "truncated" in entry.get("reason", "")] == ["error"]
