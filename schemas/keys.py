"""Kafka keys as Headrace writes them: one form, so that a key means one partition whoever wrote the record.

One key field is its text. Several are a JSON array without spaces, in which integers and booleans are bare and
everything else is its text.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

import orjson
import pyarrow as pa
import pyarrow.compute as pc


def record_keys(batch: pa.RecordBatch, key: Sequence[str]) -> pa.BinaryArray:
    """Keys of the rows, from top-level columns: null where a part is null, and everywhere without key fields.

    Times are ISO 8601 with a space, UTC ones end in Z. Bytes are themselves when alone, else base64.
    """
    if not key:
        return pa.nulls(len(batch), pa.binary())
    columns = [batch.column(name) for name in key]
    if len(columns) == 1:
        (column,) = columns
        return column.cast(pa.binary()) if _is_bytes(column.type) else column.cast(pa.string()).cast(pa.binary())
    joined = pc.binary_join_element_wise(*map(_json, columns), ",")
    return pc.binary_join_element_wise("[", joined, "]", "").cast(pa.binary())


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _json(column: pa.Array) -> pa.StringArray:
    if _is_bytes(column.type):
        texts = [None if value is None else base64.b64encode(value).decode() for value in column.to_pylist()]
        column = pa.array(texts, pa.string())
    text = column.cast(pa.string())
    if pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
        return text
    quoted = pc.binary_join_element_wise('"', text, '"', "")
    special = pc.match_substring_regex(text, r'["\\\x00-\x1f]').fill_null(False)
    if not special.true_count:
        return quoted
    escaped = pa.array([orjson.dumps(value).decode() for value in text.filter(special).to_pylist()], pa.string())
    return pc.replace_with_mask(quoted, special, escaped)
