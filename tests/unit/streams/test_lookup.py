"""What a lookup makes of values that Debezium could not read, of truncations, and of a snapshot's beginning and end."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from schemas.envelope import UNAVAILABLE
from streams.lookup import Lookup, LookupTable
from tests.unit.streams.change_topic import ID, NAME, ChangeTopic, envelope_of, event
from tests.unit.streams.support import changes


def row(key: int, name: str | None, number: int | None = None) -> dict[str, Any]:
    return {"id": key, "name": name, "number": number}


WIDE = envelope_of(ID, NAME, {"name": "number", "type": ["null", "int"]})


@pytest.mark.parametrize("cuts", [(), (1,), (2,), (3,), (1, 2, 3, 4), (6,)])
def test_a_value_that_could_not_be_read_stays_what_it_was(cuts: tuple[int, ...]) -> None:
    events = [
        event("c", None, row(1, "large"), 10),
        event("c", None, row(2, "other"), 11),
        event("u", None, row(1, UNAVAILABLE, 1), 12),
        event("u", None, row(1, UNAVAILABLE, 2), 13),
        event("u", None, row(2, "new", 3), 14),
        event("u", None, row(2, UNAVAILABLE, 4), 15),
        event("c", None, row(3, "gone"), 16),
        event("d", row(3, None), None, 17),
        event("c", None, row(3, UNAVAILABLE), 18),
        event("u", None, row(4, UNAVAILABLE), 19),
    ]
    topic = ChangeTopic({1: WIDE})
    pieces = zip((0, *cuts), (*cuts, len(events)), strict=True)
    chunks = [topic.chunk(*((1, e) for e in events[start:stop])) for start, stop in pieces]
    assert topic.lookup("name", "number", chunks=chunks) == [
        {"id": 1, "name": "large", "number": 2},
        {"id": 2, "name": "new", "number": 4},
        {"id": 3, "name": None, "number": None},
        {"id": 4, "name": None, "number": None},
    ]


def created(key: int, lsn: int) -> tuple[int, dict[str, Any]]:
    return 1, event("c", None, row(key, "n"), lsn)


def read(key: int, lsn: int) -> tuple[int, dict[str, Any]]:
    return 1, event("r", None, row(key, "n"), lsn, snapshot="true")


@pytest.mark.parametrize("truncation_first", [True, False])
@pytest.mark.parametrize("cut", [True, False])
def test_a_truncation_takes_back_what_was_before_it_in_every_partition(truncation_first: bool, cut: bool) -> None:
    topic = ChangeTopic({1: WIDE})
    own = topic.chunk(read(5, 20), created(1, 30), (1, event("t", None, None, 100)), created(2, 300))
    rows = [read(6, 40), created(3, 10), created(4, 200), read(7, 250), (1, event("d", row(4, None), None, 260))]
    others = [topic.chunk(r, partition=1) for r in rows] if cut else [topic.chunk(*rows, partition=1)]
    chunks = [own, *others] if truncation_first else [*others, own]
    assert [r["id"] for r in topic.lookup("name", chunks=chunks)] == [2, 7]


def test_a_table_is_filled_again_after_a_truncation() -> None:
    topic = ChangeTopic({1: WIDE})
    chunks = [
        topic.chunk(created(1, 10), created(2, 11)),
        topic.chunk((1, event("t", None, None, 20))),
        topic.chunk(created(2, 30)),
    ]
    assert topic.lookup("name", chunks=chunks[:2]) == []
    assert [r["id"] for r in topic.lookup("name", chunks=chunks)] == [2]


def placeless(key: int) -> tuple[int, dict[str, Any]]:
    return 1, event("r", None, row(key, "n"), 0, snapshot="incremental", sequence=None)


@pytest.mark.parametrize("cuts", [(), (1,), (2,), (3,), (4,), (1, 2, 3, 4, 5)])
def test_a_row_without_a_place_is_taken_back_by_truncations_behind_it_alone(cuts: tuple[int, ...]) -> None:
    topic = ChangeTopic({1: WIDE})
    first, second = (1, event("t", None, None, 100)), (1, event("t", None, None, 200))
    events = [placeless(1), first, placeless(2), created(3, 150), second, placeless(4), created(5, 300)]
    pieces = zip((0, *cuts), (*cuts, len(events)), strict=True)
    chunks = [topic.chunk(*events[start:stop]) for start, stop in pieces]
    assert [r["id"] for r in topic.lookup("name", chunks=chunks)] == [4, 5]


DEVICE = pa.schema([("id", pa.int64()), ("site", pa.string())])


def marked(op: str, mark: str | None) -> pa.RecordBatch:
    batch = changes([(op, None, {"id": 1, "site": "s"}, 1)], DEVICE)
    source = batch.column("source")
    fields = [*source.type, pa.field("snapshot", pa.string())]
    parts = [*source.flatten(), pa.array([mark], pa.string())]
    at = batch.schema.get_field_index("source")
    return batch.set_column(at, "source", pa.StructArray.from_arrays(parts, fields=fields))


@pytest.mark.parametrize(
    ("mark", "over"),
    [
        ("first", False),
        ("first_in_data_collection", False),
        ("true", False),
        ("last_in_data_collection", True),
        ("last", True),
        ("incremental", True),
        (None, True),
    ],
)
def test_a_snapshot_is_over_with_its_last_row_or_a_change(mark: str | None, over: bool) -> None:
    table = LookupTable(Lookup("devices", "shop.public.devices", "id", ("site",)))
    table.apply(0, marked("r", mark))
    assert (len(table), table.complete) == (1, over)
    table.apply(0, marked("u", "false"))
    table.apply(0, marked("r", "first"))
    assert table.complete
