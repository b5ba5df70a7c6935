"""How tables follow their source's columns, and slices their schemas. On a catalog in SQLite."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyiceberg.schema import Schema
from pyiceberg.types import LongType, NestedField, TimestamptzType
from structlog.testing import capture_logs

from headrace.errors import SchemaNotFoundError, UnavailableError
from headrace.kafka import Chunk
from schemas.defaults import default_scalar
from sinks.iceberg.append import AppendTable
from sinks.iceberg.current import CurrentTable
from sinks.iceberg.follow import new_columns
from sinks.iceberg.history import HistoryTable
from sinks.iceberg.reader import TopicReader
from sinks.iceberg.slices import Slice
from tests.unit.sinks.iceberg.history_support import timed
from tests.unit.sinks.iceberg.support import (
    TOPIC,
    change,
    created,
    envelope_schema,
    events_of,
    faults,
    land,
    of_another_table,
    opened,
    rows_of,
    slice_of,
)

INT = {"name": "id", "type": "int"}
RATED = {"name": "rated", "type": "int", "default": 7}
BARE = {"name": "rated", "type": ["null", "int"], "default": None}


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


def timed_part(events: list[Any], start: int = 0, *, rated: bool, partition: int = 0) -> Slice:
    """As `part`, of changes that say when they were committed."""
    for event in events:
        event["source"]["ts_us"] = event["source"]["lsn"] * 1_000_000
    made = part(events, start, rated=rated, partition=partition)
    schema = timed(made.batch.schema.field("after").type)
    return replace(made, batch=pa.RecordBatch.from_pylist(events, schema=schema))


def test_the_times_of_a_history_are_no_columns_that_the_source_dropped():
    names = [("id", LongType()), ("valid_from", TimestamptzType()), ("valid_to", TimestamptzType())]
    schema = Schema(*(NestedField(number, *column) for number, column in enumerate(names, 1)))
    note = {"name": "note", "type": ["null", "string"], "default": None}
    wide = replace(part([change("c", {"id": 1}, 5)], rated=False), schema=avro(INT, note))
    with capture_logs() as said:
        assert new_columns([wide], schema, {}) == {}
    assert said == []


def test_a_column_with_a_default_that_came_as_another_went_may_have_been_renamed():
    schema = Schema(NestedField(1, "id", LongType()), NestedField(2, "score", LongType()))
    with capture_logs() as said:
        assert list(new_columns([part([change("c", {"id": 1, "rated": 1}, 5)], rated=True)], schema, {})) == ["rated"]
    assert [(line["columns"], line["gone"]) for line in said] == [(["rated"], ["score"])]


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


@pytest.mark.parametrize("kind", [CurrentTable, partial(HistoryTable, of="silver.things")], ids=["current", "history"])
def test_rows_of_before_hold_a_default_that_their_table_begins_with(catalog, kind):
    """Those of the first commit, those that another partition brings later, and those after a restart."""
    table = opened(kind(catalog, "silver.things", TOPIC), 3)
    old = timed_part([change("c", {"id": n}, n) for n in (2, 4)], rated=False)
    land(table, old, timed_part([change("c", {"id": 8, "rated": None}, 11)], 2, rated=True))
    land(table, timed_part([change("c", {"id": 1}, 1)], rated=False, partition=1))
    assert rows_of(table, "id", "rated") == [(1, 7), (2, 7), (4, 7), (8, None)]
    again = opened(kind(catalog, "silver.things", TOPIC), 3)
    land(again, timed_part([change("c", {"id": 3}, 3)], rated=False, partition=2))
    assert rows_of(again, "id", "rated") == [(1, 7), (2, 7), (3, 7), (4, 7), (8, None)]


def test_rows_of_before_hold_a_default_when_all_of_the_first_commit_have_the_column(catalog):
    table = opened(CurrentTable(catalog, "silver.things", TOPIC), 2)
    land(table, part([change("c", {"id": 8, "rated": 1}, 11)], rated=True))
    land(table, part([change("c", {"id": n}, n) for n in (2, 4)], rated=False, partition=1))
    assert rows_of(table, "id", "rated") == [(2, 7), (4, 7), (8, 1)]


def test_a_table_that_begins_without_a_key_has_the_defaults_it_began_with(catalog):
    """Its first record is a truncation's, which has none."""
    table = opened(CurrentTable(catalog, "silver.things", TOPIC), 2)
    land(table, replace(part([change("t", None, 10)], rated=True), key_fields=()))
    land(table, part([change("c", {"id": 8, "rated": 1}, 11)], 1, rated=True))
    land(table, part([change("c", {"id": 2}, 12)], rated=False, partition=1))
    assert rows_of(table, "id", "rated") == [(2, 7), (8, 1)]


@pytest.mark.parametrize("begun", [False, True])
def test_a_default_that_a_column_got_later_is_not_what_rows_of_before_hold(catalog, begun):
    """The column came without one. Its partition may be read after one that has the default."""
    table = opened(CurrentTable(catalog, "silver.things", TOPIC), 2)
    first = part([change("c", {"id": 1}, 1)], rated=False)
    bare = replace(part([change("c", {"id": 2, "rated": 2}, 2)], rated=True, partition=1), schema=avro(INT, BARE))
    later = part([change("c", {"id": 3, "rated": 3}, 3)], 1, rated=True)
    for slices in [[first], [later, bare]] if begun else [[first, later, bare]]:
        land(table, *slices)
    assert rows_of(table, "id", "rated") == [(1, None), (2, 2), (3, 3)]


@pytest.mark.parametrize("begun", [False, True])
def test_a_record_of_another_table_does_not_say_what_rows_of_before_hold(catalog, begun):
    table = opened(CurrentTable(catalog, "silver.things", TOPIC))
    first = part([change("c", {"id": 1}, 1)], rated=False)
    strange = part([of_another_table(change("c", {"id": 9, "rated": 9}, 2))], 1, rated=True)
    bare = replace(part([change("c", {"id": 2, "rated": 2}, 3)], 2, rated=True), schema=avro(INT, BARE))
    for slices in [[first], [strange, bare]] if begun else [[first, strange, bare]]:
        land(table, *slices)
    assert rows_of(table, "id", "rated") == [(1, None), (2, 2)]


def test_a_record_of_another_table_takes_no_default_from_those_beside_it(catalog):
    table = opened(CurrentTable(catalog, "silver.things", TOPIC))
    land(table, part([change("c", {"id": 1}, 1)], rated=False))
    events = [change("c", {"id": 2, "rated": 2}, 2), of_another_table(change("c", {"id": 9, "rated": 9}, 3))]
    land(table, part(events, 1, rated=True))
    assert rows_of(table, "id", "rated") == [(1, 7), (2, 2)]


def test_a_column_that_was_dropped_has_its_default_in_new_rows(catalog):
    """They cannot be told from rows of before it, which a restarted connector may send behind newer ones."""
    table = opened(CurrentTable(catalog, "silver.things", TOPIC))
    land(table, part([change("c", {"id": 1, "rated": 1}, 1)], rated=True))
    land(table, part([change("c", {"id": 2}, 2)], 1, rated=False))
    assert rows_of(table, "id", "rated") == [(1, 1), (2, 7)]


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


@pytest.mark.parametrize("key", [(), ("id",)], ids=["keyless", "keyed"])
@pytest.mark.parametrize("kind", [AppendTable, CurrentTable])
def test_what_is_set_aside_leaves_a_column_of_that_name_alone(catalog, key, kind):
    """Inside records too, and in every batch the same."""
    number, text = (
        envelope_schema(pa.struct([("id", pa.int64()), ("n", type_), ("n_string", pa.string())]))
        for type_ in (pa.int32(), pa.string())
    )
    table = opened(kind(catalog, "lake.things", TOPIC, retyped="column"))
    land(table, slice_of([change("c", {"id": 1, "n": 5, "n_string": "a"}, 1)], schema=number, key_fields=key))
    for at, value in ((2, "two"), (3, "three")):
        row = {"id": at, "n": value, "n_string": "own"}
        assert not land(table, slice_of([change("c", row, at)], at - 1, schema=text, key_fields=key)).rejects
    gone = change("d", {"id": 2, "n": "two", "n_string": "own"}, 4)
    assert not land(table, slice_of([gone], 3, schema=text, key_fields=key)).rejects
    if kind is CurrentTable:
        expected = [(1, 5, "a", None), (3, None, "own", "three")]
        assert rows_of(table, "id", "n", "n_string", "n_string_2") == expected
    else:
        rows = [row for (row,) in rows_of(table, "after") if row is not None]
        assert sorted((r["id"], r["n"], r["n_string"], r["n_string_2"]) for r in rows if r["id"] != 2) == [
            (1, 5, "a", None),
            (3, None, "own", "three"),
        ]


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
        2: events_of([INT], name="t.V"),
        3: events_of([INT, RATED], name="t.V"),
    }

    def framed(number: int, body: bytes) -> bytes:
        return b"\0" + number.to_bytes(4, "big") + body

    key = framed(1, b"\x02")
    rows = {2: [b"\x02", b"\x04"], 3: [b"\x02\x04"], 9: [b"\x02"]}
    first, second, third, fourth = (framed(number, created(row)) for number, some in rows.items() for row in some)
    values = [first, None, b"junk!", second, third, fourth]
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
    assert [s.batch.column("after").to_pylist() for s in slices[2:4]] == [[{"id": 2}], [{"id": 1, "rated": 2}]]
    assert [s.bad.tolist() for s in slices] == [[], [0], [], [], [0]]
    assert slices[3].schema is schemas[3]
