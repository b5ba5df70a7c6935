"""An Avro schema compiled to a program: a flat list of operations, and the columns that they fill or read.

Decoding and encoding run the same program. It needs no compiler: a new schema costs microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.avro import Node, Schema, parse
from schemas.codec import ops
from schemas.codec.numbers import MAX_BYTES
from schemas.types import (
    NUMBER,
    Form,
    Meaning,
    arrow_schema,
    arrow_type,
    branch_names,
    is_number,
    meaning,
    nullable,
    scale_of,
)

_WORDS = ops.OP_BYTES // 8
_COLUMN, _SECOND, _ARGUMENT, _JUMP, _LOW, _HIGH, _EXTRA = range(1, _WORDS)
_NONE = -1


@dataclass(frozen=True)
class Slot:
    """Room of `width` bytes for each row of a level. Offsets have one more than there are rows.

    `passing`: columns are made from it, and are not it.
    """

    width: int
    level: int
    offsets: bool = False
    passing: bool = False


@dataclass(frozen=True)
class Column:
    """A node of the result and the slots of its parts, -1 where it has none.

    A leaf has values; a string, bytes or enum has offsets and the addresses of its values; an array or map has offsets
    and one child; a struct has children; a union of several types has the branch chosen and a child for each but null.
    Numbers as text have what they are read from: the unscaled value's bytes, and their one scale or a column of scales.
    """

    node: Node
    name: str
    type: pa.DataType
    level: int
    nullable: bool = False
    validity: int = _NONE
    values: int = _NONE
    offsets: int = _NONE
    sources: int = _NONE
    choice: int = _NONE
    branch: int = _NONE
    children: tuple[Column, ...] = ()
    scale: int | None = None

    @property
    def is_number(self) -> bool:
        """Whether it is text made of a number's bytes and scale."""
        return self.node.kind in ("bytes", "record") and pa.types.is_string(self.type)


@dataclass(frozen=True)
class Level:
    """A nesting level of arrays and maps: the fewest bytes of an item in a message, and its bytes in columns."""

    minimum: int
    width: int


@dataclass(frozen=True)
class Program:
    """What the interpreters run. `table` is at rest (see ops); `paths` names the field of each operation.

    `width` is the bytes that a row takes in columns, but for those of its items.
    """

    schema: pa.Schema
    width: int
    columns: tuple[Column, ...]
    table: npt.NDArray[np.int64]
    slots: tuple[Slot, ...]
    levels: tuple[Level, ...]
    paths: tuple[str, ...]
    symbols: npt.NDArray[np.uint8]
    keep_alive: tuple[npt.NDArray[np.int64], ...] = field(repr=False, default=())

    def bind(self, addresses: npt.NDArray[np.int64], levels: int) -> npt.NDArray[np.int64]:
        """The table with the slots' addresses in it; `levels` is the address of the levels' records."""
        bound = self.table.copy()
        padded = np.append(addresses, 0)
        on_level = (bound[:, 0] == ops.LIST) | (bound[:, 0] == ops.BLOCK) | (bound[:, 0] == ops.NEXT)
        bound[:, _COLUMN] = padded[self.table[:, _COLUMN]]
        bound[:, _SECOND] = padded[np.where(on_level, _NONE, self.table[:, _SECOND])]
        bound[on_level, _SECOND] = levels + ops.LEVEL_BYTES * self.table[on_level, _SECOND]
        bound[:, _JUMP] = bound.ctypes.data + ops.OP_BYTES * self.table[:, _JUMP]
        return bound

    def path(self, operation: int) -> str:
        return self.paths[operation] if operation < len(self.paths) else ""


def compile_schema(schema: Schema) -> Program:
    """Raises `ContractError` for a schema that has no columns (malformed, recursive)."""
    return _Compiler().program(schema)


class _Compiler:
    def __init__(self) -> None:
        self.table: list[list[int]] = []
        self.paths: list[str] = []
        self.slots: list[Slot] = []
        self.minimums: list[int] = []
        self.symbols: list[bytes] = []
        self.symbol_tables: list[tuple[int, npt.NDArray[np.int64]]] = []

    def program(self, schema: Schema) -> Program:
        columns = tuple(self._column(f.name, f.node, 0) for f in parse(schema).fields)
        pool = np.frombuffer(b"".join(self.symbols) + b"\0" * 16, np.uint8).copy()
        for operation, symbols in self.symbol_tables:
            symbols[:, 0] += pool.ctypes.data
            self.table[operation][_EXTRA] = symbols.ctypes.data
        return Program(
            schema=arrow_schema(schema),
            width=self._width(0),
            columns=columns,
            table=np.array(self.table, np.int64).reshape(len(self.table), _WORDS),
            slots=tuple(self.slots),
            levels=tuple(Level(minimum, self._width(1 + k)) for k, minimum in enumerate(self.minimums)),
            paths=tuple(self.paths),
            symbols=pool,
            keep_alive=tuple(symbols for _, symbols in self.symbol_tables),
        )

    def _width(self, level: int) -> int:
        return sum(slot.width for slot in self.slots if slot.level == level)

    def _slot(self, width: int, level: int, *, offsets: bool = False, passing: bool = False) -> int:
        self.slots.append(Slot(width, level, offsets, passing))
        return len(self.slots) - 1

    def _emit(self, node: Node, code: int, column: int = _NONE, second: int = _NONE, **words: int) -> int:
        given = {"argument": _ARGUMENT, "low": _LOW, "high": _HIGH, "extra": _EXTRA}
        row = [code, column, second, 0, 0, 0, 0, 0]
        for name, value in words.items():
            row[given[name]] = value
        self.table.append(row)
        self.paths.append(node.path)
        return len(self.table) - 1

    def _jump_here(self, operation: int) -> None:
        self.table[operation][_JUMP] = len(self.table)

    def _column(self, name: str, node: Node, level: int) -> Column:
        inner = node.optional
        if node.kind == "union" and inner is None:
            return self._union(name, node, level)
        if inner is None:
            return self._value(name, node, level, nullable(node))
        validity = self._slot(1, level, passing=True)
        option = self._emit(node, ops.OPTION, validity, argument=node.null_index)
        column = self._value(name, inner, level, True, validity)
        self._jump_here(option)
        return column

    def _value(self, name: str, node: Node, level: int, nullable: bool, validity: int = _NONE) -> Column:
        column = Column(node, name, arrow_type(node), level, nullable, validity)
        if is_number(node):
            scale = self._column("scale", node.fields[0].node, level)
            value = Column(node.fields[1].node, "value", NUMBER.arrow, level)
            return _with(column, children=(scale, self._leaf(value, NUMBER)))
        if node.kind == "record":
            return _with(column, children=tuple(self._column(f.name, f.node, level) for f in node.fields))
        if node.kind in ("array", "map"):
            return self._list(column)
        if node.kind == "null":
            return column
        return self._leaf(column, meaning(node))

    def _leaf(self, column: Column, means: Meaning) -> Column:
        node, level = column.node, column.level
        bounds = {"low": means.low, "high": means.high, "extra": int(means.beyond)}
        if means.form is Form.NUMBER:
            offsets = self._slot(4, level, offsets=True, passing=True)
            sources = self._slot(8, level, passing=True)
            self._emit(node, ops.NUMBER, offsets, sources, argument=MAX_BYTES)
            return _with(column, offsets=offsets, sources=sources, scale=scale_of(node))
        if means.form is Form.DECIMAL:
            values = self._slot(16, level)
            code = ops.DECIMAL if node.kind == "bytes" else ops.FIXED_DECIMAL
            high, low = divmod(means.high, 2**64)
            self._emit(node, code, values, argument=node.size, low=_signed(low), high=high)
            return _with(column, values=values)
        if means.form is Form.RANGED:
            values = self._slot(4, level)
            self._emit(node, ops.INT, values, **bounds)
            return _with(column, values=values)
        if means.form in (Form.SCALED, Form.ZONED):
            values = self._slot(8, level)
            if means.form is Form.ZONED:
                self._emit(node, ops.ZONED, values)
            else:
                self._emit(node, ops.SCALED, values, argument=means.factor, **bounds)
            return _with(column, values=values)
        if node.kind in ("string", "bytes", "enum"):
            offsets, sources = self._slot(4, level, offsets=True), self._slot(8, level, passing=True)
            code = {"string": ops.STRING, "bytes": ops.BYTES, "enum": ops.ENUM}[node.kind]
            operation = self._emit(node, code, offsets, sources, argument=len(node.symbols))
            if node.kind == "enum":
                self._symbols(operation, node.symbols)
            return _with(column, offsets=offsets, sources=sources)
        code, width = {
            "boolean": (ops.BOOLEAN, 1),
            "long": (ops.LONG, 8),
            "float": (ops.FLOAT, 4),
            "double": (ops.DOUBLE, 8),
            "fixed": (ops.FIXED, node.size),
        }[node.kind]
        values = self._slot(width, level, passing=node.kind == "boolean")
        self._emit(node, code, values, argument=node.size)
        return _with(column, values=values)

    def _symbols(self, operation: int, symbols: tuple[str, ...]) -> None:
        start = sum(map(len, self.symbols))
        encoded = [symbol.encode() for symbol in symbols]
        ends = np.cumsum([start] + [len(symbol) for symbol in encoded])
        table = np.stack([ends[:-1], np.diff(ends)], axis=1).astype(np.int64)
        self.symbols += encoded
        self.symbol_tables.append((operation, table))

    def _list(self, column: Column) -> Column:
        node, items = column.node, column.node.items
        assert items is not None
        inner = len(self.minimums)
        self.minimums.append(items.minimum_size + (1 if node.kind == "map" else 0))
        offsets = self._slot(4, column.level, offsets=True)
        begin = self._emit(node, ops.LIST, offsets, inner)
        block = self._emit(node, ops.BLOCK, offsets, inner)
        if node.kind == "map":
            key = self._value("key", Node("string", f"{node.path}{{}}"), inner + 1, False)
            value = self._column("value", items, inner + 1)
            entry = Column(node, "entries", pa.struct([]), inner + 1, children=(key, value))
        else:
            entry = self._column("element", items, inner + 1)
        next_ = self._emit(node, ops.NEXT, offsets, inner)
        self.table[next_][_JUMP] = block
        self._jump_here(begin)
        self._jump_here(block)
        return _with(column, offsets=offsets, children=(entry,))

    def _union(self, name: str, node: Node, level: int) -> Column:
        null_index = node.null_index
        validity = self._slot(1, level, passing=True) if null_index >= 0 else _NONE
        choice = self._slot(4, level, passing=True)
        union = self._emit(node, ops.UNION, validity, choice, argument=len(node.branches), low=null_index)
        children = []
        for index, (branch_name, branch) in enumerate(zip(branch_names(node), node.branches, strict=True)):
            if branch_name:
                present = self._slot(1, level, passing=True)
                operation = self._emit(branch, ops.BRANCH, present, choice, argument=index)
                child = self._value(branch_name, branch, level, True, present)
                children.append(_with(child, branch=index))
                self._jump_here(operation)
        self._jump_here(union)
        type_ = arrow_type(node)
        return Column(node, name, type_, level, null_index >= 0, validity, choice=choice, children=tuple(children))


def _with(column: Column, **changes: Any) -> Column:
    return replace(column, **changes)


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word
