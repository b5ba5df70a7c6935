"""How a table's columns follow the writers' schemas: new columns are added, types only widen, anything else is refused.

Widening is int to long, float to double and more digits for a decimal of the same scale, at any depth. A column that a
writer no longer has stays, null in its new rows. Rows whose type cannot be brought into the table's are not landed:
they go to the quarantine with the reason that `merge` gives, or their values to a column of their own (`set_aside`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

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


def distinct_names(writer: pa.Schema) -> None:
    """Raises `Refused` where rows have a column that their table adds to them: neither could be told from the other."""
    names = sorted(writer.names)
    twice = [name for name, after in pairwise(names) if name == after]
    if twice:
        raise Refused(f"the row has {', '.join(twice)}, which the table has of its own; give it another name")


def changes(before: pa.Schema, after: pa.Schema) -> list[tuple[str, str]]:
    """What `merge` did, column by column: ("added", name) or ("widened", name), dotted for nested ones."""
    return list(_changes(pa.struct(list(before)), pa.struct(list(after)), ""))


def _changes(before: pa.DataType, after: pa.DataType, path: str) -> Iterator[tuple[str, str]]:
    for field in after:
        at = before.get_field_index(field.name)
        if at < 0:
            yield "added", path + field.name
        elif pa.types.is_struct(field.type) and pa.types.is_struct(before.field(at).type):
            yield from _changes(before.field(at).type, field.type, f"{path}{field.name}.")
        elif before.field(at).type != field.type and not pa.types.is_nested(field.type):
            yield "widened", path + field.name


def set_aside(table: pa.Schema, batch: pa.RecordBatch) -> pa.RecordBatch:
    """`batch` with the fields that `merge` refuses renamed to `<name>_<type>`, inside records too."""
    arrays = [_aside(c, f, table, "") for c, f in zip(batch.columns, batch.schema, strict=True)]
    return pa.RecordBatch.from_arrays([array for array, _ in arrays], schema=pa.schema([field for _, field in arrays]))


def _aside(column: pa.Array, field: pa.Field, beside: Iterable[pa.Field], path: str) -> tuple[pa.Array, pa.Field]:
    have = next((other for other in beside if other.name == field.name), None)
    if have is None:
        return column, field
    if pa.types.is_struct(field.type) and pa.types.is_struct(have.type):
        # flatten() applies the parent's validity and offset to the children.
        children = zip(column.flatten(), field.type, strict=True)
        parts = [_aside(child, inner, list(have.type), f"{path}{field.name}.") for child, inner in children]
        mask = column.is_null() if column.null_count else None
        fields = [inner for _, inner in parts]
        return pa.StructArray.from_arrays([part for part, _ in parts], fields=fields, mask=mask), field.with_type(
            pa.struct(fields)
        )
    try:
        _wider(have.type, field.type, path + field.name)
    except Refused:
        return column, field.with_name(f"{field.name}_{_type_name(field.type)}")
    return column, field


def _type_name(kind: pa.DataType) -> str:
    words = re.findall("[a-z]+[0-9]*|[0-9]+", str(kind).split("<")[0])
    return "_".join(words) or "other"


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
