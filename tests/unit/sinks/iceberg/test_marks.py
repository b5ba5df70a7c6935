"""Repeats are dropped, and changes of another log are not taken for repeats."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyiceberg.catalog import Catalog

from schemas.envelope import Position
from sinks.iceberg.current import CurrentTable
from sinks.iceberg.marks import LOG_RULE, Mark
from sinks.iceberg.places import Places
from tests.unit.sinks.iceberg.support import SOURCE, TOPIC, change, envelope_schema, land, rows_of, slice_of, source

TIMED = envelope_schema()
TIMED = TIMED.set(2, pa.field("source", pa.struct([*SOURCE, ("ts_ms", pa.int64())])))

# Times are those of statements: they do not grow with the places of their transactions.
CHANGES = st.lists(st.integers(0, 50), min_size=1, max_size=30)


def judged(mark: Mark, places: list[int], times: list[int]) -> tuple[list[bool], list[bool], Mark]:
    high = np.array(places, np.int64)
    fresh, other, after = mark.judge(Places(high, np.zeros_like(high)), np.array(times, np.int64))
    return fresh.tolist(), other.tolist(), after


@given(CHANGES, st.data())
def test_a_repeat_never_looks_like_another_log(times: list[int], data: st.DataObject) -> None:
    """Connect is killed again and again and goes back by any number of changes, in batches of any size."""
    log = [(place, time) for place, time in enumerate(times, 1)]
    sent, at = [], 0
    for back in data.draw(st.lists(st.integers(0, 30), max_size=4)):
        ahead = data.draw(st.integers(at, len(log)))
        sent += log[at:ahead]
        at = max(0, ahead - back)
    sent += log[at:]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=4)))
    mark, applied = Mark(), []
    for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        part = sent[start:end]
        fresh, other, mark = judged(mark, [place for place, _ in part], [time for _, time in part])
        assert not any(other)
        applied += [change for change, new in zip(part, fresh, strict=True) if new]
    assert applied == log
    assert Mark.stored(mark.properties("t", 3), "t", 3) == mark == Mark(Position(len(log), 0), max(times))


@pytest.mark.parametrize("split", [0, 2])
def test_what_is_newer_and_yet_below_is_of_another_log(split: int) -> None:
    places, times = [100, 101, 1, 2, 101, 102], [1000, 900, 1001, 1000, 900, 2000]
    mark, other, fresh = Mark(), [], []
    for part in (slice(0, split), slice(split, None)):
        new, strange, mark = judged(mark, places[part], times[part])
        fresh += new
        other += strange
    assert fresh == [True, True, False, False, False, True]
    assert other == [False, False, True, False, False, False], "in the same second it cannot be told"
    assert mark == Mark(Position(102, 0), 2000)


def test_a_table_refuses_what_another_log_would_lose(catalog: Catalog) -> None:
    def timed(op: str, row: dict[str, object], lsn: int, ms: int | None) -> dict[str, object]:
        found = change(op, row, lsn)
        found["source"]["ts_ms"] = ms
        return found

    def opened() -> CurrentTable:
        table = CurrentTable(catalog, "silver.things", TOPIC)
        table.open(source())
        return table

    old, new, untimed = (
        {"id": 1, "name": "old", "n": 1},
        {"id": 1, "name": "new", "n": 1},
        {"id": 2, "name": "", "n": 1},
    )
    land(opened(), slice_of([timed("c", old, 500, 1000), timed("c", untimed, 501, None)], schema=TIMED))
    table = opened()
    repeat = [timed("c", old, 500, 1000), timed("c", untimed, 501, None)]
    prepared = land(table, slice_of([*repeat, timed("u", new, 7, 1001)], 2, schema=TIMED))
    assert [(r.stage, r.rule, r.rows.tolist()) for r in prepared.rejects] == [("current", LOG_RULE, [2])]
    assert prepared.dropped == 2
    land(table, slice_of([timed("r", new, 7, 1002)], 5, schema=TIMED))
    assert rows_of(table, "id", "name") == [(1, "new"), (2, "")], "what a snapshot reads is always taken"
