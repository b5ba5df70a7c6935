"""A change that does not say its place in the log is refused, and costs its neighbours nothing."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog

from sinks.iceberg.current import CurrentTable
from sinks.iceberg.history import HistoryTable
from tests.unit.sinks.iceberg.history_support import event, timed
from tests.unit.sinks.iceberg.support import TOPIC, change, envelope_schema, land, opened, rows_of, slice_of, thing

BINLOG = pa.struct(
    [
        ("db", pa.string()),
        ("table", pa.string()),
        ("file", pa.string()),
        ("pos", pa.int64()),
        ("row", pa.int32()),
        ("ts_us", pa.int64()),
    ]
)


def without_sequence(made: dict[str, Any]) -> dict[str, Any]:
    return made | {"source": made["source"] | {"sequence": None}}


def without_transaction(made: dict[str, Any]) -> dict[str, Any]:
    return made | {"transaction": None}


LOSSES = pytest.mark.parametrize("lose", [without_sequence, without_transaction])


def rules(prepared: Any) -> list[tuple[str, list[int]]]:
    return [(reject.rule, reject.rows.tolist()) for reject in prepared.rejects]


@LOSSES
def test_an_older_truncation_leaves_rows_that_were_read_with_such_a_change(catalog: Catalog, lose: Any) -> None:
    table = opened(CurrentTable(catalog, "silver.things", TOPIC), 2)
    read = [change("c", thing(9), 10), change("c", thing(1), 200), lose(change("c", thing(2), 201))]
    assert rules(land(table, slice_of(read, partition=1))) == [("position", [2])]
    land(table, slice_of([change("t", None, 100)], key_fields=()))
    assert rows_of(table, "id", "_position") == [(1, 200)]


@LOSSES
def test_such_a_change_does_not_make_a_truncation_one_of_everything(catalog: Catalog, lose: Any) -> None:
    table = opened(CurrentTable(catalog, "silver.things", TOPIC), 2)
    land(table, slice_of([change("c", thing(9), 10), change("c", thing(1), 200)], partition=1))
    truncated = [change("t", None, 100), lose(change("m", None, 101))]
    assert rules(land(table, slice_of(truncated, key_fields=()))) == [("position", [1])]
    assert rows_of(table, "id") == [(1,)]


@LOSSES
@pytest.mark.parametrize("partition", [0, 1])
def test_a_truncation_without_a_place_is_refused_where_others_have_one(
    catalog: Catalog, lose: Any, partition: int
) -> None:
    table = opened(CurrentTable(catalog, "silver.things", TOPIC), 2)
    land(table, slice_of([change("c", thing(1), 200)]))
    lost = slice_of([lose(change("t", None, 100))], 1 - partition, partition=partition, key_fields=())
    assert rules(land(table, lost)) == [("position", [0])]
    assert rows_of(table, "id") == [(1,)]


@LOSSES
def test_so_it_is_where_others_of_its_own_batch_have_one(catalog: Catalog, lose: Any) -> None:
    table = opened(CurrentTable(catalog, "silver.things", TOPIC), 2)
    placed, lost = slice_of([change("c", thing(1), 200)]), slice_of([lose(change("t", None, 100))], partition=1)
    assert rules(land(table, placed, lost)) == [("position", [0])]
    beside = [change("c", thing(2), 201), lose(change("t", None, 202))]
    assert rules(land(table, slice_of(beside, 1))) == [("position", [1])]
    assert rows_of(table, "id") == [(1,), (2,)]


@LOSSES
def test_repeats_of_what_was_read_with_such_a_change_are_dropped(catalog: Catalog, lose: Any) -> None:
    table = opened(CurrentTable(catalog, "silver.things", TOPIC))
    read = [change("c", thing(1, "a"), 10), change("d", thing(1, "a"), 20), lose(change("c", thing(2), 30))]
    land(table, slice_of(read))
    assert land(table, slice_of(read[:1], 3)).dropped == 1
    assert rows_of(table, "id") == []
    history = HistoryTable(catalog, "silver.things_history", TOPIC, of="silver.things")
    versions = [event("c", 1, "a", 10), event("u", 1, "b", 20), lose(event("c", 2, "z", 30))]
    opened(history)
    assert rules(land(history, slice_of(versions, schema=timed()))) == [("position", [2])]
    assert land(history, slice_of(versions[:2], 3, schema=timed())).dropped == 2
    assert rows_of(history, "id", "name") == [(1, "a"), (1, "b")]


@LOSSES
def test_such_a_change_alone_is_refused_once_its_partition_has_had_places(catalog: Catalog, lose: Any) -> None:
    table = opened(CurrentTable(catalog, "silver.things", TOPIC), 2)
    assert not land(table, slice_of([lose(change("c", thing(0), 1))])).rejects
    land(table, slice_of([change("c", thing(1), 10)], 1))
    assert rules(land(table, slice_of([lose(change("u", thing(1, "y"), 20))], 2))) == [("position", [0])]
    assert not land(table, slice_of([lose(change("c", thing(5), 1))], partition=1)).rejects, "maybe from before"
    assert rows_of(table, "id", "name") == [(0, "x"), (1, "x"), (5, "x")]


@LOSSES
def test_a_table_whose_changes_have_no_places_takes_them_and_their_truncations(catalog: Catalog, lose: Any) -> None:
    table = opened(CurrentTable(catalog, "silver.things", TOPIC))
    land(table, slice_of([lose(change("c", thing(1), 1)), change("r", thing(2), 0)]))
    assert rows_of(table, "id") == [(1,), (2,)]
    land(table, slice_of([lose(change("t", None, 2)), lose(change("c", thing(3), 3))], 2))
    assert rows_of(table, "id") == [(3,)]
    twice = [change("t", None, 5), change("c", thing(5), 6), change("t", None, 7), change("c", thing(6), 8)]
    land(table, slice_of([lose(change("c", thing(4), 4))], 4), slice_of([lose(made) for made in twice], 5))
    assert rows_of(table, "id") == [(6,)]


@LOSSES
def test_a_table_without_a_key_refuses_such_a_change_alone(catalog: Catalog, lose: Any) -> None:
    table = opened(CurrentTable(catalog, "silver.things", TOPIC))
    read = [change("r", thing(1), 5), lose(change("c", thing(2), 10)), change("c", thing(3), 11)]
    assert rules(land(table, slice_of(read, key_fields=()))) == [("position", [1])]
    assert land(table, slice_of(read[2:], 3, key_fields=())).dropped == 1
    assert rows_of(table, "id", "_position") == [(1, 5), (3, 11)]


@pytest.mark.parametrize("gone", ["file", "pos"])
def test_so_it_is_of_a_binary_log(catalog: Catalog, gone: str) -> None:
    def binlog(number: int, at: int, **more: Any) -> dict[str, Any]:
        made = change("c", thing(number), at)
        place = {"db": "public", "table": "things", "file": "binlog.000001", "pos": at, "row": 0, "ts_us": at}
        return made | {"source": place | more}

    fields = [field.with_type(BINLOG) if field.name == "source" else field for field in envelope_schema()]
    read = [binlog(1, 10), binlog(2, 20, **{gone: None}), binlog(3, 30)]
    tables = [
        CurrentTable(catalog, "silver.things", TOPIC),
        HistoryTable(catalog, "silver.things_history", TOPIC, of="silver.things"),
    ]
    for table in tables:
        opened(table)
        assert rules(land(table, slice_of(read, schema=pa.schema(fields)))) == [("position", [1])]
        assert land(table, slice_of([read[0], read[2]], 3, schema=pa.schema(fields))).dropped == 2
        assert rows_of(table, "id", "_position") == [(1, (1 << 32) + 10), (3, (1 << 32) + 30)]
