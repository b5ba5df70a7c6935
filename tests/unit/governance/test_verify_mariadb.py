from __future__ import annotations

import struct
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from governance.verify import mariadb
from governance.verify.current import _in_log_order, _place
from governance.verify.kafka import Record
from governance.verify.mariadb import Visible, from_mariadb
from governance.verify.states import Keyed, Keyless
from schemas import binlog


def event(op: str, file: int, pos: int, row: int = 0, **sides: Any) -> dict[str, Any]:
    source = {"file": f"binlog.{file:06}", "pos": pos, "row": row}
    return {"op": op, "source": source, "before": None, "after": None} | sides


def record(partition: int, offset: int) -> Record:
    return Record("t", partition, offset, 0, None, None)


def test_a_snapshot_sees_what_lies_before_its_place() -> None:
    seen = Visible(9, 4000)
    places = [(8, 9999), (9, 3999), (9, 4000), (10, 4)]
    assert [seen.shows(event("c", *place)) for place in places] == [True, True, False, False]
    assert Visible(999_999, 4).shows(event("c", 1_000_000, 4)) is False


@pytest.mark.parametrize(("op", "row"), [("c", 3), ("d", 3), ("u", 0), ("t", 5)])
def test_positions_are_those_of_the_pipeline(op: str, row: int) -> None:
    one = event(op, 2, 1789, row)
    source = pa.array([one["source"]], pa.struct([("file", pa.string()), ("pos", pa.int64()), ("row", pa.int32())]))
    high, low = binlog.positions(source, pa.array([op]), pa.nulls(1), pa.array([True]).to_numpy(zero_copy_only=False))
    assert mariadb.position(one) == (high[0], low[0])
    assert mariadb.position(event("r", 2, 1789)) is None


def applied(state: Keyed | Keyless, changes: list[tuple[Record, dict[str, Any]]]) -> Keyed | Keyless:
    for at, change, _ in _in_log_order(changes):
        state.apply(at, change, _place(change))
    return state


def test_a_truncate_in_one_partition_removes_what_was_before_it_in_all() -> None:
    held: list[dict[str, Any]] = [{"id": n, "_kafka_partition": n, "_offset": 0} for n in range(3)]
    held += [{"id": 3, "_kafka_partition": 2, "_offset": 9, "_position": (1 << 32) + 900, "_order": 1}]
    held += [{"id": 6, "_kafka_partition": 2, "_offset": 8, "_position": (1 << 32) + 400, "_order": 1}]
    changes = [
        (record(0, 1), event("t", 1, 500)),
        (record(1, 1), event("c", 1, 400, after={"id": 4})),
        (record(1, 2), event("c", 1, 600, after={"id": 5})),
    ]
    assert not applied(Keyed(("id",), held), changes).differs([{"id": 3}, {"id": 5}])


def test_a_change_from_before_the_truncate_that_a_table_knows_is_not_applied() -> None:
    changes = [(record(1, 1), event("r", 1, 400, after={"id": 4})), (record(1, 2), event("c", 1, 600, after={"id": 5}))]
    for state in (Keyed(("id",), []), Keyless([])):
        assert not applied(state.raised(((1 << 32) + 500, 0)), changes).differs([{"id": 5}])


def test_rows_without_a_key_are_changed_by_what_they_were() -> None:
    changes = [
        (record(0, 1), event("u", 1, 1, before={"n": 1}, after={"n": 2, "s": None})),
        (record(0, 2), event("d", 1, 2, before={"n": 1, "s": None})),
        (record(0, 3), event("c", 1, 3, after={"n": 3})),
    ]
    state = applied(Keyless([{"n": 1}] * 3), changes)
    assert not state.differs([{"n": 1}, {"n": 2}, {"n": 3}])
    assert state.differs([{"n": 1}, {"n": 1}, {"n": 3}])
    owed = applied(state, [(record(0, 4), event("d", 1, 4, before={"n": 9}))])
    assert owed.differs([{"n": 1}, {"n": 2}, {"n": 3}])


def test_a_truncate_takes_rows_without_a_key_too_and_what_was_owed_of_them() -> None:
    later = {"n": 2, "_kafka_partition": 2, "_offset": 9, "_position": (1 << 32) + 900, "_order": 1}
    changes = [
        (record(0, 1), event("d", 1, 400, before={"n": 9})),
        (record(0, 2), event("t", 1, 500)),
        (record(0, 3), event("c", 1, 600, after={"n": 3})),
    ]
    state = applied(Keyless([{"n": 1}, later]), changes)
    assert not state.differs([{"n": 2}, {"n": 3}])
    behind = applied(state, [(record(1, 1), event("c", 1, 450, after={"n": 4}))])
    assert not behind.differs([{"n": 2}, {"n": 3}])


def test_rows_of_a_snapshot_keep_their_turn_among_the_changes_of_their_partition() -> None:
    changes = [(record(0, 0), event("c", 1, 700)), (record(0, 1), event("r", 1, 0)), (record(1, 0), event("c", 1, 600))]
    order = [(at.partition, at.offset) for at, _, _ in _in_log_order(changes)]
    assert order == [(1, 0), (0, 0), (0, 1)]


@pytest.mark.parametrize(
    ("value", "type_", "lake", "form"),
    [
        (timedelta(hours=23, minutes=4, seconds=5, microseconds=6), "time", pa.time64("us"), time(23, 4, 5, 6)),
        (timedelta(hours=30), "time", pa.time64("us"), timedelta(hours=30)),
        (timedelta(seconds=-1), "time", pa.time64("us"), timedelta(seconds=-1)),
        ("0000-00-00", "date", pa.date32(), None),
        ("2024-00-10 01:02:03", "datetime", pa.timestamp("us"), None),
        ("0000-00-00", "varchar", pa.string(), "0000-00-00"),
        (date(2024, 2, 29), "date", pa.date32(), date(2024, 2, 29)),
        (b"\x01", "bit", pa.bool_(), True),
        (b"\x80\x31", "bit", pa.binary(), b"\x31\x80"),
        (b"\x01\x00", "bit", pa.binary(), b"\x00\x01"),
        (b"\x00\x00", "bit", pa.binary(), b""),
        (0.1, "float", pa.float32(), 0.10000000149011612),
        (0.1, "double", pa.float64(), 0.1),
        (2**64 - 1, "bigint", pa.decimal128(20, 0), Decimal(2**64 - 1)),
        (2**63 - 1, "bigint", pa.int64(), 2**63 - 1),
        (Decimal("1.500"), "decimal", pa.string(), "1.5"),
        (Decimal("1.500"), "decimal", pa.decimal128(5, 3), Decimal("1.5")),
        (None, "bit", pa.bool_(), None),
    ],
)
def test_a_value_has_the_form_of_its_column_in_the_lake(value: Any, type_: str, lake: pa.DataType, form: Any) -> None:
    found = from_mariadb(value, type_, lake)
    assert (found, type(found)) == (form, type(form))


def test_a_geometry_is_its_reference_system_and_its_binary() -> None:
    wkb = struct.pack("<BIdd", 1, 1, 1.5, -2)
    stored = struct.pack("<I", 4326) + wkb
    assert from_mariadb(stored, "point", pa.null()) == {"x": 1.5, "y": -2.0, "wkb": wkb, "srid": 4326}
    line = struct.pack("<BII", 1, 2, 0)
    assert from_mariadb(struct.pack("<I", 0) + line, "geometry", pa.null()) == {"wkb": line}
    assert from_mariadb(stored, "geometry", pa.null()) == {"wkb": wkb, "srid": 4326}


def test_zeros_at_the_end_of_bits_say_nothing() -> None:
    forms = mariadb.Forms({"b": "bit", "v": "varbinary"}, {"b": pa.binary(), "v": pa.binary()})
    assert forms.held({"b": b"\x01\x00", "v": b"\x01\x00"}) == {"b": b"\x01", "v": b"\x01\x00"}
    assert forms.held({"b": True, "v": None}) == {"b": True, "v": None}


def test_a_zero_timestamp_is_null_in_both_of_its_forms() -> None:
    forms = mariadb.Forms({"t": "timestamp", "d": "datetime"}, {})
    epoch = datetime(1970, 1, 1)
    assert forms.held({"t": epoch, "d": epoch}) == {"t": None, "d": epoch}
