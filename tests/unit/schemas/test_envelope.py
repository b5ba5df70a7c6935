import json

import numpy as np
import pyarrow as pa
import pytest

from headrace.errors import ContractError
from schemas import envelope
from schemas.envelope import NOWHERE, Position

ROW = pa.struct([("id", pa.int64()), ("name", pa.string())])
SOURCE = pa.struct(
    [(n, pa.string()) for n in ("name", "snapshot", "sequence", "schema", "table")]
    + [("ts_ms", pa.int64()), ("lsn", pa.int64())]
)
BLOCK = pa.struct([("id", pa.string()), ("total_order", pa.int64())])
SCHEMA = pa.schema([("before", ROW), ("after", ROW), ("source", SOURCE), ("transaction", BLOCK), ("op", pa.string())])


def event(op="u", commit=None, order=None, before=None, after=None, **source):
    said = {
        "sequence": json.dumps([None if commit is None else str(commit), "7"]),
        "schema": "public",
        "table": "orders",
        "ts_ms": 5,
        "lsn": 1,
    }
    return {
        "before": before,
        "after": after,
        "op": op,
        "source": said | source,
        "transaction": None if order is None else {"id": "1:1", "total_order": order},
    }


def batch(*events):
    return pa.RecordBatch.from_pylist(list(events), schema=SCHEMA)


def test_positions_of_changes_and_of_a_snapshot():
    lsn, order = envelope.positions(batch(event("r"), event("c", None, 1, lsn=3), event("u", 24023104, 9)))
    assert (lsn.tolist(), order.tolist()) == ([-1, 3, 24023104], [-1, 1, 9])
    assert lsn.dtype == order.dtype == np.int64


def test_a_row_of_a_snapshot_is_where_the_log_was():
    rows = [
        event("r", lsn=9),
        event("r", 24023104, lsn=None, snapshot="incremental"),
        event("r", lsn=None, snapshot="incremental"),
        event("r", lsn=None, snapshot="incremental", sequence=None),
    ]
    assert envelope.reached(batch(*rows)).tolist() == [9, 24023104, -1, -1]


@pytest.mark.parametrize(
    ("bad", "place"),
    [
        (event("u", 5), "provide.transaction.metadata"),
        (event("u", 5, 1, sequence=None), "source.sequence"),
        (event("u", 5, 1, sequence='["99999999999999999999"]'), "source.sequence"),
        (event("u", None, 1, lsn=None), "source.lsn"),
    ],
)
def test_changes_without_a_position_are_refused(bad, place):
    with pytest.raises(ContractError, match=place):
        envelope.positions(batch(event("r"), bad))


def test_other_databases_are_refused_by_name():
    rows = pa.RecordBatch.from_pylist([{"op": "c", "source": {"scn": "81"}}])
    with pytest.raises(ContractError, match=r"not known.*Postgres, MySQL and MariaDB"):
        envelope.positions(rows)


def test_changes_without_a_place_are_told_one_by_one():
    events = [
        event("c", 5, 1),
        event("u", 5),
        event("u", 5, 2, sequence=None),
        event("c", None, 1),
        event("c", None, 1, lsn=None),
        event("r", sequence=None),
        event("t", 6, 1),
    ]
    lacking = envelope.unplaced(batch(*events))
    assert lacking.tolist() == [False, True, True, False, True, False, False]
    high, _ = envelope.positions(batch(*events).filter(pa.array(~lacking)))
    assert high.tolist() == [5, 1, -1, 6]
    assert envelope.unplaced(batch()).tolist() == []
    without = batch(event("c", 5, 1)).drop_columns(["transaction"])
    assert envelope.unplaced(without).tolist() == [False], "none of its changes could say"


def test_an_empty_batch_has_no_positions():
    lsn, order = envelope.positions(batch())
    assert len(lsn) == len(order) == len(envelope.after_position(lsn, order)) == 0
    assert envelope.highest(lsn, order, Position(3, 1)) == Position(3, 1)


def test_rows_before_and_after_respect_missing_structs_and_slices():
    both = batch(event("d", 1, 1, before={"id": 1, "name": "a"}), event("c", 1, 2, after={"id": 2, "name": None}))
    assert envelope.row_batch(both, "before").to_pylist() == [{"id": 1, "name": "a"}, {"id": None, "name": None}]
    tail = both.slice(1)
    assert envelope.row_batch(tail, "after").to_pylist() == [{"id": 2, "name": None}]
    assert envelope.row_batch(tail, "before").to_pylist() == [{"id": None, "name": None}]
    assert envelope.has_row(both, "after").to_pylist() == [False, True]


def test_a_struct_that_is_null_hides_what_lies_under_it():
    under = pa.array([1, 2], pa.int64())
    hidden = pa.StructArray.from_arrays([under, pa.array(["x", "y"])], fields=list(ROW), mask=pa.array([True, False]))
    rows = pa.RecordBatch.from_arrays([hidden], names=["before"])
    assert envelope.row_batch(rows, "before").to_pylist() == [{"id": None, "name": None}, {"id": 2, "name": "y"}]


def test_table_time_snapshot_and_unavailable():
    rows = batch(event("r"), event("c", 1, 1, table="devices", ts_ms=None))
    assert envelope.table_of(rows).to_pylist() == ["public.orders", "public.devices"]
    assert envelope.is_of(rows, "shop.public.orders").to_pylist() == [True, False]
    assert envelope.source_time(rows).tolist() == [5, -1]
    assert envelope.snapshot_mask(rows).to_pylist() == [True, False]
    for column in (pa.array(["x", envelope.UNAVAILABLE, None]), pa.array([b"x", envelope.UNAVAILABLE.encode(), None])):
        assert envelope.unavailable_mask(column).to_pylist() == [False, True, False]
    assert envelope.unavailable_mask(pa.array([1])).to_pylist() == [False]


@pytest.mark.parametrize(
    ("table", "topic", "same"),
    [
        ("order$items", "shop.public.order_items", True),
        ("unit price", "shop.public.unit_price", True),
        ("Stückpreis", "shop.public.St_ckpreis", True),
        ("\U0001f600", "shop.public.__", True),
        ("v1.orders", "shop.public.v1.orders", True),
        ("order-items", "shop.public.order-items", True),
        ("order-items", "shop.public.order_items", False),
        ("v2.orders", "shop.public.v1.orders", False),
        ("orders", "shop.public.reorders", False),
        ("orders", "shop.nonpublic.orders", False),
    ],
)
def test_a_topic_is_its_tables_whatever_characters_topics_may_not_have(table: str, topic: str, same: bool) -> None:
    source = pa.array([{"schema": "public", "table": table}, {"schema": "public", "table": None}, None])
    rows = pa.RecordBatch.from_arrays([source], ["source"])
    assert envelope.is_of(rows, topic).to_pylist() == [same, None, None]


def test_every_form_of_the_placeholder_is_known():
    """As Debezium 3.6 writes it for unchanged large values of text, hstore and arrays."""
    text = envelope.UNAVAILABLE
    codes = list(text.encode())
    for placeholder, other, kind in (
        (text, "x", pa.string()),
        (text, text + "!", pa.large_string()),
        (f'{{"{text}":"{text}"}}', "{}", pa.string()),
        (text.encode(), b"", pa.binary()),
        ([text], [text, text], pa.list_(pa.string())),
        (["b68a35a7-17ad-35b3-af2a-ae46edb4545a"], [None], pa.list_(pa.string())),
        ([text.encode()], [b"x"], pa.list_(pa.binary())),
        (codes, codes[:-1], pa.list_(pa.int32())),
        (codes, [*codes, 1], pa.list_(pa.int64())),
        (codes, [*codes[:-1], None], pa.list_(pa.int32())),
        ([(text, text)], [("a", text)], pa.map_(pa.string(), pa.string())),
    ):
        column = pa.array([other, placeholder, None, other, placeholder], kind)
        assert envelope.unavailable_mask(column).to_pylist() == [False, True, False, False, True], kind
        assert envelope.unavailable_mask(column.slice(1, 2)).to_pylist() == [True, False], kind
        assert envelope.unavailable_mask(column.slice(0, 1)).to_pylist() == [False], kind
    days = pa.array([codes, [1]], pa.list_(pa.int32())).cast(pa.list_(pa.date32()))
    assert envelope.unavailable_mask(days).to_pylist() == [True, False]


def test_recognises_envelopes_and_their_row():
    row = {"type": "record", "name": "Value", "fields": [{"name": "id", "type": "long"}]}
    avro = {
        "type": "record",
        "name": "Envelope",
        "fields": [
            {"name": "before", "type": ["null", row]},
            {"name": "after", "type": ["null", "Value"]},
            {"name": "source", "type": {"type": "record", "name": "Source", "fields": []}},
            {"name": "op", "type": "string"},
        ],
    }
    assert envelope.is_envelope(avro)
    assert envelope.is_envelope(SCHEMA)
    assert not envelope.is_envelope(row)
    assert not envelope.is_envelope(pa.schema([(n, pa.string()) for n in ("before", "after", "source", "op")]))
    assert envelope.row_schema(avro) == row
    with pytest.raises(ContractError):
        envelope.row_schema(row)


def test_position_reads_what_it_writes():
    assert Position.parse(str(Position(24023104, 3))) == Position(24023104, 3)
    assert Position.parse(str(NOWHERE)) == NOWHERE
    with pytest.raises(ContractError, match="high:low"):
        Position.parse("24023104")
