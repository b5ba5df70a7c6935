"""Rows in the types that a contract says, whoever wrote them: promotions are taken, what does not fit is pointed at."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def conform_column(column: pa.Array, kind: pa.DataType) -> tuple[pa.Array, pa.BooleanArray | None]:
    """The column as `kind`, and which rows fit (None: all). Rows that do not fit are null.

    Taken: other sizes of whole numbers, floats and decimals whose value survives, whole numbers as floats or decimals,
    other time units and text encodings. A type of another family fits nowhere: "12" is not 12.
    """
    if column.type.equals(kind):
        return column, None
    if not _related(column.type, kind):
        return pa.nulls(len(column), kind), pc.is_null(column)
    try:
        return pc.cast(column, kind), None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        pass
    try:
        narrowed = pc.cast(column, kind, safe=False)
        fits = pc.fill_null(pc.equal(pc.cast(narrowed, column.type, safe=False), column), True)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        return pa.nulls(len(column), kind), pc.is_null(column)
    if pa.types.is_floating(kind):
        # A float that is rounded is still the same measurement.
        return narrowed, None
    return pc.if_else(fits, narrowed, pa.scalar(None, kind)), fits


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch with the columns and types of `schema`; null where a column is missing or a value does not fit.

    Columns that `schema` does not name are left out. Fields come back nullable.
    """
    columns = [
        conform_column(batch.column(f.name), f.type)[0]
        if f.name in batch.schema.names
        else pa.nulls(len(batch), f.type)
        for f in schema
    ]
    fields = [pa.field(f.name, f.type, True, f.metadata) for f in schema]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


@lru_cache(maxsize=4)
def all_true(rows: int) -> pa.BooleanArray:
    return pa.array(np.ones(rows, np.bool_))


def _related(given: pa.DataType, wanted: pa.DataType) -> bool:
    families = (
        lambda t: pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_string_view(t),
        lambda t: pa.types.is_binary(t) or pa.types.is_large_binary(t) or pa.types.is_fixed_size_binary(t),
        lambda t: pa.types.is_timestamp(t) and t.tz is None,
        lambda t: pa.types.is_timestamp(t) and t.tz is not None,
        pa.types.is_date,
        pa.types.is_time,
        pa.types.is_nested,
        lambda t: pa.types.is_integer(t) or pa.types.is_decimal(t),
        lambda t: pa.types.is_integer(t) or pa.types.is_floating(t),
    )
    if pa.types.is_null(given):
        return True
    if pa.types.is_dictionary(given):
        return _related(given.value_type, wanted)
    if pa.types.is_floating(given) and pa.types.is_integer(wanted):
        return False
    return any(family(given) and family(wanted) for family in families)
