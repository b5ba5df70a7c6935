"""Columns into the shape of a table: its field order, its types, its field ids; what is missing becomes null."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.schema import Schema

FIELD_ID = b"PARQUET:field_id"
# Every commit asks several times for the form of the one schema, which takes milliseconds. A schema is never changed in
# place, and one that is kept here keeps its identity to itself.
RECENT = 32
_recent: dict[int, tuple[Schema, pa.Schema]] = {}


def arrow_schema(schema: Schema) -> pa.Schema:
    """The Arrow form of an Iceberg schema: field ids in the metadata, 32-bit offsets, nested fields included."""
    known = _recent.get(id(schema))
    if known is None or known[0] is not schema:
        known = schema, pa.schema([_narrow_field(f) for f in schema_to_pyarrow(schema, include_field_ids=True)])
        # Threads ask at once: each step is one that they cannot come in between.
        if len(_recent) >= RECENT:
            _recent.clear()
        _recent[id(schema)] = known
    return known[1]


def field_id(field: pa.Field) -> int | None:
    """The Iceberg field id that an Arrow field carries."""
    raw = (field.metadata or {}).get(FIELD_ID)
    return int(raw) if raw is not None else None


def _narrow_field(field: pa.Field) -> pa.Field:
    return field.with_type(_narrow(field.type))


def _narrow(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_large_binary(kind):
        return pa.binary()
    if pa.types.is_struct(kind):
        return pa.struct([_narrow_field(kind.field(i)) for i in range(kind.num_fields)])
    if pa.types.is_large_list(kind) or pa.types.is_list(kind):
        return pa.list_(_narrow_field(kind.value_field))
    if pa.types.is_map(kind):
        return pa.map_(_narrow_field(kind.key_field), _narrow_field(kind.item_field))
    return kind


def fit_rows(rows: pa.RecordBatch | pa.Table, schema: pa.Schema) -> pa.Table:
    """`rows` with exactly the columns of `schema`, in its order and types; a column that it lacks is null.

    Casts are checked: raises `pa.ArrowInvalid` when a value does not fit. `evolve` has refused such types before.
    """
    columns = []
    for field in schema:
        at = rows.schema.get_field_index(field.name)
        columns.append(pa.nulls(rows.num_rows, field.type) if at < 0 else fit(rows.column(at), field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def fit(column: Any, kind: pa.DataType) -> Any:
    """`column` cast to `kind`, struct fields matched by name at any depth. Raises `pa.ArrowInvalid`."""
    if column.type == kind:
        return column
    if isinstance(column, pa.ChunkedArray):
        return pa.chunked_array([fit(chunk, kind) for chunk in column.chunks], kind)
    if not pa.types.is_struct(kind):
        return column.cast(kind)
    fields = [kind.field(i) for i in range(kind.num_fields)]
    have = {column.type.field(i).name: i for i in range(column.type.num_fields)}
    # flatten() applies the parent's validity and offset to the children.
    flat = column.flatten()
    children = [fit(flat[have[f.name]], f.type) if f.name in have else pa.nulls(len(column), f.type) for f in fields]
    mask = column.is_null() if column.null_count else None
    return pa.StructArray.from_arrays(children, fields=fields, mask=mask)
