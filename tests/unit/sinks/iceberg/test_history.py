"""Histories on a catalog in SQLite: what a version is, and what is refused."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from schemas.envelope import UNAVAILABLE
from sinks.iceberg.history_rows import OWN
from sinks.iceberg.slices import COORDINATES, KEY
from tests.unit.sinks.iceberg.history_support import event, landed, opened, seen, timed
from tests.unit.sinks.iceberg.support import (
    ROW,
    catalog_in,
    land,
    rows_of,
    slice_of,
)


def test_one_record_with_another_key_ends_nothing(history):
    landed(history, *(event("c", n, "a", n) for n in (1, 2, 3)))
    stray = slice_of([event("u", 1, "a", 50)], 3, schema=timed(), key_fields=("name",), key_named=True)
    assert [reject.rule for reject in land(history, stray).rejects] == ["key: another"]
    assert seen(history) == [(n, "a", n, None, "c") for n in (1, 2, 3)]


def test_changes_end_the_version_before_them_in_and_across_batches(history):
    landed(history, event("c", 1, "a", 10), event("u", 1, "b", 20), event("c", 2, "x", 21))
    landed(history, event("u", 1, "c", 30), event("d", 2, "x", 31), event("u", 1, "d", 40), event("c", 2, "y", 50))
    assert seen(history) == [
        (1, "a", 10, 20, "c"),
        (1, "b", 20, 30, "u"),
        (1, "c", 30, 40, "u"),
        (1, "d", 40, None, "u"),
        (2, "x", 21, 31, "c"),
        (2, "y", 50, None, "c"),
    ]
    assert len(history.index) == 2


def test_changes_of_one_commit_keep_their_order_as_versions_without_length(history):
    landed(history, event("c", 1, "a", 10, 1), event("u", 1, "b", 10, 2), event("u", 1, "c", 10, 3))
    landed(history, event("u", 1, "d", 10, 4))
    assert seen(history) == [
        (1, "a", 10, 10, "c"),
        (1, "b", 10, 10, "u"),
        (1, "c", 10, 10, "u"),
        (1, "d", 10, None, "u"),
    ]


def test_a_clock_that_was_set_back_makes_no_version_end_before_it_began(history):
    landed(history, event("c", 1, "a", 50, 1), event("u", 1, "b", 40, 2))
    landed(history, event("u", 1, "c", 30, 3), event("u", 1, "d", 60, 4))
    assert [row[2:4] for row in seen(history)] == [(50, 50), (50, 50), (50, 60), (60, None)]


def test_rows_of_a_snapshot_are_versions_only_where_they_say_something_new(history):
    landed(history, event("r", 1, "a", 10), event("r", 2, None, 10), event("r", 3, "x", 10))
    landed(history, event("r", 1, "a", 20), event("r", 2, None, 20), event("r", 3, "y", 20), event("r", 3, "y", 21))
    assert seen(history) == [
        (1, "a", 10, None, "r"),
        (2, None, 10, None, "r"),
        (3, "x", 10, 20, "r"),
        (3, "y", 20, None, "r"),
    ]


def test_a_number_that_is_none_says_nothing_new_when_it_is_read_again(history):
    schema = timed(pa.struct([*ROW, ("score", pa.float64())]))
    nan = float("nan")
    landed(history, event("r", 1, "a", 10, score=nan), event("r", 2, "a", 10, score=nan), schema=schema)
    landed(history, event("r", 1, "a", 20, score=nan), event("r", 2, "a", 20, score=None), schema=schema)
    assert seen(history) == [(1, "a", 10, None, "r"), (2, "a", 10, 20, "r"), (2, "a", 20, None, "r")]


def test_repeats_are_dropped_and_a_restart_goes_on(tmp_path, history):
    changes = [event("c", 1, "a", 10), event("u", 1, "b", 20), event("d", 1, "b", 30), event("c", 1, "c", 40)]
    landed(history, *changes)
    again = opened(catalog_in(tmp_path))
    assert landed(again, *changes[1:], event("u", 1, "d", 50)).dropped == 3
    assert [row[1:4] for row in seen(again)] == [("a", 10, 20), ("b", 20, 30), ("c", 40, 50), ("d", 50, None)]


def test_values_that_were_not_sent_are_those_of_the_version_before(history):
    landed(history, event("c", 1, "long", 10), event("c", 2, "big", 11))
    prepared = landed(
        history,
        event("u", 1, UNAVAILABLE, 20, n=1),
        event("u", 1, UNAVAILABLE, 21, n=2),
        event("u", 2, "new", 22),
        event("u", 2, UNAVAILABLE, 23, n=3),
        event("u", 9, UNAVAILABLE, 24),
    )
    assert [(r[0], r[1]) for r in seen(history)] == [(1, "long")] * 3 + [(2, "big"), (2, "new"), (2, "new")]
    assert [(r.rows.tolist(), r.stage, r.rule) for r in prepared.rejects] == [([4], "history", "value")]


def test_values_that_were_not_sent_follow_a_key_that_changes(history):
    """From the version of the key before, or from the change before in the batch; again and again."""

    def moved(old: int, new: int, lsn: int) -> list[dict[str, Any]]:
        halves = [event("d", old, None, lsn), event("c", new, UNAVAILABLE, lsn)]
        halves[1]["transaction"]["total_order"] = 2
        return halves

    landed(history, event("c", 1, "long", 10), event("c", 5, "big", 11))
    prepared = landed(
        history,
        *moved(1, 2, 20),
        *moved(2, 3, 21),
        event("u", 5, "new", 22),
        *moved(5, 6, 23),
        event("u", 6, UNAVAILABLE, 24),
        *moved(9, 8, 25),
    )
    found = [row[:4] for row in seen(history)]
    assert found[:3] == [(1, "long", 10, 20), (2, "long", 20, 21), (3, "long", 21, None)]
    assert found[3:] == [(5, "big", 11, 22), (5, "new", 22, 23), (6, "new", 23, 24), (6, "new", 24, None)]
    assert [(r.rows.tolist(), r.rule) for r in prepared.rejects] == [([9], "value")]


def test_a_value_that_was_not_sent_and_is_not_in_the_version_before_refuses_the_change(history):
    landed(history, event("c", 1, None, 10))
    wide = timed(pa.struct([*ROW, ("note", pa.string())]))
    later = [event("u", 1, None, 20, note=UNAVAILABLE), event("u", 1, UNAVAILABLE, 21, note="new")]
    prepared = landed(history, *later, event("u", 1, None, 22, note="last"), schema=wide)
    assert [(r.rows.tolist(), r.rule) for r in prepared.rejects] == [([0, 1], "value")]
    assert rows_of(history, "id", "note") == [(1, "last"), (1, None)]


def test_new_columns_are_null_in_the_versions_before_them(history):
    landed(history, event("c", 1, "a", 10))
    wide = pa.struct([*ROW, ("extra", pa.float64())])
    landed(history, event("u", 1, "b", 20, extra=1.5), schema=timed(wide))
    assert rows_of(history, "name", "extra") == [("a", None), ("b", 1.5)]


def test_changes_without_a_time_and_rows_with_its_columns_are_refused(history):
    late = event("c", 1, "a", 10)
    late["source"]["ts_us"] = None
    prepared = landed(history, late, event("c", 2, "b", 11))
    assert [(r.rows.tolist(), r.rule) for r in prepared.rejects] == [([0], "time")]
    clashing = pa.struct([*ROW, ("valid_to", pa.string())])
    prepared = landed(history, event("u", 2, "c", 20, valid_to="soon"), schema=timed(clashing))
    assert [(r.rows.tolist(), r.rule) for r in prepared.rejects] == [([0], "columns")]
    assert seen(history) == [(2, "b", 11, None, "c")]


def test_without_a_key_every_row_is_a_version_until_a_truncate(history):
    def keyless(*events):
        return land(history, slice_of(events, history.offsets.get(0, 0), schema=timed(), key_fields=()))

    keyless(event("c", 1, "a", 10), event("c", 1, "a", 11))
    keyless(event("c", 2, "b", 12), event("t", 0, None, 20), event("c", 3, "c", 30))
    assert [row[:4] for row in seen(history)] == [
        (1, "a", 10, 20),
        (1, "a", 11, 20),
        (2, "b", 12, 20),
        (3, "c", 30, None),
    ]


def test_no_column_of_ours_has_a_name_that_iceberg_has_reserved():
    """Spark refuses to read a table with one."""
    reserved = {"_file", "_pos", "_deleted", "_spec_id", "_partition", "_change_type", "_change_ordinal"}
    reserved |= {"_commit_snapshot_id", "_row_id", "_last_updated_sequence_number"}
    assert reserved.isdisjoint({*OWN, *COORDINATES.names, KEY.name})
