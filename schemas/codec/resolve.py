"""Columns of one schema as columns of another, by name: what Avro calls resolution, done in Arrow.

Fields that the target lacks are left out; fields that it has alone are null, or their default; values widen as Avro
lets them (int to long, float or double, string to bytes, a decimal to one with more digits) and never narrow.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import ContractError
from schemas.codec.defaults import declared
from schemas.types import aliases_of, default_of, enum_of

_WIDER = {
    pa.int32(): (pa.int64(), pa.float32(), pa.float64()),
    pa.int64(): (pa.float32(), pa.float64()),
    pa.float32(): (pa.float64(),),
    pa.string(): (pa.binary(),),
}


def widens(source: pa.DataType, target: pa.DataType) -> bool:
    """Whether every value of a leaf type is one of the other."""
    if source.equals(target) or pa.types.is_null(source) or target in _WIDER.get(source, ()):
        return True
    decimals = pa.types.is_decimal(source) and pa.types.is_decimal(target)
    whole = (target.precision - target.scale) - (source.precision - source.scale) if decimals else -1
    return bool(whole >= 0 and target.scale >= source.scale)


def check(source: pa.Field, target: pa.Field, path: str) -> None:
    """Raise `ContractError` naming the field when values of `source`, but for nulls, are not all values of `target`.

    Nulls where the target has none are a matter of rows (`forbidden_nulls`), but for those inside arrays and maps.
    """
    here, there = source.type, target.type
    if pa.types.is_struct(here) and pa.types.is_struct(there):
        for wanted in there:
            where = f"{path}.{wanted.name}" if path else wanted.name
            index = here.get_field_index(wanted.name)
            if index >= 0:
                check(here.field(index), wanted, where)
            elif not wanted.nullable and default_of(wanted) is None:
                raise ContractError("is missing and has no default", where=where)
    elif pa.types.is_map(here) and pa.types.is_map(there):
        _check_items(here.item_field, there.item_field, f"{path}[]")
    elif pa.types.is_list(here) and pa.types.is_list(there):
        _check_items(here.value_field, there.value_field, f"{path}[]")
    elif not widens(here, there):
        raise ContractError(f"{here} is not {there}", where=path)


def _check_items(source: pa.Field, target: pa.Field, path: str) -> None:
    if source.nullable and not target.nullable:
        raise ContractError("may be null but must not be", where=path)
    check(source, target, path)


def check_schema(source: pa.Schema, target: pa.Schema) -> None:
    """`check` for whole schemas."""
    check(pa.field("", pa.struct(list(source)), False), pa.field("", pa.struct(list(target)), False), "")


def forbidden_nulls(batch: pa.RecordBatch, target: pa.Schema) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Each required field of the target with nulls in the batch, and the rows that have them."""
    found: list[tuple[str, npt.NDArray[np.bool_]]] = []
    for wanted in target:
        index = batch.schema.get_field_index(wanted.name)
        if index >= 0:
            _forbidden(batch.column(index), wanted, wanted.name, np.ones(batch.num_rows, np.bool_), found)
    return found


def _forbidden(
    array: pa.Array,
    wanted: pa.Field,
    path: str,
    present: npt.NDArray[np.bool_],
    found: list[tuple[str, npt.NDArray[np.bool_]]],
) -> None:
    null = np.zeros(len(array), np.bool_)
    if array.null_count:
        null = array.is_null().to_numpy(zero_copy_only=False)
        if not wanted.nullable and (null & present).any():
            found.append((path, null & present))
    if pa.types.is_struct(wanted.type) and pa.types.is_struct(array.type):
        for child in wanted.type:
            index = array.type.get_field_index(child.name)
            if index >= 0:
                _forbidden(array.field(index), child, f"{path}.{child.name}", present & ~null, found)


def conform(array: pa.Array, target: pa.Field) -> pa.Array:
    """The array as the target's type, after `check` passed for their fields."""
    type_ = target.type
    if array.type.equals(type_):
        return array
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), type_)
    if pa.types.is_struct(type_):
        children = [
            conform(array.field(index), wanted) if index >= 0 else absent(len(array), wanted)
            for wanted in type_
            for index in (array.type.get_field_index(wanted.name),)
        ]
        mask = array.is_null() if array.null_count else None
        return pa.StructArray.from_arrays(children, fields=list(type_), mask=mask)
    if pa.types.is_map(type_):
        entries = pa.StructArray.from_arrays(
            [array.keys, conform(array.items, type_.item_field)], fields=[type_.key_field, type_.item_field]
        )
        return rebuilt(array, type_, entries)
    if pa.types.is_list(type_):
        return rebuilt(array, type_, conform(array.values, type_.value_field))
    return pc.cast(array, type_, safe=not pa.types.is_floating(type_))


def rebuilt(array: pa.Array, type_: pa.DataType, items: pa.Array) -> pa.Array:
    """A list or map array with other items in the same places."""
    validity, offsets = array.buffers()[:2]
    return pa.Array.from_buffers(type_, len(array), [validity, offsets], offset=array.offset, children=[items])


def absent(n: int, field: pa.Field) -> pa.Array:
    """The values of a field that the writer did not have: its default, else null.

    Raises `ContractError` for a default that is no value of its type, however few values are asked for.
    """
    declaration = default_of(field)
    if declaration is None:
        return pa.nulls(n, field.type)
    try:
        return conform(declared(declaration), field).take(pa.array(np.zeros(n, np.int64)))
    except ContractError as e:
        raise ContractError(e.what, where=f"{field.name}.{e.where}") from e


def conform_batch(batch: pa.RecordBatch, target: pa.Schema) -> pa.RecordBatch:
    """The batch under the target's schema, after `check_schema` passed for their schemas."""
    if batch.schema.equals(target, check_metadata=False):
        return pa.RecordBatch.from_arrays(batch.columns, schema=target)
    columns = [
        conform(batch.column(index), wanted) if index >= 0 else absent(batch.num_rows, wanted)
        for wanted in target
        for index in (batch.schema.get_field_index(wanted.name),)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=target)


def read_as(batch: pa.RecordBatch, reader: pa.Schema) -> pa.RecordBatch:
    """The batch with the reader's names, its defaults for fields that the writer did not have, and the default of its
    enum for symbols that this lacks.

    Types, and fields that the reader does not know, stay the writer's. A field without a default that the writer did
    not have stays absent.
    """
    columns, fields = _read_as(batch.columns, list(batch.schema), reader, batch.num_rows)
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def _read_as(
    columns: list[pa.Array], fields: list[pa.Field], reader: Iterable[pa.Field], rows: int
) -> tuple[list[pa.Array], list[pa.Field]]:
    columns, fields, reader = list(columns), list(fields), list(reader)
    own = {wanted.name for wanted in reader}
    for wanted in reader:
        names = [field.name for field in fields]
        # What has the name of another of the reader's fields is that one, whoever has it for an alias.
        known = [wanted.name, *(alias for alias in aliases_of(wanted) if alias not in own)]
        at = next((names.index(name) for name in known if name in names), None)
        if at is not None:
            columns[at] = _read_values(columns[at], wanted)
            fields[at] = fields[at].with_name(wanted.name).with_type(columns[at].type)
        elif default_of(wanted) is not None:
            columns.append(absent(rows, wanted))
            fields.append(wanted)
    return columns, fields


def _read_values(array: pa.Array, wanted: pa.Field) -> pa.Array:
    """The array with the names and defaults of what is nested in it; itself where nothing changes."""
    kind, enum = array.type, enum_of(wanted)
    if enum is not None and pa.types.is_string(kind):
        kept = pc.or_(pc.is_in(array, value_set=pa.array(enum["symbols"], pa.string())), array.is_null())
        return array if pc.all(kept).as_py() else pc.if_else(kept, array, enum["default"])
    if pa.types.is_struct(kind) and pa.types.is_struct(wanted.type):
        parts = [array.field(i) for i in range(kind.num_fields)]
        inner, inside = _read_as(parts, list(kind), list(wanted.type), len(array))
        if inside != list(kind) or any(new is not old for new, old in zip(inner, parts, strict=True)):
            mask = array.is_null() if array.null_count else None
            return pa.StructArray.from_arrays(inner, fields=inside, mask=mask)
    elif pa.types.is_map(kind) and pa.types.is_map(wanted.type):
        values = array.items
        items = _read_values(values, wanted.type.item_field)
        if items is not values:
            fields = [kind.key_field, kind.item_field.with_type(items.type)]
            return rebuilt(array, pa.map_(*fields), pa.StructArray.from_arrays([array.keys, items], fields=fields))
    elif pa.types.is_list(kind) and pa.types.is_list(wanted.type):
        values = array.values
        items = _read_values(values, wanted.type.value_field)
        if items is not values:
            return rebuilt(array, pa.list_(kind.value_field.with_type(items.type)), items)
    return array


def union(first: pa.Field, second: pa.Field, path: str = "") -> pa.Field:
    """A field that holds the values of both: fields of the first in its order, then those of the second alone.

    Raises `ContractError` naming the field where no type holds both.
    """
    nullable = first.nullable or second.nullable
    here, there = first.type, second.type
    metadata = first.metadata
    if pa.types.is_struct(here) and pa.types.is_struct(there):
        fields = []
        for field in here:
            where = f"{path}.{field.name}" if path else field.name
            index = there.get_field_index(field.name)
            fields.append(union(field, there.field(index), where) if index >= 0 else _alone(field))
        fields += [_alone(field) for field in there if here.get_field_index(field.name) < 0]
        return pa.field(first.name, pa.struct(fields), nullable, metadata)
    if pa.types.is_map(here) and pa.types.is_map(there):
        item = union(here.item_field, there.item_field, f"{path}[]")
        return pa.field(first.name, pa.map_(here.key_field, item), nullable, metadata)
    if pa.types.is_list(here) and pa.types.is_list(there):
        return pa.field(
            first.name, pa.list_(union(here.value_field, there.value_field, f"{path}[]")), nullable, metadata
        )
    if pa.types.is_decimal(here) and pa.types.is_decimal(there):
        scale = max(here.scale, there.scale)
        whole = max(here.precision - here.scale, there.precision - there.scale)
        if scale + whole <= 38:
            return pa.field(first.name, pa.decimal128(scale + whole, scale), nullable, metadata)
    for type_, other in ((here, there), (there, here)):
        if widens(other, type_):
            return pa.field(first.name, type_, nullable, metadata)
    raise ContractError(f"{here} and {there} have no type in common", where=path)


def _alone(field: pa.Field) -> pa.Field:
    """A field that some writers lack. Their records have its default, or null for one that they cannot have."""
    try:
        absent(0, field)
    except ContractError:
        field = field.remove_metadata()
    return field.with_nullable(True)


def union_schema(first: pa.Schema, second: pa.Schema) -> pa.Schema:
    """`union` for whole schemas."""
    both = union(pa.field("", pa.struct(list(first)), False), pa.field("", pa.struct(list(second)), False))
    return pa.schema(list(both.type))
