"""How each column is written to Parquet: by its type, and by how much a sample of its values repeats. Pure.

| values | encoding | codec |
|---|---|---|
| text, bytes and floats of which a sample repeats | dictionary | zstd 1 |
| other text and bytes | front coding: keys, sequences and paths begin alike | zstd 1 |
| integers, dates, times, decimals of up to 18 digits (as integers) | delta | snappy |
| other floats | split into streams of bytes | snappy |
| booleans, longer decimals | plain | zstd 1 |

Packed integers and split floats have little left for a codec to find: snappy takes half of zstd's time over them and
comes within 5 % of its size. DuckDB cannot read byte-split decimals, so no decimal is written in that way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Rows of a row group.
ROW_GROUP = 1 << 17
# Rows that are looked at, in runs spread over the table, and the share of them that may be distinct in a dictionary.
SAMPLE = 4096
RUNS = 16
DISTINCT = 1 / 2


def writer_options(table: pa.Table, without_statistics: Collection[str], filtered: Collection[str]) -> dict[str, Any]:
    """Options of `pyarrow.parquet.ParquetWriter` for this table.

    Columns of `without_statistics` get no minimum and maximum, those of `filtered` a Bloom filter unless they are
    boolean (paths in Parquet).
    """
    dictionary: list[str] = []
    encoding: dict[str, str] = {}
    codec: dict[str, str] = {}
    statistics: list[str] = []
    blooming: list[str] = []
    for path, kind, column in _leaves(_sample(table)):
        text = pa.types.is_string(kind) or pa.types.is_binary(kind)
        codec[path] = "zstd"
        if path in filtered and not pa.types.is_boolean(kind):
            blooming.append(path)
        if path not in without_statistics:
            statistics.append(path)
        if (text or pa.types.is_floating(kind)) and (column is None or _repeats(column)):
            dictionary.append(path)
        elif text:
            encoding[path] = "DELTA_BYTE_ARRAY"
        elif pa.types.is_floating(kind) or _stored_as_integer(kind):
            encoding[path] = "BYTE_STREAM_SPLIT" if pa.types.is_floating(kind) else "DELTA_BINARY_PACKED"
            codec[path] = "snappy"
    filter_size = {"ndv": max(1, min(table.num_rows, ROW_GROUP))}
    return {
        "compression": codec,
        "compression_level": {path: 1 for path, name in codec.items() if name == "zstd"},
        "use_dictionary": dictionary or False,
        "column_encoding": encoding or None,
        "write_statistics": statistics or False,
        "store_decimal_as_integer": True,
        "bloom_filter_options": dict.fromkeys(blooming, filter_size) or None,
    }


def _stored_as_integer(kind: pa.DataType) -> bool:
    if pa.types.is_decimal(kind):
        return bool(kind.precision <= 18)
    return bool(pa.types.is_integer(kind) or pa.types.is_temporal(kind))


def _sample(table: pa.Table) -> pa.Table:
    if table.num_rows <= SAMPLE:
        return table
    run = SAMPLE // RUNS
    starts = np.linspace(0, table.num_rows - run, RUNS).astype(np.int64)
    return pa.concat_tables([table.slice(int(start), run) for start in starts])


def _repeats(column: Any) -> bool:
    return bool(pc.count_distinct(column).as_py() <= max(1, len(column) * DISTINCT))


def _leaves(table: pa.Table) -> Iterator[tuple[str, pa.DataType, Any]]:
    """Parquet path, type and values of each leaf; no values inside of lists and maps, whose rows do not align."""
    for field, column in zip(table.schema, table.columns, strict=True):
        yield from _descend(field.name, field.type, column)


def _descend(path: str, kind: pa.DataType, column: Any) -> Iterator[tuple[str, pa.DataType, Any]]:
    if pa.types.is_struct(kind):
        flat = column.flatten() if column is not None else [None] * kind.num_fields
        for i in range(kind.num_fields):
            yield from _descend(f"{path}.{kind.field(i).name}", kind.field(i).type, flat[i])
    elif pa.types.is_list(kind):
        yield from _descend(f"{path}.list.element", kind.value_type, None)
    elif pa.types.is_map(kind):
        yield from _descend(f"{path}.key_value.key", kind.key_type, None)
        yield from _descend(f"{path}.key_value.value", kind.item_type, None)
    else:
        yield path, kind, column
