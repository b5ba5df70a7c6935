from __future__ import annotations

from datetime import time, timedelta
from typing import Any

import pyarrow as pa
import pytest

from governance.verify import mariadb
from governance.verify.current import _in_log_order, _Keyed
from governance.verify.kafka import Record
from governance.verify.mariadb import Visible
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


def test_a_truncate_in_one_partition_removes_what_was_before_it_in_all() -> None:
    held = [{"id": 1, "_kafka_partition": 0, "_offset": 0}, {"id": 2, "_kafka_partition": 1, "_offset": 0}]
    held += [{"id": 3, "_kafka_partition": 2, "_offset": 9}]
    state = _Keyed(("id",), held, {2: ((1 << 32) + 900, 1)})
    changes = [
        (record(0, 1), event("t", 1, 500)),
        (record(1, 1), event("c", 1, 400, after={"id": 4})),
        (record(1, 2), event("c", 1, 600, after={"id": 5})),
    ]
    for at, change, position in _in_log_order(changes):
        assert position is not None
        state.apply(at, change, position)
    assert not state.differs([{"id": 3}, {"id": 5}])


def test_rows_of_a_snapshot_keep_their_turn_among_the_changes_of_their_partition() -> None:
    changes = [(record(0, 0), event("c", 1, 700)), (record(0, 1), event("r", 1, 0)), (record(1, 0), event("c", 1, 600))]
    order = [(at.partition, at.offset) for at, _, _ in _in_log_order(changes)]
    assert order == [(1, 0), (0, 0), (0, 1)]


def test_a_time_of_day_is_one_and_an_interval_is_not() -> None:
    assert mariadb._value(timedelta(hours=23, minutes=4, seconds=5, microseconds=6)) == time(23, 4, 5, 6)
    assert mariadb._value(timedelta(hours=30)) == timedelta(hours=30)
    assert mariadb._value("x") == "x"
