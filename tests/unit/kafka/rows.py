"""Rows as tuples, and the same rows through columns: what the tests of this package compare."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.kafka.columns import HEADERS, Chunk
from headrace.kafka.writer import Columns

# (key, value, timestamp in ms, ((header key, header value), ...))
Row = tuple[bytes | None, bytes | None, int, tuple[tuple[str, bytes | None], ...]]


def arrays(rows: list[Row]) -> tuple[Any, Any, Any, Any]:
    """Keys, values, timestamps and headers."""
    headers = [[{"key": key, "value": value} for key, value in row[3]] for row in rows]
    return (
        pa.array([row[0] for row in rows], pa.binary()),
        pa.array([row[1] for row in rows], pa.binary()),
        np.array([row[2] for row in rows], np.int64),
        pa.array(headers, HEADERS),
    )


def columns(rows: list[Row]) -> Columns:
    return Columns(*arrays(rows))


def rows_of(chunks: Iterable[Chunk]) -> list[tuple[int, Row]]:
    """(offset, row) of all chunks; the Arrow arrays are validated."""
    out: list[tuple[int, Row]] = []
    for chunk in chunks:
        chunk.keys.validate(full=True)
        chunk.values.validate(full=True)
        headers = [tuple((header["key"], header["value"]) for header in row) for row in chunk.headers.to_pylist()]
        fields = zip(chunk.keys.to_pylist(), chunk.values.to_pylist(), chunk.timestamps.tolist(), headers, strict=True)
        out += zip(chunk.offsets.tolist(), fields, strict=True)
    return out
