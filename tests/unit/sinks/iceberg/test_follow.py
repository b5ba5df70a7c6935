"""How tables follow their source's columns and key, and slices their schemas. On a catalog in SQLite."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from pyiceberg.schema import Schema
from pyiceberg.types import LongType, NestedField, TimestamptzType
from structlog.testing import capture_logs

from headrace.errors import SchemaNotFoundError, UnavailableError
from headrace.kafka import Chunk
from schemas.defaults import default_scalar
from schemas.envelope import NOWHERE
from sinks.iceberg.append import AppendTable
from sinks.iceberg.applicable import KEY_RULE
from sinks.iceberg.current import CurrentTable
from sinks.iceberg.follow import new_columns, staged
from sinks.iceberg.reader import TopicReader
from sinks.iceberg.slices import Slice
from tests.unit.sinks.iceberg.support import (
    TOPIC,
    catalog_in,
    change,
    envelope_schema,
    faults,
    land,
    read_again,
    rows_of,
    slice_of,
    source,
    thing,
)

INT = {"name": "id", "type": "int"}
RATED = {"name": "rated", "type": "int", "default": 7}


def avro(*fields: dict[str, Any]) -> dict[str, Any]:
    row = {"type": "record", "name": "Value", "fields": list(fields)}
    return {
        "type": "record",
        "name": "Envelope",
        "fields": [
            {"name": "before", "type": ["null", row]},
            {"name": "after", "type": ["null", "Value"]},
            {"name": "source", "type": {"type": "record", "name": "Source", "fields": []}},
            {"name": "op", "type": "string"},
        ],
    }


def part(events: list[Any], start: int = 0, *, rated: bool, partition: int = 0) -> Slice:
    row = pa.struct([("id", pa.int64()), *([("rated", pa.int32())] if rated else [])])
    made = slice_of(events, start, partition=partition, schema=envelope_schema(row))
    return replace(made, schema=avro(INT, *([RATED] if rated else [])))


@pytest.fixture
def catalog(tmp_path):
    return catalog_in(tmp_path)


def opened(table, partitions=1):
    table.open(source(partitions))
    return table


def test_the_times_of_a_history_are_no_columns_that_the_source_dropped():
    names = [("id", LongType()), ("valid_from", TimestamptzType()), ("valid_to", TimestamptzType())]
    schema = Schema(*(NestedField(number, *column) for number, column in enumerate(names, 1)))
    note = {"name": "note", "type": ["null", "string"], "default": None}
    wide = replace(part([change("c", {"id": 1}, 5)], rated=False), schema=avro(INT, note))
    with capture_logs() as said:
        assert new_columns([wide], schema, {}) == {}
    assert said == []


def test_rows_of_before_hold_an_added_columns_default(catalog):
    """Those in the table, those of the batch, and those that another partition brings later, after a restart."""
    table = opened(CurrentTable(catalog, "silver.things", TOPIC), 2)
    land(table, part([change("c", {"id": n}, n) for n in (2, 4)], rated=False))
    land(
        table,
        part([change("c", {"id": 6}, 6)], 2, rated=False),
        part([change("u", {"id": 4, "rated": None}, 10), change("c", {"id": 8, "rated": 1}, 11)], 3, rated=True),
    )
    assert rows_of(table, "id", "rated") == [(2, 7), (4, None), (6, 7), (8, 1)]
    again = opened(CurrentTable(catalog, "silver.things", TOPIC), 2)
    land(again, part([change("c", {"id": 1}, 9)], rated=False, partition=1))
    assert rows_of(again, "id", "rated") == [(1, 7), (2, 7), (4, None), (6, 7), (8, 1)]


def test_what_is_repeated_under_new_columns_does_not_say_where_they_came(catalog):
    """After a restart Debezium repeats changes with the columns of that time, while another partition is behind."""
    table = opened(CurrentTable(catalog, "silver.things", TOPIC), 2)
    land(table, part([change("c", {"id": n}, n) for n in (2, 4)], rated=False))
    repeats = part([change("c", {"id": n, "rated": 7}, n) for n in (2, 4)], 2, rated=True)
    behind = part([change("c", {"id": n}, n) for n in (1, 3, 5)], rated=False, partition=1)
    assert land(table, repeats, behind).dropped == 2
    land(table, part([change("c", {"id": 7}, 7)], 3, rated=False, partition=1))
    first = part([change("c", {"id": 4, "rated": 7}, 4), change("c", {"id": 6, "rated": 1}, 10)], 4, rated=True)
    land(table, first, part([change("c", {"id": 9}, 9)], 4, rated=False, partition=1))
    expected = [(1, 7), (2, 7), (3, 7), (4, 7), (5, 7), (6, 1), (7, 7), (9, 7)]
    assert rows_of(table, "id", "rated") == expected


def test_what_is_older_than_a_column_may_come_with_it_and_what_comes_behind_that_without(catalog):
    """After a restart Debezium sends the first changes with the columns of that time."""
    table = opened(CurrentTable(catalog, "silver.things", TOPIC), 2)
    land(table, part([change("c", {"id": 2}, 2)], rated=False))
    first = part([change("c", {"id": n, "rated": 7}, n) for n in (2, 4)], 1, rated=True)
    behind = part([change("c", {"id": 6}, 6)], 3, rated=False)
    more = part([change("c", {"id": 8, "rated": 1}, 10)], 4, rated=True)
    assert land(table, first, behind, more, part([change("c", {"id": 5}, 5)], rated=False, partition=1)).dropped == 1
    land(table, part([change("c", {"id": 7}, 7)], 1, rated=False, partition=1))
    assert rows_of(table, "id", "rated") == [(2, 7), (4, 7), (5, 7), (6, 7), (7, 7), (8, 1)]


WIDER = pa.struct([("id", pa.int64()), ("n", pa.int64()), ("added", pa.float32())])


@pytest.mark.parametrize("key", [(), ("id",)], ids=["keyless", "keyed"])
@pytest.mark.parametrize("op", ["d", "u"])
def test_the_first_change_after_a_column_was_added_finds_a_row_from_before_it(catalog, key, op):
    """The table has neither the column nor the wider type yet, and only the row before says that it is null."""
    narrow = envelope_schema(pa.struct([("id", pa.int64()), ("n", pa.int32())]))
    wider = envelope_schema(WIDER)
    table = opened(CurrentTable(catalog, "silver.things", TOPIC))
    old = [change("c", {"id": n, "n": n}, n) for n in (1, 2)]
    land(table, slice_of(old, schema=narrow, key_fields=key))
    before = {"id": 1, "n": 1, "added": None}
    first = {**change(op, before if op == "d" else {**before, "added": 1.5}, 10), "before": before}
    prepared = land(table, slice_of([first], 2, schema=wider, key_fields=key))
    assert not prepared.rejects
    land(table, slice_of([change("c", {"id": 3, "n": 1 << 40, "added": 2.5}, 11)], 3, schema=wider, key_fields=key))
    changed = [] if op == "d" else [(1, 1, 1.5)]
    assert rows_of(table, "id", "n", "added") == [*changed, (2, 2, None), (3, 1 << 40, 2.5)]


def test_a_delete_that_brings_a_default_finds_a_row_from_before_it(catalog):
    table = opened(CurrentTable(catalog, "silver.things", TOPIC))
    land(table, replace(part([change("c", {"id": n}, n) for n in (1, 2)], rated=False), key_fields=()))
    gone = part([change("d", {"id": 1, "rated": 7}, 10)], 2, rated=True)
    assert not land(table, replace(gone, key_fields=())).rejects
    assert rows_of(table, "id", "rated") == [(2, 7)]


@pytest.mark.parametrize("after", [False, True])
def test_making_rows_anew_survives_a_failing_call(catalog, after):
    for call in range(1, 12):
        table = opened(CurrentTable(catalog, f"silver.things{call}", TOPIC))
        land(table, part([change("c", {"id": n}, n) for n in (1, 2)], rated=False))
        more = part([change("c", {"id": 3, "rated": 3}, 10)], 2, rated=True)
        with faults(call, after=after):
            try:
                land(table, more)
                more = None
            except UnavailableError:
                pass
        if more is not None:
            if call % 2:
                table = opened(CurrentTable(catalog, f"silver.things{call}", TOPIC))
            if table.offsets == {0: 2}:
                land(table, more)
        assert rows_of(table, "id", "rated") == [(1, 7), (2, 7), (3, 3)]


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
    rows = [change("c", thing(n, "a", 3), n + 1) for n in (1, 2)]
    for stage in table.stages([slice_of(rows, 1, key_named=True)]):
        assert not land(table, *stage).rejects
    assert opened(CurrentTable(catalog, "silver.things", TOPIC)).key == ("id",)
    assert rows_of(table, "id") == [(1,), (2,)]


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


def test_another_type_is_refused_or_has_a_column_of_its_own(catalog):
    text = pa.struct([("id", pa.int64()), ("n", pa.string())])
    number = pa.struct([("id", pa.int64()), ("n", pa.int32())])
    before = slice_of([change("c", {"id": 1, "n": 5}, 1)], schema=envelope_schema(number))
    after = slice_of([change("c", {"id": 2, "n": "five"}, 2)], 1, schema=envelope_schema(text))
    for kind in (AppendTable, CurrentTable):
        name = kind.__name__.lower()
        refusing = opened(kind(catalog, f"silver.{name}", TOPIC))
        land(refusing, before)
        (reject,) = land(refusing, after).rejects
        assert (reject.rule, reject.rows.tolist()) == ("schema: type", [0])
        assert refusing.offsets == {0: 2}
        aside = opened(kind(catalog, f"silver.{name}_aside", TOPIC, retyped="column"))
        land(aside, before)
        assert not land(aside, after).rejects
        if kind is CurrentTable:
            assert rows_of(aside, "id", "n", "n_string") == [(1, 5, None), (2, None, "five")]
        else:
            assert [row["n_string"] for (row,) in rows_of(aside, "after")] == [None, "five"]
    keys = pa.struct([("id", pa.string()), ("n", pa.int32())])
    retyped = slice_of([change("c", {"id": "x", "n": 1}, 3)], 2, schema=envelope_schema(keys))
    assert [r.rule for r in land(aside, retyped).rejects] == ["schema: type"], "a key keeps its type"


@pytest.mark.parametrize("text", ["five", "5"])
def test_rows_without_a_key_are_found_by_a_column_that_was_set_aside(catalog, text):
    """Those of before the other type are not: what their value is as the new type, only the source knows."""
    typed = [envelope_schema(pa.struct([("id", pa.int64()), ("n", kind)])) for kind in (pa.int32(), pa.string())]
    table = opened(CurrentTable(catalog, "silver.things", TOPIC, retyped="column"))
    land(table, slice_of([change("c", {"id": 1, "n": 5}, 1)], schema=typed[0], key_fields=()))
    land(table, slice_of([change("c", {"id": 2, "n": text}, 2)], 1, schema=typed[1], key_fields=()))
    gone = [change("d", {"id": 2, "n": text}, 3), change("d", {"id": 1, "n": "5"}, 4)]
    (reject,) = land(table, slice_of(gone, 2, schema=typed[1], key_fields=())).rejects
    assert (reject.rule, reject.rows.tolist()) == ("before", [1])
    assert rows_of(table, "id", "n", "n_string") == [(1, 5, None)]


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ({"type": "int", "default": 5}, 5),
        ({"type": [{"type": "int", "connect.name": "io.debezium.time.Date"}, "null"], "default": 1}, date(1970, 1, 2)),
        (
            {"type": {"type": "bytes", "logicalType": "decimal", "precision": 5, "scale": 2}, "default": "}"},
            Decimal("1.25"),
        ),
        (
            {"type": {"type": "long", "connect.name": "io.debezium.time.Timestamp"}, "default": 1500},
            datetime(1970, 1, 1, 0, 0, 1, 500_000),
        ),
        (
            {
                "type": {"type": "string", "connect.name": "io.debezium.time.ZonedTimestamp"},
                "default": "2024-01-02T03:04:05Z",
            },
            datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC),
        ),
        ({"type": ["null", "int"], "default": None}, None),
        ({"type": "int"}, None),
        (
            {
                "type": {"type": "string", "connect.name": "io.debezium.time.ZonedTimestamp"},
                "default": "1970-01-01T00:00:00.000000Z",
            },
            None,
        ),
        (
            {
                "type": {"type": "string", "connect.name": "io.debezium.data.Uuid"},
                "default": "00000000-0000-0000-0000-000000000000",
            },
            None,
        ),
    ],
)
def test_a_default_is_read_as_a_record_would_be(field, expected):
    found = default_scalar({"name": "x", **field})
    assert (None if found is None else found.as_py()) == expected


def test_slices_have_one_schema_each_and_neighbours_take_what_has_none():
    schemas = {
        1: {"type": "record", "name": "t.K", "fields": [INT]},
        2: {"type": "record", "name": "t.V", "fields": [INT]},
        3: {"type": "record", "name": "t.V", "fields": [INT, RATED]},
    }

    def framed(number: int, body: bytes) -> bytes:
        return b"\0" + number.to_bytes(4, "big") + body

    key = framed(1, b"\x02")
    values = [framed(2, b"\x02"), None, b"junk!", framed(2, b"\x04"), framed(3, b"\x02\x04"), framed(9, b"\x02")]
    keys = [key, key, None, key, key, b"other"]

    def schema_of(number: int) -> dict[str, Any]:
        if number not in schemas:
            raise SchemaNotFoundError("unknown")
        return schemas[number]

    offsets = np.arange(6)
    chunk = Chunk("t", 0, pa.array(keys, pa.binary()), pa.array(values, pa.binary()), offsets, offsets, 6)
    slices = TopicReader(schema_of, changes_of="t").read(chunk, 0)
    found = [(s.start, s.next_offset, s.key_fields) for s in slices]
    assert found == [(0, 2, ("id",)), (2, 3, ()), (3, 4, ("id",)), (4, 5, ("id",)), (5, 6, None)]
    assert [s.batch.schema.names for s in slices[2:4]] == [["id"], ["id", "rated"]]
    assert [s.bad.tolist() for s in slices] == [[], [0], [], [], [0]]
    assert slices[3].schema is schemas[3]
