"""Change events with those columns of their rows alone that a reader uses.

A column that nobody uses then changes nothing, whatever its type comes to be, and one that is used is always there:
null where no schema that was met has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from schemas.envelope import is_envelope

PARTS = ("before", "after")
# A struct without fields has no rows once it is taken apart: rows of which nothing is used have this one.
NOTHING = ""


def narrowed(schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    """The schema without what is not among `columns` in its rows; itself where it is not that of change events."""
    if not is_envelope(schema):
        return schema
    for name in PARTS:
        field = schema.field(name)
        if pa.types.is_struct(field.type):
            kept = [field.type.field(column) for column in columns if field.type.get_field_index(column) >= 0]
            schema = schema.set(schema.get_field_index(name), field.with_type(pa.struct(kept)))
    return schema


def narrow(batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    """The batch under its `narrowed` schema. Copies no column."""
    schema = narrowed(batch.schema, columns)
    if schema is batch.schema:
        return batch
    arrays = [_narrow(array, field.type) for array, field in zip(batch.columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _narrow(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if array.type.equals(kind):
        return array
    if not kind.num_fields:
        return pa.Array.from_buffers(kind, len(array), [array.buffers()[0]], offset=array.offset)
    children = [array.field(array.type.get_field_index(field.name)) for field in kind]
    mask = array.is_null() if array.null_count else None
    return pa.StructArray.from_arrays(children, fields=list(kind), mask=mask)


def completed(schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    """The schema with all of `columns` in its rows, in their order: of type null where it has none. Of other records
    than change events, with those that are missing behind the others."""
    if not is_envelope(schema):
        for name in columns:
            schema = schema if name in schema.names else schema.append(pa.field(name, pa.null()))
        return schema
    for name in PARTS:
        field = schema.field(name)
        if pa.types.is_struct(field.type):
            known = {inner.name: inner for inner in field.type}
            row = [known.get(column, pa.field(column, pa.null())) for column in columns or (NOTHING,)]
            schema = schema.set(schema.get_field_index(name), field.with_type(pa.struct(row)))
    return schema


def unknown(schema: pa.Schema | None, columns: Sequence[str]) -> tuple[str, ...]:
    """Those of `columns` that the rows of a schema do not have."""
    if schema is None:
        return tuple(columns)
    names = {field.name for field in schema.field("after").type} if is_envelope(schema) else set(schema.names)
    return tuple(name for name in columns if name not in names)
