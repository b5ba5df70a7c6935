from __future__ import annotations

from datetime import time, timedelta
from typing import Any

import pyarrow as pa
import pytest

from governance.verify import mariadb
from governance.verify.current import _in_log_order, _place
from governance.verify.kafka import Record
from governance.verify.mariadb import Visible
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


def test_rows_of_a_snapshot_keep_their_turn_among_the_changes_of_their_partition() -> None:
    changes = [(record(0, 0), event("c", 1, 700)), (record(0, 1), event("r", 1, 0)), (record(1, 0), event("c", 1, 600))]
    order = [(at.partition, at.offset) for at, _, _ in _in_log_order(changes)]
    assert order == [(1, 0), (0, 0), (0, 1)]


def test_a_time_of_day_is_one_and_an_interval_is_not() -> None:
    assert mariadb._value(timedelta(hours=23, minutes=4, seconds=5, microseconds=6)) == time(23, 4, 5, 6)
    assert mariadb._value(timedelta(hours=30)) == timedelta(hours=30)
    assert mariadb._value("x") == "x"
