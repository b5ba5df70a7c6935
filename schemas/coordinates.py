"""Readers of a derived topic know a repeated row by the coordinates it carries, whatever replays interleave.

A derived record carries `source_offset`: the offset of the record as it first entered Kafka, and `source_topic`,
`source_partition`, `stage` where several sequences share a partition. A *lane* is what one increasing sequence belongs
to: "" where there is one source, "<stage>|<source_topic>|<source_partition>" where there are several, and after that
"|<source_topic_id>" where the row has one: the offsets of a topic that was made anew begin again. A reader keeps the
highest source offset per lane with its own state and drops what is not above it. This is exact because writers start
at a committed offset whose predecessors are all in the log and write in order: first appearances only increase.

Where one record yields several rows they also carry `source_index` (0, 1, 2, ...), and a lane's watermark is
`source_offset * MAX_ROWS + source_index`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import ContractError

MAX_ROWS = 1 << 20

_LANE_FIELDS = ("stage", "source_topic", "source_partition")
TOPIC_ID = "source_topic_id"


def lanes(batch: pa.RecordBatch) -> pa.StringArray | None:
    """The lane of each row; None when all rows are of the one lane ""."""
    present = [name for name in _LANE_FIELDS if name in batch.schema.names]
    if not present:
        return None
    parts = [batch.column(name).cast(pa.string()) for name in present]
    names = pc.binary_join_element_wise(*parts, "|", null_handling="replace", null_replacement="")
    if TOPIC_ID not in batch.schema.names:
        return names
    return pc.binary_join_element_wise(names, batch.column(TOPIC_ID).cast(pa.string()), "|", null_handling="skip")


def sequence(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """What increases along a lane. Raises `ContractError` when a row lacks its coordinates."""
    offsets = _integers(batch, "source_offset")
    if "source_index" not in batch.schema.names:
        return offsets
    index = _integers(batch, "source_index")
    if len(index) and (index.min() < 0 or index.max() >= MAX_ROWS):
        raise ContractError(f"is outside 0..{MAX_ROWS - 1}", where="source_index", hint="yield fewer rows a record")
    return offsets * MAX_ROWS + index


def drop_replays(batch: pa.RecordBatch, watermarks: Mapping[str, int]) -> tuple[pa.BooleanArray, dict[str, int]]:
    """Which rows are new (true), and the watermarks after them, by lane.

    Rows are of one partition in offset order; `watermarks` holds the highest sequence number seen per lane and is
    not changed. A row that repeats an earlier one of the same batch is dropped too.
    """
    numbers = sequence(batch)
    after = dict(watermarks)
    if not len(numbers):
        return pa.array([], pa.bool_()), after
    names = lanes(batch)
    if names is None:
        keep, after[""] = _above(numbers, after.get("", -1))
        return pa.array(keep), after
    coded = names.dictionary_encode()
    codes = coded.indices.to_numpy(zero_copy_only=False)
    keep = np.empty(len(numbers), np.bool_)
    for code, lane in enumerate(coded.dictionary.to_pylist()):
        rows = np.flatnonzero(codes == code)
        keep[rows], after[lane] = _above(numbers[rows], after.get(lane, -1))
    return pa.array(keep), after


def _above(numbers: npt.NDArray[np.int64], watermark: int) -> tuple[npt.NDArray[np.bool_], int]:
    before = np.empty(len(numbers), np.int64)
    before[0] = watermark
    np.maximum(np.maximum.accumulate(numbers[:-1]), watermark, out=before[1:])
    return numbers > before, max(watermark, int(numbers.max()))


def _integers(batch: pa.RecordBatch, name: str) -> npt.NDArray[np.int64]:
    column: Any = batch.column(name) if name in batch.schema.names else None
    if column is None or not pa.types.is_integer(column.type) or column.null_count:
        raise ContractError(
            "rows of a derived topic without coordinates", where=name, hint="declare it as a long that is not null"
        )
    out: npt.NDArray[np.int64] = column.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
    return out
