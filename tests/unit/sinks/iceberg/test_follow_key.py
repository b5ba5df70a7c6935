"""How tables follow their source's key. On a catalog in SQLite."""

from __future__ import annotations

from dataclasses import replace

import duckdb
import pyarrow as pa
import pytest

from schemas.envelope import NOWHERE
from sinks.iceberg.applicable import KEY_RULE
from sinks.iceberg.current import CurrentTable
from sinks.iceberg.follow import staged
from sinks.iceberg.history import HistoryTable
from sinks.iceberg.slices import Slice
from tests.unit.sinks.iceberg.history_support import event, timed
from tests.unit.sinks.iceberg.support import (
    TOPIC,
    change,
    envelope_schema,
    land,
    of_another_table,
    opened,
    read_again,
    rows_of,
    slice_of,
    thing,
)
from tests.unit.sinks.iceberg.test_follow import INT, RATED, avro

NAMED = {"key_fields": ("name",), "key_named": True}


def test_another_key_finds_rows_by_other_columns(catalog):
    table = opened(CurrentTable(catalog, "silver.things", TOPIC), 2)
    first = [("a", 1, 10), ("b", 2, 20), ("c", 3, 30)]
    land(table, slice_of([change("c", {"id": i, "name": name, "n": n}, n) for name, i, n in first]))
    new = [change("u", {"id": 1, "name": "a", "n": 50}, 50), change("d", {"id": 3, "name": "c", "n": 30}, 51)]
    assert not land(table, slice_of(new, partition=1, **NAMED)).rejects
    assert rows_of(table, "id", "name", "n") == [(1, "a", 50), (2, "b", 20)]
    again = opened(CurrentTable(catalog, "silver.things", TOPIC), 2)
    assert again.key == ("name",)
    assert len(again.index) == 2
    late = land(again, slice_of([change("u", {"id": 1, "name": "a", "n": 45}, 45)], 3, key_named=True))
    assert [r.rule for r in late.rejects] == [KEY_RULE], "a change from before the key, read after it"
    assert rows_of(again, "id", "n") == [(1, 50), (2, 20)]


def test_another_key_that_rows_do_not_have_alone_waits_until_the_source_is_read_again(catalog, monkeypatch):
    monkeypatch.setattr("sinks.iceberg.current.ASKING", float("inf"))
    table = opened(CurrentTable(catalog, "silver.things", TOPIC), 2)
    rows = [(1, "a", 10), (2, "b", 20), (3, "b", 30), (4, None, 40)]
    land(table, slice_of([change("c", thing(*row), row[2]) for row in rows]))
    (reject,) = land(table, slice_of([change("u", thing(1, "a", 50), 50)], partition=1, **NAMED)).rejects
    assert reject.rule == KEY_RULE
    assert "headrace connect snapshot public.things" in reject.reasons[0]
    assert rows_of(table, "id", "name", "n") == sorted(rows, key=repr)
    assert not land(table, slice_of([change("u", thing(1, "a", 60), 60)], 4, key_named=True)).rejects
    read = [read_again(thing(2, "b", 21), 1, lsn=70), read_again(thing(1, "a", 61), 1, lsn=70)]
    assert not land(table, slice_of(read, 1, partition=1, **NAMED)).rejects
    assert rows_of(table, "id", "name", "n") == [(1, "a", 61), (2, "b", 21)], "the source has no others"


def test_rows_read_right_behind_the_last_change_bring_another_key(catalog):
    """Their place is that of the commit that was streamed last, which has been applied: they are no repeats of it."""
    table = opened(CurrentTable(catalog, "silver.things", TOPIC))
    land(table, slice_of([change("c", thing(n, "ab"[n > 1], n), n) for n in (1, 2, 3)], key_named=True))
    read = [read_again(thing(n, name, n), 1, lsn=3) for n, name in ((1, "a"), (3, "b"))]
    assert not land(table, slice_of(read, 3, **NAMED)).rejects
    assert table.key == ("name",)
    assert rows_of(table, "id", "name") == [(1, "a"), (3, "b")]


def with_rated(events, start, **more):
    """Changes of a table that has got the column, and a key with it."""
    row = pa.struct([("id", pa.int64()), ("rated", pa.int32())])
    made = slice_of(events, start, schema=envelope_schema(row), key_fields=("id", "rated"), key_named=True, **more)
    return replace(made, schema=avro(INT, RATED))


def test_a_key_with_a_column_that_was_added_with_a_default_finds_the_rows_of_before(catalog):
    table = opened(CurrentTable(catalog, "silver.things", TOPIC))
    old = slice_of([change("c", {"id": n}, n) for n in (1, 2)], schema=envelope_schema(pa.struct([("id", pa.int64())])))
    land(table, replace(old, schema=avro(INT)))
    new = [change("d", {"id": 1, "rated": 7}, 10), change("c", {"id": 3, "rated": 1}, 11)]
    assert not land(table, with_rated(new, 2)).rejects
    assert rows_of(table, "id", "rated") == [(2, 7), (3, 1)]
    assert table.key == ("id", "rated")


def test_rows_that_are_read_again_under_a_key_with_an_added_column_are_not_there_twice(catalog):
    """What a column was added with need not be what its rows hold: the schema says 0 of a `serial` too."""
    table = opened(CurrentTable(catalog, "silver.things", TOPIC))
    old = slice_of([change("c", {"id": n}, n) for n in (1, 2)], schema=envelope_schema(pa.struct([("id", pa.int64())])))
    land(table, replace(old, schema=avro(INT)))
    read = [read_again({"id": n, "rated": n}, 1, lsn=20) for n in (1, 2)]
    assert not land(table, with_rated(read, 2)).rejects
    assert rows_of(table, "id", "rated") == [(1, 1), (2, 2)]


def test_another_key_is_taken_once_a_partition_that_was_behind_has_made_rows_unique(catalog, monkeypatch):
    monkeypatch.setattr("sinks.iceberg.current.ASKING", float("inf"))
    table = opened(CurrentTable(catalog, "silver.things", TOPIC), 2)
    land(table, slice_of([change("c", thing(n, "a", n), n) for n in (1, 2)], key_named=True))
    assert land(table, slice_of([change("u", thing(1, "a", 50), 50)], partition=1, **NAMED)).rejects
    land(table, slice_of([change("d", thing(2, "a", 2), 40)], 2, key_named=True))
    assert not land(table, slice_of([change("u", thing(1, "a", 51), 51)], 1, partition=1, **NAMED)).rejects
    assert rows_of(table, "id", "n") == [(1, 51)]


WRONG_KEYS = [("nothere",), ("n",), ("name",), ("id", "nothere"), None]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("key", [*WRONG_KEYS, ()], ids=str)
def test_one_record_with_another_key_changes_nothing(catalog, key, named):
    """Whether it comes alone or among others."""
    rows = [thing(i, f"n{i % 3}", i % 2) for i in range(6)]
    stray = slice_of([change("u", thing(1, "n1", 7), 50)], 6, key_fields=key, key_named=named)
    good = slice_of([change("u", thing(0, "new"), 60)], 7, key_named=True)
    for name, batches in (("silver.one", [[stray], [good]]), ("silver.all", [[stray, good]])):
        table = opened(CurrentTable(catalog, name, TOPIC))
        land(table, slice_of([change("c", row, n) for n, row in enumerate(rows)], key_named=True))
        stages = [stage for batch in batches for stage in table.stages(batch)]
        rejects = [reject for stage in stages for reject in land(table, *stage).rejects]
        another = named and key in (("n",), ("name",), ())
        assert [(r.rule, r.slice.start) for r in rejects] == [(KEY_RULE if another else "key", 6)]
        assert opened(CurrentTable(catalog, name, TOPIC)).key == ("id",)
        expected = [(0, "new", 0), *((i, f"n{i % 3}", i % 2) for i in range(1, 6))]
        assert rows_of(table, "id", "name", "n") == expected


@pytest.mark.parametrize("key", [*WRONG_KEYS, ()], ids=str)
def test_a_first_record_with_another_key_does_not_say_the_tables(catalog, key):
    table = opened(CurrentTable(catalog, "silver.things", TOPIC))
    land(table, slice_of([change("c", thing(1, "a", 3), 1)], key_fields=key))
    assert table.key == (key if key in (("n",), ("name",)) else ())
    rows = [change("c", thing(n, "a", 3), n + 1) for n in (1, 2)]
    for stage in table.stages([slice_of(rows, 1, key_named=True)]):
        assert not land(table, *stage).rejects
    assert opened(CurrentTable(catalog, "silver.things", TOPIC)).key == ("id",)
    assert rows_of(table, "id") == [(1,), (2,)]


def test_a_key_of_another_type_than_its_rows_is_refused_and_not_the_tables(catalog):
    table = opened(CurrentTable(catalog, "silver.things", TOPIC))
    unlike = replace(slice_of([change("c", thing(1), 1)], key_named=True), key_unlike=("id",))
    assert [r.rule for r in land(table, unlike).rejects] == ["key"]
    assert table.key == ()
    land(table, slice_of([change("c", thing(2), 2)], 1))
    (reject,) = land(table, replace(slice_of([change("d", thing(2), 3)], 2), key_unlike=("id",))).rejects
    assert (reject.rule, reject.reasons[0]) == ("key", "id is of another type in the record's key than in the row")
    assert rows_of(table, "id") == [(2,)]


@pytest.mark.parametrize("first", [False, True])
def test_the_key_of_a_record_of_another_table_is_not_the_tables(catalog, first):
    table = opened(CurrentTable(catalog, "silver.things", TOPIC))
    strange = slice_of([of_another_table(change("c", thing(9, "z"), 50))], 0 if first else 2, **NAMED)
    mine = slice_of([change("c", thing(n, f"n{n}"), n) for n in (1, 2)], 1 if first else 0)
    for part in [strange, mine] if first else [mine, strange]:
        land(table, part)
    assert table.key == ("id",)
    assert rows_of(table, "id") == [(1,), (2,)]


def test_of_rows_with_the_same_new_key_the_newest_stays(catalog):
    """By the places of their changes in the log, whichever partition they are of."""
    table = opened(CurrentTable(catalog, "silver.things", TOPIC), 2)
    first = [change("c", thing(2, "b"), 30, 1), change("c", thing(4, "c"), 31, 2), change("c", thing(6, "d"), 50, 1)]
    second = [change("c", thing(3, "b"), 30, 2), change("c", thing(5, "c"), 31, 1), change("c", thing(7, "d"), 40, 9)]
    land(table, slice_of(first, key_named=True))
    land(table, slice_of(second, partition=1, key_named=True))
    assert not land(table, slice_of([read_again(thing(1, "a"), 1, lsn=60)], 3, **NAMED)).rejects
    assert rows_of(table, "id", "name") == [(1, "a"), (3, "b"), (4, "c"), (6, "d")]


def test_versions_that_have_ended_are_not_in_the_way_of_another_key(catalog):
    """Neither a newer one of the same key nor one without a value for it."""
    table = HistoryTable(catalog, "silver.things_history", TOPIC, of="silver.things")
    opened(table)
    rows = [("c", 2, "a", 5), ("c", 1, "a", 10), ("u", 1, "b", 20), ("c", 3, None, 21), ("u", 3, "c", 22)]
    land(table, slice_of([event(*row) for row in rows], schema=timed(), key_named=True))
    assert not land(table, slice_of([event("u", 4, "a", 30)], 5, schema=timed(), **NAMED)).rejects
    versions = rows_of(table, "id", "name", "valid_to")
    assert [row[:2] for row in versions] == [(1, "a"), (1, "b"), (2, "a"), (3, "c"), (3, None), (4, "a")]
    assert [row[0] for row in versions if row[2] is None] == [1, 3, 4]


def test_a_primary_key_that_was_added_waits_for_rows_of_before_it_in_other_partitions(catalog):
    table = opened(CurrentTable(catalog, "silver.things", TOPIC), 2)
    land(table, slice_of([change("c", thing(n), n) for n in (1, 3)], key_fields=()))
    ahead = slice_of([change("u", thing(1, "new"), 10)], 2, key_named=True)
    behind = slice_of([change("c", thing(n), n) for n in (2, 4)], partition=1, key_fields=())
    level = slice_of([change("u", thing(2, "new"), 11)], 2, partition=1, key_named=True)
    for stage in table.stages([ahead, behind, level]):
        assert not land(table, *stage).rejects
    assert table.key == ("id",)
    assert rows_of(table, "id", "name") == [(1, "new"), (2, "new"), (3, "x"), (4, "x")]


def test_rows_read_again_in_another_partition_say_that_another_key_may_cost_rows(catalog):
    table = opened(CurrentTable(catalog, "silver.things", TOPIC), 2)
    land(table, slice_of([change("c", thing(n, "a"), n) for n in (1, 2)], key_named=True))
    changed = slice_of([change("c", thing(3, "c"), 50)], 2, **NAMED)
    read = slice_of([read_again(thing(2, "a"), 1, lsn=60)], partition=1, **NAMED)
    assert not land(table, changed, read).rejects
    assert rows_of(table, "id", "name") == [(2, "a"), (3, "c")]


def test_rows_read_under_the_key_of_before_do_not_say_that_another_may_cost_rows(catalog):
    table = opened(CurrentTable(catalog, "silver.things", TOPIC), 2)
    land(table, slice_of([change("c", thing(n, "a"), n) for n in (1, 2)], key_named=True))
    changed = slice_of([change("c", thing(3, "c"), 50)], 2, **NAMED)
    read = slice_of([read_again(thing(2, "a"), 1, lsn=60)], partition=1, key_named=True)
    assert [r.rule for r in land(table, changed, read).rejects] == [KEY_RULE]
    assert rows_of(table, "id", "name") == [(1, "a"), (2, "a")]


def test_files_of_a_table_have_bloom_filters_on_its_key_whichever_it_is(catalog):
    table = opened(CurrentTable(catalog, "silver.things", TOPIC))

    def filtered() -> set[str]:
        files = [task.file.file_path.removeprefix("file://") for task in table.table.scan().plan_files()]
        statement = "SELECT path_in_schema FROM parquet_metadata(?) WHERE bloom_filter_length > 0"
        return {name for (name,) in duckdb.execute(statement, [files]).fetchall()}

    land(table, slice_of([change("c", thing(n, f"n{n}"), n) for n in range(100)], key_named=True))
    assert filtered() == {"id"}
    land(table, slice_of([change("u", thing(n, f"n{n}", 1), 200 + n) for n in range(99)], 100, **NAMED))
    assert filtered() == {"id", "name"}


def test_a_table_gets_its_first_key_while_it_streams(catalog):
    rows = [thing(n, "same", n) for n in range(3)]
    first = slice_of([change("c", row, n) for n, row in enumerate(rows)], key_fields=())
    keyed = [change("u", thing(1, "new", 1), 10), change("d", thing(2), 11), change("c", thing(3), 12)]
    later = slice_of(keyed, 3, key_named=True)
    stray = slice_of([change("c", thing(9), 13)], 6, key_fields=())
    for name, batches in (("silver.one", [[first], [later], [stray]]), ("silver.all", [[first, later, stray]])):
        table = opened(CurrentTable(catalog, name, TOPIC))
        rejects = [r for b in batches for stage in table.stages(b) for r in land(table, *stage).rejects]
        assert [(r.rule, r.slice.start) for r in rejects] == [("key", 6)], "which key it was, nothing says"
        assert "message.key.columns" in rejects[0].reasons[0]
        again = opened(CurrentTable(catalog, name, TOPIC))
        assert (again.key, len(again.index)) == (("id",), 3)
        assert rows_of(again, "id", "name") == [(0, "same"), (1, "new"), (3, "x")]


def test_a_record_with_a_key_says_nothing_of_a_table_without_one(catalog):
    table = opened(CurrentTable(catalog, "silver.things", TOPIC))
    land(table, slice_of([change("c", thing(n), n) for n in range(3)], key_fields=()))
    assert [r.rule for r in land(table, slice_of([change("d", thing(1), 10)], 3)).rejects] == ["key"]
    assert not land(table, slice_of([change("c", thing(1), 11)], 4, key_fields=())).rejects
    assert rows_of(table, "id") == [(0,), (1,), (1,), (2,)]


def test_what_is_repeated_under_another_key_does_not_say_where_it_came(catalog):
    """Otherwise changes under the old key that another partition has yet to bring would be refused."""
    table = opened(CurrentTable(catalog, "silver.things", TOPIC), 2)
    rows = {n: {"id": n, "code": -n} for n in range(1, 8)}
    schema = envelope_schema(pa.struct([("id", pa.int64()), ("code", pa.int64())]))

    def codes(numbers: list[int], start: int, key: str, partition: int = 0) -> Slice:
        events = [change("c", rows[n], n) for n in numbers]
        return slice_of(events, start, partition=partition, schema=schema, key_fields=(key,), key_named=True)

    land(table, codes([2, 4], 0, "id"))
    for stage in table.stages([codes([2, 4], 2, "code"), codes([1, 3], 0, "id", 1)]):
        prepared = land(table, *stage)
        assert not prepared.rejects
    assert table.key == ("id",)
    for stage in table.stages([codes([2, 4, 6], 4, "code"), codes([5], 2, "id", 1)]):
        assert not land(table, *stage).rejects
    assert table.key == ("code",)
    assert rows_of(table, "code") == [(-1,), (-2,), (-3,), (-4,), (-5,), (-6,)]


def test_a_table_that_begins_with_a_truncation_learns_its_key_later(catalog):
    table = opened(CurrentTable(catalog, "silver.things", TOPIC))
    land(table, slice_of([change("t", None, 1)], key_fields=()))
    again = opened(CurrentTable(catalog, "silver.things", TOPIC))
    rows = [change("c", {"id": 1, "name": "a", "n": 1}, 2), change("c", {"id": 2, "name": "b", "n": 1}, 3)]
    assert not land(again, slice_of(rows, 1)).rejects
    last = opened(CurrentTable(catalog, "silver.things", TOPIC))
    assert last.key == ("id",)
    land(last, slice_of([change("d", {"id": 2, "name": None, "n": None}, 4)], 3))
    assert rows_of(last, "id", "name") == [(1, "a")]


def test_slices_of_two_keys_are_taken_in_the_order_of_the_source():
    old = slice_of([change("c", {"id": 1, "name": "a", "n": 1}, 9)], partition=1)
    truncate = slice_of([change("t", None, 8)], partition=0, key_fields=())
    new = slice_of([change("c", {"id": 2, "name": "b", "n": 1}, 10)], 1, partition=0, **NAMED)
    marks = {0: NOWHERE, 1: NOWHERE}
    assert staged([truncate, old], marks, ("id",)) == [[truncate, old]]
    assert staged([truncate, new, old], marks, ("id",)) == [[truncate, old], [new]]
