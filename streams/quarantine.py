"""Rows that leave a flow: which, why, and how they are written to `ops.quarantine`.

A row is *quarantined* when it breaks a rule: it is kept whole, key and value as received. It is *dropped* when a named
rule says that it is not wanted (a repeat, a tombstone): then only its coordinates and the rule are kept, so that every
record of a source can be accounted for.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.kafka.columns import Chunk

TOPIC = "ops.quarantine"
CONTRACT = "Quarantined"

Disposition = Literal["quarantined", "dropped"]
Ints = npt.NDArray[np.int64]

UTC_MICROS = pa.timestamp("us", "UTC")


@dataclass(frozen=True)
class Departure:
    """Rows of a chunk (ascending indexes) that left by one rule; `reasons` has one text a row."""

    rows: Ints
    disposition: Disposition
    rule: str
    reasons: pa.StringArray
    contract: str | None = None


def texts(reason: str | pa.Array | Iterable[str], rows: int) -> pa.StringArray:
    """One text for all rows, or one a row; null becomes "null"."""
    if isinstance(reason, str):
        return pa.repeat(reason, rows).cast(pa.string())
    if not isinstance(reason, pa.Array | pa.ChunkedArray):
        reason = pa.array(list(reason), pa.string())
    if isinstance(reason, pa.ChunkedArray):
        reason = reason.combine_chunks()
    return pc.fill_null(reason.cast(pa.string()), "null")


def quarantine_batch(
    stage: str,
    chunk: Chunk,
    departures: Iterable[Departure],
    schema_ids: Ints,
    topic_id: str | None,
    now: float | None = None,
) -> pa.RecordBatch | None:
    """Departures as rows of `ops.quarantine`, in offset order; None when there are none.

    `schema_ids` has one entry a row of the chunk, -1 for none; `topic_id` is of the chunk's topic. `now` is in
    seconds since the epoch.
    """
    found = [d for d in departures if len(d.rows)]
    if not found:
        return None
    rows = np.concatenate([d.rows for d in found])
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    take = pa.array(order)
    whole = pc.equal(_spread(found, [d.disposition for d in found]).take(take), "quarantined")
    ids = pa.array(schema_ids[rows].astype(np.int32), mask=schema_ids[rows] < 0)
    at = int((time.time() if now is None else now) * 1e6)
    columns: dict[str, Any] = {
        "stage": _repeat(stage, len(rows)),
        "source_topic": _repeat(chunk.topic, len(rows)),
        "source_partition": pa.array(np.full(len(rows), chunk.partition, np.int32)),
        "source_offset": pa.array(chunk.offsets[rows]),
        "disposition": _spread(found, [d.disposition for d in found]).take(take),
        "rule": _spread(found, [d.rule for d in found]).take(take),
        "reason": pa.concat_arrays([d.reasons for d in found]).take(take),
        "contract": _spread(found, [d.contract for d in found]).take(take),
        "key": _kept(chunk.keys, rows, whole),
        "value": _kept(chunk.values, rows, whole),
        "kafka_timestamp": pa.array(chunk.timestamps[rows] * 1000).cast(UTC_MICROS),
        "quarantined_at": pa.array(np.full(len(rows), at, np.int64)).cast(UTC_MICROS),
        "schema_id": ids,
        "source_topic_id": _repeat(topic_id, len(rows)),
    }
    return pa.RecordBatch.from_pydict(columns)


def _repeat(text: str | None, rows: int) -> pa.StringArray:
    return pa.repeat(pa.scalar(text, pa.string()), rows)


def _spread(departures: list[Departure], values: list[Any]) -> pa.StringArray:
    lengths = [len(d.rows) for d in departures]
    return pa.array(values, pa.string()).take(pa.array(np.repeat(np.arange(len(values)), lengths)))


def _kept(column: pa.BinaryArray, rows: Ints, whole: pa.BooleanArray) -> pa.BinaryArray:
    return pc.if_else(whole, column.take(pa.array(rows)), pa.scalar(None, pa.binary()))
