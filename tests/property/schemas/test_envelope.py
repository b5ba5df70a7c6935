"""Dropping repeats by position, against a plain loop, over changelogs as a restarted connector writes them."""

import json

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from schemas import envelope
from schemas.coordinates import drop_replays
from schemas.envelope import NOWHERE


@st.composite
def changelogs(draw):
    """Transactions of several changes behind a snapshot; then, at crashes, the log goes on from somewhere earlier."""
    log, lsn = [None] * draw(st.integers(0, 4)), draw(st.sampled_from([0, 24_000_000, 2**53]))
    changes = []
    for size in draw(st.lists(st.integers(1, 5), max_size=8)):
        changes += [(lsn, order) for order in range(1, size + 1)]
        lsn += draw(st.integers(1, 500))
    at = 0
    for seen, back in draw(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=4)):
        log += changes[at : at + seen]
        at = max(0, min(at + seen, len(changes)) - back)
        log += [None] * draw(st.integers(0, 2))
    return log + changes[at:], changes


def as_batch(log):
    rows = [
        {
            "op": "r" if place is None else "u",
            "source": {
                "lsn": 1,
                "sequence": None if place is None else json.dumps([str(place[0]) if place[0] else None, "9"]),
            },
            "transaction": None if place is None else {"total_order": place[1]},
        }
        for place in log
    ]
    schema = pa.schema(
        [
            ("op", pa.string()),
            ("source", pa.struct([("lsn", pa.int64()), ("sequence", pa.string())])),
            ("transaction", pa.struct([("total_order", pa.int64())])),
        ]
    )
    return pa.RecordBatch.from_pylist(rows, schema=schema)


@given(changelogs(), st.data())
def test_each_change_is_kept_once_however_the_log_is_cut_into_batches(made, data):
    log, changes = made
    kept, watermark, at = [], NOWHERE, 0
    while at < len(log):
        size = data.draw(st.integers(1, len(log) - at))
        lsn, order = envelope.positions(as_batch(log[at : at + size]))
        mask = envelope.after_position(lsn, order, watermark)
        kept += [place for place, keep in zip(log[at : at + size], mask, strict=True) if keep]
        watermark = envelope.highest(lsn, order, watermark)
        at += size
    assert [place for place in kept if place is not None] == changes
    assert kept.count(None) == log.count(None)
    assert watermark == (max(changes) if changes else NOWHERE)


PLACES = st.lists(st.one_of(st.just((-1, -1)), st.tuples(st.integers(0, 5), st.integers(0, 5))), max_size=30)


@given(PLACES, st.tuples(st.integers(-1, 5), st.integers(-1, 5)))
def test_running_maximum_equals_a_loop(places, start):
    expected, top = [], start
    for place in places:
        expected.append(place == (-1, -1) or place > top)
        top = max(top, place)
    lsn = np.array([p[0] for p in places], np.int64)
    order = np.array([p[1] for p in places], np.int64)
    assert envelope.after_position(lsn, order, envelope.Position(*start)).tolist() == expected
    assert envelope.highest(lsn, order, envelope.Position(*start)) == top


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9)), max_size=30),
    st.dictionaries(st.sampled_from("ab"), st.integers(0, 5)),
)
def test_replays_of_several_lanes_equal_a_loop(rows, start):
    expected, marks = [], {f"{lane}|t|0": number for lane, number in start.items()}
    batch = pa.RecordBatch.from_pydict(
        {
            "stage": pa.array([r[0] for r in rows], pa.string()),
            "source_topic": pa.array(["t"] * len(rows), pa.string()),
            "source_partition": pa.array([0] * len(rows), pa.int32()),
            "source_offset": pa.array([r[1] for r in rows], pa.int64()),
        }
    )
    mask, after = drop_replays(batch, marks)
    for lane, number in ((f"{lane}|t|0", number) for lane, number in rows):
        expected.append(number > marks.get(lane, -1))
        marks[lane] = max(number, marks.get(lane, -1))
    assert mask.to_pylist() == expected
    assert after == marks
