"""Dropping repeats by position, against a plain loop, over changelogs as a restarted connector writes them."""

import json
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import envelope
from schemas.coordinates import drop_replays
from schemas.envelope import NOWHERE


class Change(NamedTuple):
    """A change as Debezium places it: `commit` is the last commit before its transaction, None where a slot begins."""

    commit: int | None
    lsn: int
    order: int


@st.composite
def changelogs(draw):
    """Transactions of several changes behind a snapshot, over one or more replication slots; then, at crashes, the log
    goes on from somewhere earlier."""
    wal = draw(st.sampled_from([1, 24_000_000, 2**53]))
    commit: int | None = None
    changes = []
    for size in draw(st.lists(st.integers(1, 5), max_size=8)):
        for order in range(1, size + 1):
            # Rows of one statement share a place in the log.
            wal += draw(st.integers(0, 9))
            changes.append(Change(commit, wal, order))
        commit = wal = wal + draw(st.integers(1, 500))
        if draw(st.integers(0, 4)) == 0:
            commit, wal = None, wal + 1
    log, at = [None] * draw(st.integers(0, 4)), 0
    for seen, back in draw(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=4)):
        log += changes[at : at + seen]
        at = max(0, min(at + seen, len(changes)) - back)
        log += [None] * draw(st.integers(0, 2))
    return log + changes[at:], changes


SCHEMA = pa.schema(
    [
        ("op", pa.string()),
        ("source", pa.struct([("lsn", pa.int64()), ("sequence", pa.string())])),
        ("transaction", pa.struct([("total_order", pa.int64())])),
    ]
)


def as_batch(log):
    rows = [
        {"op": "r", "source": {"lsn": 1}}
        if change is None
        else {
            "op": "u",
            "source": {
                "lsn": change.lsn,
                "sequence": json.dumps([change.commit and str(change.commit), str(change.lsn)]),
            },
            "transaction": {"total_order": change.order},
        }
        for change in log
    ]
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


@settings(deadline=None)
@given(changelogs(), st.data())
def test_each_change_is_kept_once_however_the_log_is_cut_into_batches(made, data):
    log, changes = made
    kept, watermark, at = [], NOWHERE, 0
    while at < len(log):
        size = data.draw(st.integers(1, len(log) - at))
        lsn, order = envelope.positions(as_batch(log[at : at + size]))
        mask = envelope.after_position(lsn, order, envelope.Position.parse(str(watermark)))
        kept += [change for change, keep in zip(log[at : at + size], mask, strict=True) if keep]
        watermark = envelope.highest(lsn, order, watermark)
        at += size
    assert [change for change in kept if change is not None] == changes
    assert kept.count(None) == log.count(None)
    assert (watermark == NOWHERE) == (not changes)


PLACES = st.lists(st.one_of(st.just((-1, -1)), st.tuples(st.integers(0, 5), st.integers(0, 5))), max_size=30)


@settings(deadline=None)
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


@settings(deadline=None)
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
