"""How a table's columns follow the writers' schemas: new columns are added, types only widen, anything else is refused.

Widening is int to long, float to double and more digits for a decimal of the same scale, at any depth. A column that a
writer no longer has stays, null in its new rows. Rows whose type cannot be brought into the table's are not landed:
they go to the quarantine with the reason that `merge` gives.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
from pyiceberg.schema import Schema
from pyiceberg.table import Table

from sinks.iceberg.commit import merge_columns
from sinks.iceberg.metadata_cache import transaction
from sinks.iceberg.shape import arrow_schema


@dataclass(frozen=True)
class Evolution:
    """A table's schema with the columns of some writers merged in; `columns` is None when nothing changes."""

    schema: Schema
    columns: pa.Schema | None


class Refused(Exception):
    """A type that a table's column can't take; the message names both."""


def merge(table: pa.Schema, writer: pa.Schema) -> pa.Schema:
    """The table's columns widened by the writer's, new ones at the end. Raises `Refused`."""
    return pa.schema(_merge_fields(list(table), list(writer), ""))


def evolved(table: Table, merged: pa.Schema) -> Evolution:
    """The schema that `table` gets when the columns of `merged` are added, with the field ids they will have."""
    present = table.schema()
    if pa.schema(list(merged)).equals(arrow_schema(present)):
        return Evolution(present, None)
    staged = transaction(table)
    merge_columns(staged, merged)
    return Evolution(staged.table_metadata.schema(), merged)


def _merge_fields(have: list[pa.Field], come: list[pa.Field], path: str) -> list[pa.Field]:
    incoming = {field.name: field for field in come}
    merged = []
    for field in have:
        other = incoming.pop(field.name, None)
        merged.append(field if other is None else field.with_type(_wider(field.type, other.type, path + field.name)))
    return merged + [_optional(field) for field in incoming.values()]


def _optional(field: pa.Field) -> pa.Field:
    """Nothing is required at any depth: a writer may drop a field later."""
    kind = field.type
    if pa.types.is_struct(kind):
        kind = pa.struct([_optional(kind.field(i)) for i in range(kind.num_fields)])
    elif pa.types.is_list(kind):
        kind = pa.list_(_optional(kind.value_field))
    elif pa.types.is_map(kind):
        kind = pa.map_(kind.key_field, _optional(kind.item_field))
    return pa.field(field.name, kind, True)


def _wider(have: pa.DataType, come: pa.DataType, path: str) -> pa.DataType:
    if have == come or pa.types.is_null(come):
        return have
    t = pa.types
    if t.is_struct(have) and t.is_struct(come):
        return pa.struct(
            _merge_fields(
                [have.field(i) for i in range(have.num_fields)],
                [come.field(i) for i in range(come.num_fields)],
                f"{path}.",
            )
        )
    if t.is_list(have) and t.is_list(come):
        return pa.list_(have.value_field.with_type(_wider(have.value_type, come.value_type, f"{path}.element")))
    if t.is_map(have) and t.is_map(come) and have.key_type == come.key_type:
        return pa.map_(have.key_field, have.item_field.with_type(_wider(have.item_type, come.item_type, path)))
    if (t.is_signed_integer(have) and t.is_signed_integer(come)) or (t.is_floating(have) and t.is_floating(come)):
        return have if have.bit_width >= come.bit_width else come
    if t.is_decimal(have) and t.is_decimal(come) and have.scale == come.scale:
        return have if have.precision >= come.precision else come
    raise Refused(f"{path} is {come} here but {have} in the table")
