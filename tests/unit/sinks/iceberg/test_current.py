"""The current state of a captured table, change by change, on a catalog in SQLite and files on disk."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from schemas.envelope import UNAVAILABLE
from sinks.iceberg.append import AppendTable
from sinks.iceberg.current import CurrentTable
from sinks.iceberg.history import HistoryTable
from tests.unit.sinks.iceberg.support import (
    ROW,
    SOURCE,
    TOPIC,
    change,
    duckdb_rows,
    envelope_schema,
    land,
    of_another_table,
    opened,
    read_again,
    rows_of,
    slice_of,
    thing,
)


def test_current_state_is_the_last_change_of_each_key(current, tmp_path):
    land(current, slice_of([change("r", thing(i), 0) for i in range(5)]))
    land(
        current,
        slice_of(
            [
                change("u", thing(1, "new", 7), 10),
                change("d", thing(2), 11),
                None,
                change("c", thing(9), 12),
                change("d", thing(9), 13),
                change("c", thing(2, "again"), 14),
                change("u", thing(2, "again", 5), 15),
            ],
            5,
        ),
    )
    expected = [(0, "x", 0), (1, "new", 7), (2, "again", 5), (3, "x", 0), (4, "x", 0)]
    assert rows_of(current, "id", "name", "n") == expected
    assert duckdb_rows(tmp_path, current, "id", "name", "n") == expected
    assert current.properties[f"headrace.position.{TOPIC}.0"] == "15:1"
    assert current.offsets == {0: 12}
    assert len(current.index) == 5


def test_repeats_of_connect_are_dropped_in_and_across_batches(current):
    history = [
        change("c", thing(1, str(i)), 10 + i) if not i else change("u", thing(1, str(i)), 10 + i) for i in range(4)
    ]
    land(current, slice_of([*history, history[1]]))
    prepared = land(current, slice_of(history[:2], 5))
    assert rows_of(current, "id", "name") == [(1, "3")]
    assert prepared.dropped == 2
    assert current.offsets == {0: 7}


def test_a_truncate_removes_everything_before_it(current):
    land(current, slice_of([change("c", thing(1), 1), change("c", thing(2), 2)]))
    land(current, slice_of([change("c", thing(3), 3), change("t", None, 4), change("c", thing(1, "after"), 5)], 2))
    assert rows_of(current, "id", "name") == [(1, "after")]
    assert len(current.index) == 1
    land(current, slice_of([change("u", thing(1, "later"), 6)], 5))
    assert rows_of(current, "id", "name") == [(1, "later")]


def test_a_truncate_in_one_partition_takes_what_was_before_it_in_all(catalog):
    """Partition 0 is read ahead of the truncate, partition 1 behind it."""
    table = opened(CurrentTable(catalog, "silver.things", TOPIC), 3)
    land(table, slice_of([change("r", thing(0), 3), change("c", thing(2), 5), change("c", thing(4, "later"), 20)]))
    land(table, slice_of([change("t", None, 10)], partition=2, key_fields=()))
    assert rows_of(table, "id", "name") == [(4, "later")]
    land(table, slice_of([change("c", thing(1), 6), change("u", thing(3), 9), change("c", thing(3), 12)], partition=1))
    assert rows_of(table, "id") == [(3,), (4,)]
    again = opened(CurrentTable(catalog, "silver.things", TOPIC), 3)
    land(again, slice_of([change("t", None, 10)], 1, partition=2, key_fields=()))
    land(again, slice_of([change("d", thing(4), 21), change("c", thing(5), 8)], 3))
    assert rows_of(again, "id") == [(3,)]


@pytest.mark.parametrize("name", ["_order", "_position", "_offset", "_timestamp", "_kafka_partition"])
@pytest.mark.parametrize("of", [None, "silver.other"], ids=["current", "history"])
def test_a_row_with_a_column_that_the_table_adds_to_it_is_refused(catalog, name, of):
    """A truncation has no row: it is done."""
    source = pa.struct([*SOURCE, ("ts_us", pa.int64())])

    def made(events, start, *more):
        schema = envelope_schema(pa.struct([*ROW, *more]))
        schema = pa.schema([f.with_type(source) if f.name == "source" else f for f in schema])
        return slice_of(
            [e | {"source": e["source"] | {"ts_us": e["source"]["lsn"]}} for e in events], start, schema=schema
        )

    table = (
        HistoryTable(catalog, "silver.things", TOPIC, of=of) if of else CurrentTable(catalog, "silver.things", TOPIC)
    )
    opened(table)
    land(table, made([change("c", thing(1), 1)], 0))
    own = [change("u", thing(1) | {name: 7}, 2), change("t", None, 3), change("c", thing(2) | {name: 7}, 4)]
    (reject,) = land(table, made(own, 1, (name, pa.int32()))).rejects
    assert (reject.rule, reject.rows.tolist()) == ("columns", [0, 2])
    assert f"column.exclude.list=public.things.{name}" in reject.reasons[0]
    assert not land(table, made([change("c", thing(3), 5)], 4)).rejects
    rows = rows_of(table, "id", "_offset", "_position", *(["valid_to"] if of else []))
    assert [row[:3] for row in rows if not of or row[3] is None] == [(3, 4, 5)]


@pytest.mark.parametrize("name", ["_offset", "_timestamp", "_kafka_partition", "_key"])
def test_a_record_with_a_column_that_bronze_adds_to_it_is_refused(catalog, name):
    table = opened(AppendTable(catalog, "bronze.things", TOPIC))
    land(table, slice_of([{"id": 1}], schema=pa.schema([("id", pa.int64())])))
    own = pa.schema([("id", pa.int64()), (name, pa.string())])
    (reject,) = land(table, slice_of([{"id": 2, name: "x"}, None, {"id": 3, name: "x"}], 1, schema=own)).rejects
    assert reject.rows.tolist() == [0, 1, 2]
    assert name in reject.reasons[0]
    assert rows_of(table, "id", "_offset") == [(1, 0)]


def test_a_truncate_takes_what_was_read_again_before_it_and_no_more(catalog):
    """Rows of an incremental snapshot have no place but behind the commit that was streamed last."""
    table = opened(CurrentTable(catalog, "silver.things", TOPIC), 2)
    land(table, slice_of([read_again(thing(1, "before"), 1, lsn=10), read_again(thing(2, "after"), 2, lsn=20)]))
    land(table, slice_of([change("t", None, 15)], partition=1, key_fields=()))
    assert rows_of(table, "id", "name") == [(2, "after")]
    land(table, slice_of([read_again(thing(3, "before"), 3, lsn=15), read_again(thing(4, "after"), 4, lsn=16)], 2))
    assert rows_of(table, "id", "name") == [(2, "after"), (4, "after")]


def test_a_row_without_a_place_that_comes_behind_a_truncate_stays(catalog):
    """Nothing says that it was there before."""
    table = opened(CurrentTable(catalog, "silver.things", TOPIC))
    land(table, slice_of([change("t", None, 15), read_again(thing(1), 1)]))
    land(table, slice_of([read_again(thing(2), 2)], 2))
    assert rows_of(table, "id", "_position") == [(1, None), (2, None)]


def test_a_truncate_within_a_transaction_keeps_the_rows_after_it(catalog):
    table = opened(CurrentTable(catalog, "silver.things", TOPIC), 2)
    land(table, slice_of([change("c", thing(0), 7, 1), change("c", thing(2), 7, 3)]))
    land(table, slice_of([change("t", None, 7, 2)], partition=1, key_fields=()))
    assert rows_of(table, "id") == [(2,)]


def test_a_truncate_of_a_table_without_a_key_removes_everything_before_it(catalog):
    table = opened(CurrentTable(catalog, "silver.history", TOPIC), 2)
    land(table, slice_of([change("c", thing(1), 1), change("c", thing(1), 2)], key_fields=()))
    truncated = slice_of([change("c", thing(2), 3), change("t", None, 4), change("c", thing(3), 6)], 2, key_fields=())
    land(table, truncated, slice_of([change("c", thing(n), n) for n in (0, 5)], partition=1, key_fields=()))
    assert rows_of(table, "id") == [(3,), (5,)]


def test_a_truncate_that_is_read_after_a_later_one_brings_nothing_back(catalog):
    table = opened(CurrentTable(catalog, "silver.things", TOPIC), 3)
    land(table, slice_of([change("t", None, 30)], key_fields=()))
    land(table, slice_of([change("t", None, 20)], partition=1, key_fields=()))
    land(table, slice_of([change("c", thing(1), 25), change("c", thing(2), 35)], partition=2))
    assert rows_of(table, "id") == [(2,)]


def test_a_truncate_of_another_table_takes_nothing_from_beside_it(current):
    land(
        current, slice_of([change("c", thing(1), 1), of_another_table(change("t", None, 2)), change("c", thing(2), 3)])
    )
    assert rows_of(current, "id") == [(1,), (2,)]


def test_a_second_full_snapshot_of_a_table_without_a_key_replaces_the_first(catalog):
    table = opened(CurrentTable(catalog, "silver.history", TOPIC))
    land(table, slice_of([change("r", thing(n), 5) for n in (1, 1, 2)], key_fields=()))
    land(table, slice_of([change("c", thing(3), 7)], 3, key_fields=()))
    land(table, slice_of([change("r", thing(n), 9) for n in (1, 1)], 4, key_fields=()))
    land(table, slice_of([change("r", thing(4), 9), change("c", thing(5), 11)], 6, key_fields=()))
    assert rows_of(table, "id") == [(1,), (1,), (4,), (5,)]


def test_of_two_full_snapshots_that_come_together_the_second_replaces_the_first(catalog):
    table = opened(CurrentTable(catalog, "silver.history", TOPIC))
    land(table, slice_of([change("r", thing(n), at) for n, at in ((1, 5), (2, 5), (2, 9))], key_fields=()))
    assert rows_of(table, "id", "_position") == [(2, 9)]


def test_rows_that_are_read_again_replace_none_of_a_table_without_a_key(catalog):
    """An incremental snapshot need not read all of them."""
    table = opened(CurrentTable(catalog, "silver.history", TOPIC))
    land(table, slice_of([change("c", thing(1), 5)], key_fields=()))
    land(table, slice_of([read_again(thing(2), 1, lsn=9)], 1, key_fields=()))
    assert rows_of(table, "id") == [(1,), (2,)]


def test_updates_of_a_table_without_a_key_need_an_order(catalog):
    table = opened(CurrentTable(catalog, "silver.history", TOPIC), 2)
    gone = change("d", thing(1), 2)
    prepared = land(table, slice_of([change("c", thing(1), 1), gone], key_fields=()))
    assert [(r.rule, r.rows.tolist()) for r in prepared.rejects] == [("key", [1])]
    assert "one partition" in prepared.rejects[0].reasons[0]
    alone = opened(CurrentTable(catalog, "silver.alone", TOPIC))
    prepared = land(alone, slice_of([change("d", thing(1), 2), change("c", thing(1), 3)], key_fields=()))
    assert [(r.rule, r.rows.tolist()) for r in prepared.rejects] == [("before", [0])]
    assert rows_of(alone, "id") == [(1,)]


def test_a_table_without_a_key_finds_rows_by_all_their_values(catalog):
    table = opened(CurrentTable(catalog, "silver.history", TOPIC))
    events = [change("r", thing(1), 0), change("c", thing(1), 1), change("u", thing(1), 2), change("d", thing(1), 3)]
    prepared = land(table, slice_of(events, key_fields=()))
    assert len(rows_of(table, "id")) == 1, "the delete took one of two equal rows"
    (refused,) = prepared.rejects
    assert (refused.stage, refused.rule, refused.rows.tolist()) == ("current", "before", [2])
    assert "ALTER TABLE public.things REPLICA IDENTITY FULL" in refused.reasons[0]
    assert land(table, slice_of([change("c", thing(1), 1)], 4, key_fields=())).dropped == 1
    again = opened(CurrentTable(catalog, "silver.history", TOPIC))
    land(again, slice_of([change("c", thing(4), 5)], 5, key_fields=()))
    assert len(rows_of(again, "id")) == 2


def test_what_cannot_be_applied_is_refused_with_its_reason(current):
    wrong = change("c", thing(1), 1)
    wrong["source"] = {**wrong["source"], "table": "others"}
    bare = change("d", None, 2)
    null = change("c", thing(1), 3)
    null["after"] = {"id": None, "name": "x", "n": 1}
    odd = change("c", thing(1), 4)
    odd["op"] = "z"
    prepared = land(current, slice_of([wrong, bare, null, odd, change("c", thing(5), 5)]))
    assert sorted((r.rule, *r.rows.tolist()) for r in prepared.rejects) == [
        ("before", 1),
        ("key", 2),
        ("op", 3),
        ("source table", 0),
    ]
    assert rows_of(current, "id") == [(5,)]
    other_key = land(current, slice_of([change("c", thing(6), 6)], 5, key_fields=()))
    assert [r.rule for r in other_key.rejects] == ["key"]
    plain = land(current, slice_of([{"a": 1}], 6, schema=pa.schema([("a", pa.int64())])))
    assert [r.rule for r in plain.rejects] == ["envelope"]


def test_a_record_of_another_table_changes_nothing_but_bronze(catalog):
    """A broken producer wrote it into this topic: neither its key nor its columns nor its TRUNCATE are this table's."""
    current = opened(CurrentTable(catalog, "silver.things", TOPIC))
    history = opened(HistoryTable(catalog, "silver.things_history", TOPIC, of="silver.things"))
    bronze = opened(AppendTable(catalog, "bronze.things", TOPIC))
    source = pa.struct([*SOURCE, ("ts_ms", pa.int64())])

    def schema(row: pa.DataType) -> pa.Schema:
        return envelope_schema(row).set(2, pa.field("source", source))

    def at(event: dict[str, Any], table: str) -> dict[str, Any]:
        return {**event, "source": {**event["source"], "table": table, "ts_ms": event["source"]["lsn"]}}

    mine = slice_of([at(change("c", thing(n), n), "things") for n in (1, 2)], schema=schema(ROW))
    other = pa.struct([("code", pa.string()), ("name", pa.int64())])
    events = [change("c", {"code": "x", "name": 7}, 9), change("t", None, 10)]
    strange = slice_of([at(e, "others") for e in events], 2, schema=schema(other), key_fields=("code",), key_named=True)
    for table in (current, history):
        land(table, mine)
        have = table.table.schema()
        (refused,) = land(table, strange).rejects
        assert (refused.rule, refused.rows.tolist()) == ("source table", [0, 1])
        assert refused.reasons[0] == "the change is not of public.things"
        assert (table.key, table.table.schema()) == (("id",), have)
        assert rows_of(table, "id") == [(1,), (2,)]
        assert table.offsets == {0: 4}
    land(bronze, mine)
    land(bronze, slice_of([at(events[1], "others")], 2, schema=schema(ROW)))
    assert rows_of(bronze, "_offset", "op") == [(0, "c"), (1, "c"), (2, "t")]


def test_an_unavailable_value_stays_what_it_was(current):
    gone = "__debezium_unavailable_value"
    land(current, slice_of([change("c", thing(1, "big"), 1), change("c", thing(2, "old"), 2)]))
    prepared = land(
        current,
        slice_of(
            [
                change("u", thing(1, gone, 5), 3),
                change("u", thing(2, "new"), 4),
                change("u", thing(2, gone, 6), 5),
                change("u", thing(3, gone, 7), 6),
            ],
            2,
        ),
    )
    assert rows_of(current, "id", "name", "n") == [(1, "big", 5), (2, "new", 6)]
    assert [(r.rule, r.rows.tolist()) for r in prepared.rejects] == [("value", [3])]


def test_an_unavailable_value_that_the_row_does_not_have_refuses_the_change(current):
    """The column was renamed, or is new to the table: nothing is there that could stay, and no null takes its place."""
    wide = envelope_schema(pa.struct([*ROW, ("note", pa.string())]))
    land(current, slice_of([change("c", thing(1, "one"), 1), change("c", thing(2, None), 2)]))
    later = [
        change("u", {**thing(1, "one", 4), "note": UNAVAILABLE}, 3),
        change("u", {**thing(2, None, 5), "note": "two"}, 4),
        change("u", {**thing(2, UNAVAILABLE, 6), "note": "new"}, 5),
        change("u", {**thing(2, UNAVAILABLE, 7), "note": UNAVAILABLE}, 6),
    ]
    prepared = land(current, slice_of(later, 2, schema=wide))
    assert sorted(int(row) for r in prepared.rejects for row in r.rows) == [0, 2, 3]
    assert {r.rule for r in prepared.rejects} == {"value"}
    assert rows_of(current, "id", "name", "n", "note") == [(1, "one", 0, None), (2, None, 5, "two")]


def test_a_large_value_follows_its_row_to_another_key(current):
    """A changed key is a delete and a create, one after the other in the transaction."""
    row, moved = {"id": 1, "name": "large", "n": 1}, {"id": 2, "name": UNAVAILABLE, "n": 2}
    land(current, slice_of([change("c", row, 1), change("c", thing(4, "other"), 2)]))
    away = [change("d", row, 3, 1), change("c", moved, 3, 2), change("u", {**moved, "n": 3}, 4)]
    prepared = land(current, slice_of([*away, change("c", thing(1, "new"), 5)], 2))
    assert not prepared.rejects
    assert rows_of(current, "id", "name", "n") == [(1, "new", 0), (2, "large", 3), (4, "other", 0)]
    unrelated = [change("d", thing(4), 6, 1), change("c", {"id": 9, "name": UNAVAILABLE, "n": 0}, 6, 3)]
    assert [r.rule for r in land(current, slice_of(unrelated, 6)).rejects] == ["value"]


def test_a_large_value_that_changed_under_the_other_key_is_not_that_of_before(current):
    row, moved = {"id": 1, "name": "large", "n": 1}, {"id": 2, "name": UNAVAILABLE, "n": 2}
    land(current, slice_of([change("c", row, 1)]))
    away = [change("d", row, 3, 1), change("c", moved, 3, 2)]
    land(current, slice_of([*away, change("u", {**moved, "name": "new"}, 4), change("u", {**moved, "n": 3}, 5)], 1))
    assert rows_of(current, "id", "name", "n") == [(2, "new", 3)]


def test_a_large_value_is_not_that_of_the_row_that_has_its_old_key_now(current):
    land(current, slice_of([change("c", thing(1, "one"), 1), change("c", thing(3, "three"), 2)]))
    away = [change("d", thing(1), 3, 1), change("c", thing(2, UNAVAILABLE), 3, 2)]
    after = [change("d", thing(3), 4, 1), change("c", thing(1, UNAVAILABLE), 4, 2)]
    assert not land(current, slice_of([*away, *after], 2)).rejects
    assert rows_of(current, "id", "name") == [(1, "three"), (2, "one")]


def test_a_composite_key_with_text(catalog):
    row = pa.struct([("a", pa.int32()), ("b", pa.string()), ("v", pa.int64())])
    table = opened(CurrentTable(catalog, "silver.pairs", TOPIC))
    both = dict(schema=envelope_schema(row), key_fields=("a", "b"))
    land(
        table, slice_of([change("c", {"a": 1, "b": b, "v": 1}, i) for i, b in enumerate(["x", "xy", "", "y"])], **both)
    )
    again = opened(CurrentTable(catalog, "silver.pairs", TOPIC))
    land(again, slice_of([change("u", {"a": 1, "b": "xy", "v": 2}, 8), change("d", {"a": 1, "b": ""}, 9)], 4, **both))
    assert rows_of(again, "a", "b", "v") == [(1, "x", 1), (1, "xy", 2), (1, "y", 1)]
