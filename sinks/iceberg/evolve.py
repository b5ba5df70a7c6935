"""How a table's columns follow the writers' schemas: new columns are added, types only widen, anything else is refused.

Widening is int to long, float to double and more digits for a decimal of the same scale, at any depth. A column that a
writer no longer has stays, null in its new rows. Rows whose type cannot be brought into the table's are not landed:
they go to the quarantine with the reason that `merge` gives, or their values to a column of their own (`set_aside`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from itertools import count, pairwise

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
    """`batch` with the fields that `merge` refuses renamed to `<name>_<type>`, inside records too; to `<name>_<type>_2`
    and so on where the rows have a field of that name, or the table one that cannot take it."""
    arrays, fields = _apart(batch.columns, list(batch.schema), list(table), "")
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _apart(
    columns: Iterable[pa.Array], fields: list[pa.Field], beside: list[pa.Field], path: str
) -> tuple[list[pa.Array], list[pa.Field]]:
    have = {field.name: field for field in beside}
    taken = {field.name for field in fields}
    made = []
    for column, field in zip(columns, fields, strict=True):
        array, renamed = _aside(column, field, have, taken, path)
        taken.add(renamed.name)
        made.append((array, renamed))
    return [array for array, _ in made], [field for _, field in made]


def _aside(
    column: pa.Array, field: pa.Field, beside: Mapping[str, pa.Field], taken: Set[str], path: str
) -> tuple[pa.Array, pa.Field]:
    have = beside.get(field.name)
    if have is None:
        return column, field
    if pa.types.is_struct(field.type) and pa.types.is_struct(have.type):
        # flatten() applies the parent's validity and offset to the children.
        parts, fields = _apart(column.flatten(), list(field.type), list(have.type), f"{path}{field.name}.")
        mask = column.is_null() if column.null_count else None
        return pa.StructArray.from_arrays(parts, fields=fields, mask=mask), field.with_type(pa.struct(fields))
    if _takes(have, field, path):
        return column, field
    names = _names(f"{field.name}_{_type_name(field.type)}")

    def fits(name: str) -> bool:
        return name not in taken and _takes(beside.get(name, field), field, path)

    free = next(name for name in names if fits(name))
    # The last that the table has: rows had one named like those before it once, if they have not now.
    for name in names:
        if name not in beside or not fits(name):
            break
        free = name
    return column, field.with_name(free)


def _names(name: str) -> Iterator[str]:
    yield name
    for number in count(2):
        yield f"{name}_{number}"


def _takes(have: pa.Field, field: pa.Field, path: str) -> bool:
    try:
        _wider(have.type, field.type, path + field.name)
    except Refused:
        return False
    return True


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
