"""Histories compared with their current state: what is right passes, each way to be wrong is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from governance.verify.history import check_history
from governance.verify.lake import Lake
from governance.verify.report import Check
from sinks.iceberg.current import CurrentTable
from sinks.iceberg.history import HistoryTable
from tests.unit.sinks.iceberg.history_support import event, timed
from tests.unit.sinks.iceberg.support import TOPIC, catalog_in, lake, land, slice_of, source

EVENTS = [
    event("c", 1, "a", 10),
    event("c", 2, "b", 11),
    event("u", 1, "c", 20),
    event("d", 2, "b", 21),
    event("c", 3, "d", 22),
    event("c", 2, "e", 30),
]


@pytest.fixture
def tables(tmp_path: Path) -> tuple[HistoryTable, CurrentTable]:
    catalog = catalog_in(tmp_path)
    both = (
        HistoryTable(catalog, "silver.things_history", TOPIC, of="silver.things"),
        CurrentTable(catalog, "silver.things", TOPIC),
    )
    for table in both:
        table.open(source())
        land(table, slice_of(EVENTS, schema=timed()))
    return both


def checked(folder: Path) -> Check:
    return check_history(Lake(lake(folder)), TOPIC, 1, "silver.things", "silver.things_history", patience=0.1)


def rewritten(table: Any, change: Any) -> None:
    stored = table.table.catalog.load_table(table.table.name())
    rows = stored.scan().to_arrow()
    stored.overwrite(change(rows).cast(rows.schema))


def with_column(rows: pa.Table, name: str, values: list[Any]) -> pa.Table:
    at = rows.schema.get_field_index(name)
    return rows.set_column(at, rows.schema.field(at), pa.array(values, rows.schema.field(at).type))


def test_a_right_history_passes(tmp_path, tables):
    check = checked(tmp_path)
    assert (check.ok, check.compared) == (True, 5), check.offences


def test_a_history_without_a_key_is_not_compared(tmp_path, tables):
    stored = tables[0].table.catalog.load_table(tables[0].table.name())
    with stored.transaction() as change:
        change.remove_properties("headrace.key")
    check = checked(tmp_path)
    assert (check.ok, check.compared) == (True, 0)
    assert check.note.startswith("not compared: without a key")


def test_a_lost_a_doubled_and_a_changed_version_are_told(tmp_path, tables):
    def lose_one(rows: pa.Table) -> pa.Table:
        return rows.filter(pa.compute.not_equal(rows["_offset"], 4))

    rewritten(tables[0], lose_one)
    check = checked(tmp_path)
    assert [("'id': 3" in o, "has no open version" in o) for o in check.offences] == [(True, True)]
    rewritten(tables[0], lambda rows: pa.concat_tables([rows, rows.slice(0, 1)]))
    assert checked(tmp_path).total_offences > 1


def test_versions_that_overlap_and_keys_with_two_open_ones_are_told(tmp_path, tables):
    def reopen(rows: pa.Table) -> pa.Table:
        ends = [
            None if o == 0 else t
            for o, t in zip(rows["_offset"].to_pylist(), rows["valid_to"].to_pylist(), strict=True)
        ]
        return with_column(rows, "valid_to", ends)

    rewritten(tables[0], reopen)
    offences = checked(tmp_path).offences
    assert any("open, though another follows" in o and f"{TOPIC}/0/0" in o for o in offences)
    assert any("not in the current state" in o for o in offences)

    def early(rows: pa.Table) -> pa.Table:
        begins = dict(zip(rows["_offset"].to_pylist(), rows["valid_from"].to_pylist(), strict=True))
        return with_column(reopened(rows), "valid_from", [begins[1] if o == 5 else begins[o] for o in begins])

    def reopened(rows: pa.Table) -> pa.Table:
        ends = dict(zip(rows["_offset"].to_pylist(), rows["valid_to"].to_pylist(), strict=True))
        begins = dict(zip(rows["_offset"].to_pylist(), rows["valid_from"].to_pylist(), strict=True))
        return with_column(rows, "valid_to", [begins[2] if o == 0 else ends[o] for o in ends])

    rewritten(tables[0], early)
    (offence,) = checked(tmp_path).offences
    assert "lasts until" in offence
    assert f"{TOPIC}/0/1" in offence


def test_tables_that_do_not_get_to_the_same_record_are_told(tmp_path, tables):
    land(tables[1], slice_of([event("c", 7, "x", 40)], len(EVENTS), schema=timed()))
    (offence,) = checked(tmp_path).offences
    assert "do not get to the same record: 6 and 7 in partition 0" in offence


def test_a_history_that_is_not_there_is_told(tmp_path, tables):
    tables[0].table.catalog.drop_table("silver.things_history")
    (offence,) = checked(tmp_path).offences
    assert "there is no table silver.things_history" in offence
