"""The copy in hand leaves out rows of incremental snapshots that the sink does."""

from __future__ import annotations

from typing import Any

import pytest

from governance.verify.kafka import Record
from governance.verify.states import Keyed, Keyless

SCHEMA = {"name": "one"}
Event = tuple[Record, dict[str, Any]]


def event(op: str, offset: int, number: int, name: str, seconds: float | None, **more: Any) -> Event:
    """`R` is a row that an incremental snapshot read."""
    row = {"id": number, "name": name}
    time = None if seconds is None else int(seconds * 1000)
    source = {"snapshot": {"R": "incremental", "r": "true"}.get(op)}
    made = {"op": op.lower(), "source": source, "ts_ms": time, "schema": SCHEMA, "before": None, "after": None}
    return Record("t", 0, offset, 0, None, None), made | {"before" if op == "d" else "after": row} | more


def applied(state: Keyed | Keyless, *events: Event) -> Keyed | Keyless:
    """As `check_current` does."""
    for record, one in events:
        if not state.stale(one):
            state.apply(record, one, (record.offset, 0))
    return state


def rows(**names: str) -> list[dict[str, Any]]:
    return [{"id": int(at[1:]), "name": name} for at, name in names.items()]


def held(number: int, offset: int, name: str = "old") -> dict[str, Any]:
    return {"id": number, "name": name, "_kafka_partition": 0, "_offset": offset, "_position": offset, "_order": 1}


def test_a_row_changes_nothing_within_a_minute_of_its_keys_last_change() -> None:
    state = applied(
        Keyed(("id",), [held(3, 1), held(6, 1)]),
        event("u", 5, 1, "new", 10),
        event("c", 6, 2, "new", 10),
        event("d", 7, 3, "new", 10),
        event("u", 8, 4, "new", 10),
        event("u", 9, 5, "new", None),
        event("u", 10, 7, "new", 10),
        event("R", 11, 1, "old", 70),
        event("R", 12, 2, "read", 70.001),
        event("R", 13, 3, "old", 11),
        event("r", 14, 4, "read", 11),
        event("R", 15, 5, "read", 11),
        event("R", 16, 6, "read", 11),
        event("R", 17, 7, "read", 11, schema={"name": "two"}),
    )
    assert not state.differs(rows(n1="new", n2="read", n4="read", n5="read", n6="read", n7="read"))


@pytest.mark.parametrize(
    ("known", "before", "name"),
    [
        ([held(1, 4, "new")], event("u", 4, 1, "new", 10), "new"),
        ([held(1, 9, "newer")], event("u", 4, 1, "new", 10), "newer"),
        ([], event("d", 4, 1, "old", 10), None),
        ([held(1, 2)], event("u", 4, 1, "new", 10), "read"),
        ([held(1, 2)], event("d", 4, 1, "old", 10), "read"),
        ([], event("c", 4, 1, "new", 10), "read"),
    ],
    ids=["applied", "changed since", "deleted", "update refused", "delete refused", "create refused"],
)
def test_changes_before_the_cut_count_where_the_table_has_them(
    known: list[dict[str, Any]], before: Event, name: str | None
) -> None:
    state = Keyed(("id",), known)
    state.recall([event("u", 3, 1, "older", 9), before])
    assert not applied(state, event("R", 12, 1, "read", 11)).differs([] if name is None else rows(n1=name))


def test_a_change_after_the_cut_is_later_than_one_before_it() -> None:
    state = applied(Keyed(("id",), [held(1, 2)]), event("d", 20, 1, "old", 100))
    state.recall([event("u", 2, 1, "old", 30)])
    assert not applied(state, event("R", 21, 1, "old", 101)).differs([])


def test_without_a_key_every_row_counts() -> None:
    state = applied(Keyless([]), event("c", 1, 1, "new", 10), event("R", 2, 1, "new", 11))
    assert not state.differs(rows(n1="new") * 2)
