"""Columns to messages: one Avro record a row, framed for the schema registry."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import ContractError
from schemas.avro import Schema
from schemas.codec import ops
from schemas.codec.encode_kernel import encode
from schemas.codec.numbers import from_text
from schemas.codec.program import Column, Program, compile_schema
from schemas.codec.reasons import TEXTS
from schemas.codec.resolve import absent, conform, rebuilt
from schemas.types import LOCAL_MICROS, Form, meaning

_SPARE = 64
_MAX_BYTES = 2**31 - 1
Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

# The most bytes that an operation writes for a row, beside the bytes of strings and fixed.
_ROOM = {
    ops.OPTION: 1, ops.LONG: 10, ops.INT: 5, ops.STRING: 5, ops.BYTES: 5, ops.ENUM: 5, ops.DECIMAL: 17, ops.SCALED: 10,
    ops.ZONED: 5, ops.UNION: 5, ops.NUMBER: 5, ops.BLOCK: 0, ops.DOUBLE: 8, ops.FLOAT: 4, ops.BOOLEAN: 1, ops.FIXED: 0,
    ops.FIXED_DECIMAL: 0, ops.BRANCH: 0, ops.LIST: 6, ops.NEXT: 0,
}  # fmt: skip

_FAMILIES = (
    lambda t: pa.types.is_integer(t) or pa.types.is_floating(t) or pa.types.is_decimal(t),
    lambda t: pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_string_view(t),
    lambda t: pa.types.is_binary(t) or pa.types.is_large_binary(t) or pa.types.is_fixed_size_binary(t),
    lambda t: pa.types.is_timestamp(t) and t.tz is not None,
    lambda t: pa.types.is_timestamp(t) and t.tz is None,
    pa.types.is_time,
    pa.types.is_date,
)


class Encoder:
    """Encodes batches under one schema. Stateless after construction, safe in threads, releases the GIL.

    `schema` is the Arrow schema that a batch should have; columns are taken by name, converted where no value can
    change its meaning, and left out where the Avro schema does not have them. The bytes are those that fastavro
    writes, but for decimals, which take as few bytes as hold them.
    Raises `ContractError` for a schema that has no columns.
    """

    def __init__(self, schema: Schema, schema_id: int) -> None:
        self._program = compile_schema(schema)
        self._header = int.from_bytes(b"\0" + schema_id.to_bytes(4, "big"), "little")
        self.schema = self._program.schema

    def encode(self, batch: pa.RecordBatch) -> pa.BinaryArray:
        """One message a row, in order.

        Raises `ContractError` naming field and row for a null where none may be, a value that its type does not hold,
        an enum symbol that the schema lacks, text that is not UTF-8; and for more than 2 GiB of messages.
        """
        run = _Run(self._program, batch.num_rows)
        for column, field in zip(self._program.columns, self.schema, strict=True):
            index = batch.schema.get_field_index(column.name)
            array = batch.column(index) if index >= 0 else absent(batch.num_rows, field)
            run.bind(column, _convert(array, field, column.name), None)
        return run.encode(self._header)


class _Run:
    def __init__(self, program: Program, n: int) -> None:
        self.program = program
        self.n = n
        self.addresses = np.zeros(len(program.slots), np.int64)
        self.texts = np.zeros((len(program.slots), 2), np.int64)  # start and end of the bytes that offsets point into
        self.rows = [n] + [0] * len(program.levels)
        self.data_bytes = 0
        self.keep: list[object] = []

    def point(self, slot: int, memory: npt.NDArray[np.generic]) -> None:
        self.keep.append(memory)
        self.addresses[slot] = memory.ctypes.data

    def bind(self, column: Column, array: pa.Array, present: Bools | None) -> None:
        """Point the column's slots at the array. `present` says which rows exist; None means all."""
        null = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
        if null is not None and not column.nullable and column.node.kind != "null":
            missing = null if present is None else null & present
            if missing.any():
                raise ContractError(f"null in row {int(np.argmax(missing))}", where=column.node.path)
        if column.validity >= 0:
            self.point(column.validity, np.ones(len(array), np.uint8) if null is None else (~null).view(np.uint8))
        if null is not None:
            present = ~null if present is None else ~null & present
        self.keep.append(array)
        if pa.types.is_string(array.type):
            _check_text(array, column.node.path)
        if column.is_number:
            self.bind_numbers(column, array, present)
        elif column.choice >= 0:
            self.bind_union(column, array, present)
        elif column.sources >= 0:
            self.bind_text(column, array, present)
        elif column.offsets >= 0:
            self.bind_list(column, array, present)
        elif column.values >= 0:
            self.bind_values(column, array)
        else:
            for index, child in enumerate(column.children):
                self.bind(child, array.field(index), present)

    def bind_values(self, column: Column, array: pa.Array) -> None:
        if pa.types.is_boolean(array.type):
            bits = array.fill_null(False).to_numpy(zero_copy_only=False)
            self.point(column.values, bits.astype(np.uint8))
            return
        if meaning(column.node).form is Form.ZONED:
            self.bind_strings(column.values, pc.strftime(array.cast(LOCAL_MICROS), format="%Y-%m-%dT%H:%M:%SZ"))
            return
        values = array.buffers()[1]
        width = self.program.slots[column.values].width
        self.addresses[column.values] = (values.address if values is not None else 0) + array.offset * width

    def bind_numbers(self, column: Column, array: pa.Array, present: Bools | None) -> None:
        scale = None if column.children else column.scale
        exists = np.ones(len(array), np.bool_) if present is None else present
        parts = [
            from_text(text, scale, f"{column.node.path} in row {row}") if text is not None and exists[row] else (0, b"")
            for row, text in enumerate(array.to_pylist())
        ]
        value = column.children[1] if column.children else column
        if column.children:
            self.point(column.children[0].values, np.array([own for own, _ in parts], np.int32))
        self.bind_strings(value.offsets, pa.array([number for _, number in parts], pa.binary()))

    def bind_text(self, column: Column, array: pa.Array, present: Bools | None) -> None:
        if column.node.kind == "enum":
            index = pc.index_in(array, value_set=pa.array(column.node.symbols, pa.string()))
            unknown = index.is_null().to_numpy(zero_copy_only=False)
            if present is not None:
                unknown = unknown & present
            if unknown.any():
                row = int(np.argmax(unknown))
                raise ContractError(f"row {row} has none of the enum's symbols", where=column.node.path)
            self.point(column.offsets, index.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int32))
            return
        self.bind_strings(column.offsets, array)

    def bind_strings(self, slot: int, array: pa.Array) -> None:
        if not len(array):
            return
        _, offsets, data = array.buffers()
        self.keep.append(array)
        self.addresses[slot] = offsets.address + 4 * array.offset
        bounds = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
        self.data_bytes += int(bounds[-1]) - int(bounds[0])
        if data is not None:
            self.texts[slot] = data.address, data.address + data.size

    def bind_list(self, column: Column, array: pa.Array, present: Bools | None) -> None:
        (entry,) = column.children
        _, offsets, *_ = array.buffers()
        if not len(array):
            bounds = np.zeros(1, np.int32)
        else:
            bounds = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
        self.point(column.offsets, bounds)
        is_map = column.node.kind == "map"
        items = [array.keys, array.items] if is_map else [array.values]
        self.rows[entry.level] = len(items[0])
        inside: Bools | None = None
        if present is not None or int(bounds[0]) > 0 or int(bounds[-1]) < len(items[0]):
            inside = np.zeros(len(items[0]), np.bool_)
            here = np.ones(len(array), np.bool_) if present is None else present
            inside[int(bounds[0]) : int(bounds[-1])] = np.repeat(here, np.diff(bounds))
        for child, values in zip(entry.children if is_map else (entry,), items, strict=True):
            self.bind(child, values, inside)

    def bind_union(self, column: Column, array: pa.Array, present: Bools | None) -> None:
        choice = np.full(len(array), column.node.null_index, np.int32)
        chosen = np.zeros(len(array), np.int64)
        for index, child in enumerate(column.children):
            values = array.field(index)
            self.bind(child, values, present)
            valid = values.is_valid().to_numpy(zero_copy_only=False)
            choice[valid] = child.branch
            chosen += valid
        wrong = chosen != 1
        if present is not None:
            wrong = wrong & present
            choice[~present] = column.node.null_index
        if wrong.any():
            raise ContractError(f"row {int(np.argmax(wrong))} sets not exactly one branch", where=column.node.path)
        self.point(column.choice, choice)

    def room(self) -> int:
        """The most bytes that the rows can take."""
        total, inside = 5 * self.n + self.data_bytes + _SPARE, [0]
        for code, _, second, size, *_ in self.program.table.tolist():
            if code == ops.NEXT:
                inside.pop()
            total += self.rows[inside[-1]] * (_ROOM[code] + (size if code in (ops.FIXED, ops.FIXED_DECIMAL) else 0))
            if code == ops.LIST:
                inside.append(second + 1)
        return total

    def encode(self, header: int) -> pa.BinaryArray:
        table = self.program.table
        levels = np.zeros((len(self.program.levels), ops.LEVEL_BYTES // 8), np.int64)
        bound = self.program.bind(self.addresses, levels.ctypes.data)
        texts = np.isin(table[:, 0], (ops.STRING, ops.BYTES, ops.ZONED, ops.NUMBER))
        bound[texts, ops.SECOND // 8] = self.texts[table[texts, ops.COLUMN // 8], 0]
        bound[texts, ops.EXTRA // 8] = self.texts[table[texts, ops.COLUMN // 8], 1]
        out = np.empty(self.room(), np.uint8)
        offsets = np.empty(self.n + 1, np.int32)
        state = np.zeros(3, np.int64)
        start = bound.ctypes.data
        end = encode(
            start, start + bound.nbytes, self.n, header, out.ctypes.data, offsets.ctypes.data, state.ctypes.data
        )
        if state[0]:
            path = self.program.path(int(state[2]))
            raise ContractError(f"row {int(state[1])} has a value {TEXTS[int(state[0])]}", where=path)
        used = end - out.ctypes.data
        if used > _MAX_BYTES:
            raise ContractError("more than 2 GiB of messages in one batch", hint="encode slices of it")
        data = pa.py_buffer(out[:used].copy())
        return pa.Array.from_buffers(pa.binary(), self.n, [None, pa.py_buffer(offsets), data])


def _check_text(array: pa.Array, path: str) -> None:
    _, offsets, data = array.buffers()
    if not len(array) or data is None:
        return
    bounds = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
    # Looking at the bytes of all at once costs a tenth of looking at each text.
    if np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]].max(initial=0) < 0x80:
        return
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as e:
        rows = (row for row, text in enumerate(array.cast(pa.binary()).to_pylist()) if text and not _is_text(text))
        raise ContractError(f"row {next(rows, 0)} has text that is not UTF-8", where=path) from e


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _convert(array: pa.Array, field: pa.Field, path: str) -> pa.Array:
    """The array as the field's type, where no value changes its meaning."""
    array = _plain(array)
    source, target = array.type, field.type
    if source.equals(target) or pa.types.is_null(source):
        return conform(array, field)
    if pa.types.is_struct(target) and pa.types.is_struct(source):
        children = []
        for wanted in target:
            index = source.get_field_index(wanted.name)
            child = array.field(index) if index >= 0 else absent(len(array), wanted)
            children.append(_convert(child, wanted, f"{path}.{wanted.name}"))
        mask = array.is_null() if array.null_count else None
        return pa.StructArray.from_arrays(children, fields=list(target), mask=mask)
    if pa.types.is_map(target) and pa.types.is_map(source):
        keys = _convert(array.keys, target.key_field, f"{path}{{}}")
        items = _convert(array.items, target.item_field, f"{path}[]")
        entries = pa.StructArray.from_arrays([keys, items], fields=[target.key_field, target.item_field])
        return rebuilt(array, target, entries)
    if pa.types.is_list(target) and pa.types.is_list(source):
        return rebuilt(array, target, _convert(array.values, target.value_field, f"{path}[]"))
    if any(family(source) and family(target) for family in _FAMILIES):
        try:
            return pc.cast(array, target)
        except pa.ArrowException as e:
            raise ContractError(f"{source} does not convert to {target} without loss", where=path) from e
    raise ContractError(f"{source} is not {target}", where=path)


def _plain(array: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(array.type):
        return array.dictionary_decode()
    if pa.types.is_large_list(array.type):
        return pc.cast(array, pa.list_(array.type.value_field))
    return array
