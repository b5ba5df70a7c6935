"""Places in a binary log. The events are those that Debezium wrote of MariaDB 11.4, both ways of writing positions."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from headrace.errors import ContractError
from schemas import binlog, envelope

SOURCE = pa.struct(
    [(n, pa.string()) for n in ("snapshot", "db", "table", "file")]
    + [(n, pa.int64()) for n in ("ts_ms", "pos")]
    + [("row", pa.int32())]
)
BLOCK = pa.struct([("id", pa.string()), ("total_order", pa.int64())])
SCHEMA = pa.schema([("op", pa.string()), ("source", SOURCE), ("transaction", BLOCK)])
FILE = 2 << 32


def event(op: str, pos: int, row: int, order: int, gtid: str = "0-1-11", file: str | None = "binlog.000002") -> Any:
    source = {"file": file, "pos": pos, "row": row, "db": "inv", "table": "things", "ts_ms": 5000}
    return {"op": op, "source": source, "transaction": {"id": gtid, "total_order": order}}


def batch(*events: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(events), schema=SCHEMA)


def test_a_changed_key_and_rows_of_one_statement_have_places_of_their_own() -> None:
    rows = batch(
        event("u", 1929, 5, 8),
        event("d", 2306, 0, 9),
        event("c", 2306, 0, 10),
        event("d", 2306, 1, 11),
        event("c", 2306, 1, 12),
        event("c", 4, 0, 1, "0-1-12", "mysql-bin.000003"),
    )
    high, low = envelope.positions(rows)
    assert high.tolist() == [FILE + 1929, *[FILE + 2306] * 4, (3 << 32) + 4]
    assert low.tolist() == [11, 0, 1, 2, 3, 1]
    assert envelope.after_position(high, low).all()
    assert envelope.table_of(rows)[0].as_py() == "inv.things"
    assert envelope.is_of(rows, "shop.inv.things").to_pylist() == [True] * 6


def test_a_truncate_has_one_place_whatever_row_stands_in_it() -> None:
    first, again = (envelope.positions(batch(event("t", 991, row, 1))) for row in (7, 0))
    assert (first[0].tolist(), first[1].tolist()) == (again[0].tolist(), again[1].tolist()) == ([FILE + 991], [0])


def test_rows_of_a_snapshot_have_an_identity_instead_of_a_position() -> None:
    read = {"op": "r", "source": event("r", 1046, 0, 0)["source"], "transaction": None}
    rows = batch(read, event("c", 1046, 0, 1))
    assert [column.tolist() for column in envelope.positions(rows)] == [[-1, FILE + 1046], [-1, 1]]
    assert [column.tolist() for column in envelope.snapshot_identity(rows)] == [[FILE + 1046] * 2, [5000] * 2]


def test_a_log_that_hides_the_places_within_a_transaction_is_refused() -> None:
    """binlog_legacy_event_pos is off: an insert, an update of two rows, a delete."""
    shared = [event("c", 1789, 0, 1), event("u", 1789, 0, 2), event("u", 1789, 1, 3), event("d", 1789, 0, 4)]
    with pytest.raises(ContractError, match="binlog_legacy_event_pos"):
        envelope.positions(batch(*shared))
    with pytest.raises(ContractError, match="binlog_legacy_event_pos"):
        envelope.positions(batch(*shared[2:]))
    # One statement a transaction has its own places even so.
    assert len(envelope.positions(batch(*shared[1:3]))[0]) == 2


def test_repeats_with_lower_numbers_in_their_transaction_are_no_such_log() -> None:
    """A connector that resumed after the first three changes counts the others from one."""
    rows = batch(event("u", 1929, 3, 4), event("u", 1929, 4, 5), event("u", 1929, 3, 1), event("u", 1929, 4, 2))
    high, low = envelope.positions(rows)
    assert envelope.after_position(high, low).tolist() == [True, True, False, False]


@pytest.mark.parametrize("wrong", [{"file": None}, {"file": "binlog"}, {"pos": 1 << 32}, {"pos": -1}])
def test_changes_without_a_place_are_refused(wrong: dict[str, Any]) -> None:
    bad = event("c", 4, 0, 1)
    bad["source"] |= wrong
    with pytest.raises(ContractError, match=r"source\.file, source\.pos"):
        envelope.positions(batch(bad))


def test_places_of_an_empty_batch() -> None:
    assert [len(column) for column in envelope.positions(batch())] == [0, 0]
    assert binlog.has_place(batch().column("source"))
