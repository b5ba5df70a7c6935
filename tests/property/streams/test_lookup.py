"""A lookup against a plain dictionary, through inserts, updates, deletes, truncations and Debezium's repeats."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

import streams.lookup
from streams.lookup import Lookup, LookupTable
from tests.unit.streams.support import changes

SHAPE = pa.schema([("id", pa.int64()), ("site", pa.string()), ("note", pa.string())])

operations = st.lists(
    st.tuples(st.sampled_from("ccuuudt"), st.integers(0, 12), st.text(max_size=3)), min_size=1, max_size=120
)


@given(operations, st.lists(st.integers(1, 30), max_size=8), st.integers(0, 30))
@settings(max_examples=150, deadline=None)
def test_rows_are_those_of_a_dictionary(done: list[tuple[str, int, str]], cuts: list[int], repeat: int) -> None:
    was = streams.lookup.FEWEST_TO_COMPACT
    streams.lookup.FEWEST_TO_COMPACT = 4
    try:
        table = LookupTable(Lookup("t", "p.public.t", "id", ("site",)))
        rows: dict[int, dict[str, Any]] = {}
        events = []
        for lsn, (op, key, text) in enumerate(done, 1):
            after = None if op in "dt" else {"id": key, "site": text, "note": "x"}
            before = None if op == "t" else rows.get(key, {"id": key, "site": None, "note": None})
            if op == "t":
                rows.clear()
            elif after is None:
                rows.pop(key, None)
            else:
                rows[key] = after
            events.append((op, before, after, lsn))
        # Connect dies and says the last changes again.
        events += events[max(0, len(events) - repeat) :]
        at = 0
        for size in [*cuts, len(events)]:
            if part := events[at : at + size]:
                table.apply(0, changes(part, SHAPE, "public.t"))
            at += size
        asked = [*range(13), None, 99]
        keys = pa.array(asked, pa.int64())
        expected = [rows[key]["site"] if key in rows else None for key in asked]
        assert table.take(keys).column("site").to_pylist() == expected
        assert table.known(keys).to_pylist() == [key in rows for key in asked]
        assert len(table) == len(rows)
    finally:
        streams.lookup.FEWEST_TO_COMPACT = was


def test_numbers_are_found_by_value_and_other_kinds_not_at_all() -> None:
    table = LookupTable(Lookup("t", "p.public.t", "id", ("site",)))
    table.apply(0, changes([("c", None, {"id": 7, "site": "s", "note": "n"}, 1)], SHAPE, "public.t"))
    for keys, found in [
        (pa.array([7, 8], pa.int32()), [True, False]),
        (pa.array(["7", "8"]), [False, False]),
        (pa.nulls(2), [False, False]),
        (pa.array([7.0, 8.0]), [False, False]),
    ]:
        assert table.known(keys).to_pylist() == found
    shape = pa.schema([("id", pa.decimal128(10, 2)), *list(SHAPE)[1:]])
    exact = LookupTable(Lookup("t", "p.public.t", "id", ("site",)))
    exact.apply(0, changes([("c", None, {"id": Decimal("7.00"), "site": "s", "note": "n"}, 1)], shape, "public.t"))
    assert exact.known(pa.array([7, 8], pa.int64())).to_pylist() == [True, False]
    assert exact.known(pa.array([Decimal("7.00")], pa.decimal128(38, 2))).to_pylist() == [True]


def test_the_same_keys_are_found_anew_once_a_row_has_come_or_gone() -> None:
    table = LookupTable(Lookup("t", "p.public.t", "id", ("site",)))
    keys = pa.array([7, 8, 9], pa.int64())
    row = {"id": 7, "site": "s", "note": "n"}
    assert table.known(keys).to_pylist() == [False, False, False]
    table.apply(0, changes([("c", None, row, 1)], SHAPE, "public.t"))
    assert table.known(keys).to_pylist() == [True, False, False]
    assert table.known(keys.slice(1)).to_pylist() == [False, False]
    table.apply(0, changes([("d", row, None, 2)], SHAPE, "public.t"))
    assert table.known(keys).to_pylist() == [False, False, False]


def test_an_empty_lookup_knows_nothing() -> None:
    table = LookupTable(Lookup("t", "p.public.t", "id", ("site", "note")))
    assert table.take(pa.array(["a", None])).to_pydict() == {"site": [None, None], "note": [None, None]}
