"""What ends versions of a history without being a change of their row: truncations and baselines."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from headrace.errors import UnavailableError
from sinks.iceberg.current import CurrentTable
from sinks.iceberg.history import HistoryTable
from tests.unit.sinks.iceberg.history_support import at, event, landed, opened, seen, timed
from tests.unit.sinks.iceberg.support import (
    TOPIC,
    catalog_in,
    change,
    land,
    read_again,
    rows_of,
    slice_of,
    source,
    thing,
)


def test_a_truncate_ends_all_versions_once(history):
    landed(history, *(event("c", n, "a", 10, n) for n in range(1, 5)), event("d", 4, "a", 12))
    landed(
        history,
        event("u", 1, "b", 20),
        event("c", 5, "new", 21),
        event("t", 0, None, 30),
        event("c", 2, "again", 40),
        event("t", 0, None, 50),
        event("c", 3, "last", 60),
    )
    assert seen(history) == [
        (1, "a", 10, 20, "c"),
        (1, "b", 20, 30, "u"),
        (2, "a", 10, 30, "c"),
        (2, "again", 40, 50, "c"),
        (3, "a", 10, 30, "c"),
        (3, "last", 60, None, "c"),
        (4, "a", 10, 12, "c"),
        (5, "new", 21, 30, "c"),
    ]
    assert len(history.index) == 1
    landed(history, event("u", 3, "more", 70), event("u", 2, "back", 71))
    assert [row for row in seen(history) if row[3] is None] == [(2, "back", 71, None, "u"), (3, "more", 70, None, "u")]


FIRST = [event("c", 1, "a", 10), event("u", 1, "b", 20), event("t", 0, None, 30), event("c", 1, "c", 40)]
SECOND = [event("c", 2, "x", 11), event("u", 2, "y", 25), event("d", 4, "z", 29), event("c", 2, "z", 45)]
SECOND.insert(0, event("c", 4, "z", 9))
TRUNCATED = [
    (1, "a", 10, 20, "c"),
    (1, "b", 20, 30, "u"),
    (1, "c", 40, None, "c"),
    (2, "x", 11, 25, "c"),
    (2, "y", 25, 30, "u"),
    (2, "z", 45, None, "c"),
    (4, "z", 9, 29, "c"),
]


@pytest.mark.parametrize("order", ["0000 11111", "11111 0000", "11 000 1 00 11", "11100 00 11", "000 1 0 1111"])
def test_a_truncate_ends_what_is_older_in_all_partitions_whatever_is_read_first(tmp_path, order):
    """Each word is a commit, with that many records of partition 0 and 1; with a restart after each."""
    places = {0: 0, 1: 0}
    for word in order.split():
        table = opened(catalog_in(tmp_path), 2)
        slices = []
        for partition, log in enumerate((FIRST, SECOND)):
            start, n = places[partition], word.count(str(partition))
            if values := log[start : start + n]:
                slices.append(slice_of(values, start, partition=partition, schema=timed()))
                places[partition] += len(values)
        land(table, *slices)
    assert seen(opened(catalog_in(tmp_path), 2)) == TRUNCATED


@pytest.mark.parametrize("rows", [0, 1])
def test_a_truncate_ends_rows_also_after_a_column_got_a_type_that_is_refused(tmp_path, rows):
    """It has no row that could be. What is refused beside it goes to the quarantine, and it does not."""
    narrow, text = (timed(pa.struct([("id", pa.int64()), ("x", kind)])) for kind in (pa.int32(), pa.string()))

    def made(op: str, row: dict[str, Any] | None, time: int) -> dict[str, Any]:
        plain = change(op, row, time)
        return plain | {"source": plain["source"] | {"ts_us": time * 1_000_000}}

    catalog = catalog_in(tmp_path)
    current = CurrentTable(catalog, "silver.things", TOPIC)
    current.open(source())
    for table in (opened(catalog), current):
        land(table, slice_of([made("c", {"id": 1, "x": 1}, 10)], schema=narrow))
        refused = [made("c", {"id": 2, "x": "text"}, 15)][:rows]
        more = slice_of([*refused, made("t", None, 20)], 1, schema=text, key_fields=("id",) if rows else ())
        rejects = land(table, more).rejects
        expected = [("schema: type", [0])] if rows and table is not current else []
        assert [(r.rule, r.rows.tolist()) for r in rejects] == expected
        if table is current:
            assert rows_of(table, "id") == []
        else:
            assert rows_of(table, "id", "valid_to") == [(1, at(20))]


def test_of_two_truncates_the_one_that_is_read_later_may_be_the_earlier_one(tmp_path):
    table = opened(catalog_in(tmp_path), 3)
    land(table, slice_of([event("c", 1, "a", 10), event("c", 1, "b", 50)], schema=timed()))
    land(table, slice_of([event("t", 0, None, 30)], partition=1, schema=timed()))
    land(table, slice_of([event("t", 0, None, 20)], partition=2, schema=timed()))
    land(table, slice_of([event("c", 2, "x", 25)], 1, partition=2, schema=timed()))
    assert seen(table) == [(1, "a", 10, 20, "c"), (1, "b", 50, None, "c"), (2, "x", 25, 30, "c")]


def test_a_change_from_before_two_truncates_ends_what_the_first_of_them_has_ended(tmp_path):
    table = opened(catalog_in(tmp_path), 2)
    landed(table, event("c", 1, "a", 10))
    land(table, slice_of([event("t", 0, None, 20), event("t", 0, None, 40)], partition=1, schema=timed()))
    landed(table, event("u", 1, "b", 15))
    assert seen(table) == [(1, "a", 10, 15, "c"), (1, "b", 15, 20, "u")]


def test_a_truncate_within_a_transaction_ends_what_was_before_it_there(history):
    events = [event("c", 1, "a", 7), event("t", 0, None, 7), event("c", 2, "b", 7)]
    for order, made in enumerate(events):
        made["transaction"]["total_order"] = order
    landed(history, *events)
    assert seen(history) == [(1, "a", 7, 7, "c"), (2, "b", 7, None, "c")]


def test_a_baseline_beside_a_truncate_leaves_what_has_ended(tmp_path):
    table = opened(catalog_in(tmp_path), 2)
    landed(table, event("c", 1, "a", 10), event("u", 1, "b", 50))
    truncate = slice_of([event("t", 0, None, 40)], partition=1, schema=timed())
    land(table, slice_of([None], 2, baseline=2, schema=timed()), truncate)
    assert seen(table) == [(1, "a", 10, 40, "c"), (1, "b", 50, BASELINE, "u")]


def test_nothing_ends_a_version_before_it_began(tmp_path):
    """The clock was set back after the change: the truncate and the baseline behind it have earlier times."""
    table = opened(catalog_in(tmp_path), 3)
    landed(table, event("c", 1, "a", 50, 10))
    land(table, slice_of([event("c", 2, "b", BASELINE + 5, 60)], partition=2, schema=timed()))
    land(table, slice_of([event("t", 0, None, 40, 30)], partition=1, schema=timed()))
    land(table, slice_of([None], 1, partition=2, baseline=1, schema=timed()))
    assert seen(table) == [(1, "a", 50, 50, "c"), (2, "b", BASELINE + 5, BASELINE + 5, "c")]


def test_so_it_is_without_a_key(history):
    events = [event("c", 1, "a", 50, 10), event("t", 0, None, 40, 30)]
    land(history, slice_of(events, schema=timed(), key_fields=()))
    assert seen(history) == [(1, "a", 50, 50, "c")]


def test_rows_without_a_place_are_of_before_a_truncate_that_comes_behind_them(history):
    def read(number: int, time: int) -> dict[str, Any]:
        made = read_again(thing(number), time)
        return made | {"source": made["source"] | {"ts_us": time * 1_000_000}}

    landed(history, read(1, 10), read(2, 10))
    landed(history, event("t", 0, None, 20), event("r", 1, "x", 30))
    landed(history, read(3, 40))
    assert seen(history) == [
        (1, "x", 10, 20, "r"),
        (1, "x", 30, None, "r"),
        (2, "x", 10, 20, "r"),
        (3, "x", 40, None, "r"),
    ]


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_between_the_commit_of_a_truncate_and_what_it_ends_loses_nothing(tmp_path, monkeypatch, after):
    catalog = catalog_in(tmp_path)
    table = opened(catalog, 2)
    land(table, slice_of([event("c", 1, "a", 10), event("c", 3, "b", 40)], schema=timed()))
    values = slice_of([event("t", 0, None, 30)], partition=1, schema=timed())
    prepared = table.prepare([values])

    def lost() -> None:
        raise UnavailableError("the process is gone", where="test")

    monkeypatch.setattr(table, "_finish_remaking", lost)
    with pytest.raises(UnavailableError):
        table.commit(prepared)
    monkeypatch.undo()
    assert [row[3] for row in seen(table)] == [None, None]
    if after:
        table = opened(catalog, 2)
    else:
        table.commit(prepared)
    assert [row[3] for row in seen(table)] == [30, None]
    assert table.offsets == {0: 2, 1: 1}
    landed(table, event("u", 3, "c", 50))
    assert [row[3] for row in seen(table)] == [30, 50, None]


def test_a_truncate_that_does_not_say_its_place_is_refused(history):
    lost = event("t", 0, None, 20)
    lost["transaction"] = None
    prepared = landed(history, event("c", 1, "a", 10))
    prepared = land(history, slice_of([lost], 1, schema=timed()))
    assert [(r.rows.tolist(), r.rule) for r in prepared.rejects] == [([0], "position")]
    assert [row[3] for row in seen(history)] == [None]


BASELINE = 1_700_000_000


def test_a_baseline_ends_what_its_snapshot_has_not_read_again(tmp_path):
    """Rows that the snapshot confirms stay the versions that they are, also when they arrive with the baseline."""
    catalog = catalog_in(tmp_path)
    table = opened(catalog, 2)
    first = [event("c", n, "a", 10 + n) for n in range(4)]
    land(table, slice_of(first, schema=timed()), slice_of([event("c", 9, "z", 10)], partition=1, schema=timed()))
    again = [event("r", 0, "a", 100), event("r", 1, "b", 100), event("c", 5, "new", 101)]
    land(table, slice_of(again, 4, schema=timed()))
    expected = [
        (0, "a", 10, None, "c"),
        (1, "a", 11, 100, "c"),
        (1, "b", 100, None, "r"),
        (2, "a", 12, BASELINE, "c"),
        (3, "a", 13, BASELINE, "c"),
        (5, "new", 101, None, "c"),
        (9, "z", 10, None, "c"),
    ]
    land(table, slice_of([None], 7, baseline=4, schema=timed()))
    assert seen(table) == expected
    land(table, slice_of([None, None], 8, baseline=4, schema=timed()))
    assert seen(opened(catalog, 2)) == expected
    other = HistoryTable(catalog, "silver.at_once", TOPIC, of="silver.things")
    other.open(source(2))
    slices = [slice_of([*first, *again, None], baseline=4, schema=timed())]
    land(other, *slices, slice_of([event("c", 9, "z", 10)], partition=1, schema=timed()))
    assert seen(other) == expected
