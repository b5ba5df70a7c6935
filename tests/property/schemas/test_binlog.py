"""Dropping repeats of a binary log as a connector writes it that is killed and resumes, also inside of transactions."""

from typing import Any, NamedTuple

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import envelope
from schemas.envelope import NOWHERE, Position


class Change(NamedTuple):
    gtid: int
    number: int
    """Of the transaction's changes, from 1."""
    op: str
    file: int
    pos: int
    row: int


@st.composite
def binlogs(draw: st.DrawFn) -> list[Change]:
    changes, file, pos = [], draw(st.integers(1, 3)), 4
    for gtid in range(draw(st.integers(0, 6))):
        if draw(st.booleans()):
            file, pos = file + 1, draw(st.integers(4, 400))
        number = 0
        for kind in draw(st.lists(st.sampled_from(["c", "u", "d", "key", "t"]), min_size=1, max_size=3)):
            pos += draw(st.integers(1, 2**26))
            for row in range(1 if kind == "t" else draw(st.integers(1, 3))):
                for op in ("d", "c") if kind == "key" else (kind,):
                    number += 1
                    changes.append(Change(gtid, number, op, file, pos, row))
    return changes


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[Change]]:
    """What arrives in one partition: up to a kill, then again from a change that Connect had noted, which it never
    notes backwards. Numbers within the transaction begin anew there, and a truncate's row is any."""
    changes = draw(binlogs())
    runs, noted, end = [], 0, 0
    for _ in range(draw(st.integers(0, 3))):
        end = draw(st.integers(end, len(changes)))
        runs.append((noted, end))
        noted = draw(st.integers(noted, end))
    runs.append((noted, len(changes)))
    out = []
    for start, stop in runs:
        for change in changes[start:stop]:
            same = start and changes[start].gtid == change.gtid
            skipped = changes[start].number - 1 if same else 0
            row = draw(st.integers(0, 9)) if change.op == "t" else change.row
            source = {"file": f"binlog.{change.file:06}", "pos": change.pos, "row": row}
            block = {"id": f"0-1-{change.gtid}", "total_order": change.number - skipped}
            out.append({"op": change.op, "source": source, "transaction": block})
    return out, changes


SCHEMA = pa.schema(
    [
        ("op", pa.string()),
        ("source", pa.struct([("file", pa.string()), ("pos", pa.int64()), ("row", pa.int32())])),
        ("transaction", pa.struct([("id", pa.string()), ("total_order", pa.int64())])),
    ]
)


@settings(deadline=None)
@given(logs(), st.data())
def test_each_change_is_kept_once_however_the_log_is_cut_into_batches(made: Any, data: st.DataObject) -> None:
    log, changes = made
    kept, watermark, at = [], NOWHERE, 0
    while at < len(log):
        size = data.draw(st.integers(1, len(log) - at))
        high, low = envelope.positions(pa.RecordBatch.from_pylist(log[at : at + size], schema=SCHEMA))
        mask = envelope.after_position(high, low, Position.parse(str(watermark)))
        kept += [event for event, keep in zip(log[at : at + size], mask, strict=True) if keep]
        watermark = envelope.highest(high, low, watermark)
        at += size
    assert [(e["op"], e["transaction"]["id"], e["source"]["pos"]) for e in kept] == [
        (c.op, f"0-1-{c.gtid}", c.pos) for c in changes
    ]
