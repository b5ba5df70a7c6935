"""Values that Debezium could not read because they did not change (TOAST): the row keeps the value that it had.

Postgres writes a large unchanged value to its log only under REPLICA IDENTITY FULL; otherwise the event carries a
placeholder. The value is that of the key's previous change in the batch, or of its live row in the table.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.keyindex import KeyIndex, Keys
from schemas.envelope import unavailable_mask
from sinks.iceberg.keyed import KeyedTable
from sinks.iceberg.locations import file_of, position_of
from sinks.iceberg.shape import fit, fit_rows

Int64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def with_placeholders(batches: list[pa.RecordBatch]) -> list[str]:
    """Names of the columns in which some value is the placeholder."""
    found = {
        field.name
        for batch in batches
        for field, column in zip(batch.schema, batch.columns, strict=True)
        if pc.any(unavailable_mask(column)).as_py()
    }
    return sorted(found)


def fill_unavailable(
    table: KeyedTable,
    names: list[str],
    changes: list[pa.RecordBatch],
    keys: Keys,
    present: Mask,
    write: Int64,
    columns: pa.Schema,
) -> tuple[pa.Table, Mask]:
    """Rows `write` of `changes` (numbered through all batches) with the placeholders in columns `names` replaced.

    Also says which of them have no value to keep. `present[i]`: change i has a row. Raises `OSError`.
    """
    rows = pa.concat_tables([fit_rows(batch, columns) for batch in changes])
    result = rows.take(write)
    unresolved = np.zeros(len(write), np.bool_)
    for name in names:
        at = columns.get_field_index(name)
        values = rows.column(at)
        lacking = np.concatenate([_mask(unavailable_mask(chunk)) for chunk in values.chunks])
        source = write.copy()
        wanted = np.flatnonzero(lacking[write])
        known = np.flatnonzero(present & ~lacking)
        earlier = KeyIndex(max(16, 2 * len(known)))
        earlier.put(keys.take(known), known)
        source[wanted] = earlier.locations(keys.take(write[wanted]))
        wanted = wanted[source[wanted] < 0]
        locations = table.live_locations(keys.take(write[wanted]))
        unresolved[wanted[locations < 0]] = True
        stored, order = _read(table, name, locations, columns.field(at).type)
        source[wanted] = np.where(locations < 0, 0, len(rows) + order)
        column = pa.chunked_array([*values.chunks, *stored], columns.field(at).type).take(pa.array(source))
        result = result.set_column(at, columns.field(at), column)
    return result, unresolved


def _read(table: KeyedTable, name: str, locations: Int64, kind: pa.DataType) -> tuple[list[Any], Int64]:
    """Stored values at these locations as chunks, and for each location its place in them."""
    order = np.zeros(len(locations), np.int64)
    chunks: list[Any] = []
    count = 0
    for number in np.unique(file_of(locations[locations >= 0])):
        here = np.flatnonzero((locations >= 0) & (file_of(locations) == number))
        column = table.read(int(number), name).take(pa.array(position_of(locations[here])))
        chunks += fit(column, kind).chunks
        order[here] = count + np.arange(len(here))
        count += len(here)
    return chunks, order


def _mask(array: Any) -> Mask:
    out: Mask = array.to_numpy(zero_copy_only=False)
    return out
