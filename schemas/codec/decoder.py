"""Messages under one writer schema to columns: exactly the rows that decode, and a reason for each that does not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.avro import Schema
from schemas.codec import ops
from schemas.codec.decode_kernel import decode, gather
from schemas.codec.numbers import to_text
from schemas.codec.program import Column, Program, Slot, compile_schema
from schemas.codec.reasons import TEXTS, reason

Int64s = npt.NDArray[np.int64]

_ALIGNMENT = 64
_SPARE = 16


@dataclass(frozen=True)
class Decoded:
    """The outcome for n messages: every index 0..n-1 is in exactly one of `rows`, `bad` and `nulls`, ascending.

    `batch` has one row for each of `rows`, in order; `reasons` one text for each of `bad` (see `reasons.rule_of`).
    `nulls` are the tombstones. `schema_ids` has n entries, -1 where a message is null or not framed; it is empty when
    the messages were decoded without looking at their headers.
    """

    batch: pa.RecordBatch
    rows: Int64s
    bad: Int64s
    reasons: list[str]
    nulls: Int64s
    schema_ids: Int64s


class Decoder:
    """Decodes messages of one writer schema. Stateless after construction, safe in threads, releases the GIL.

    `schema` is the Arrow schema of what `decode` returns. Raises `ContractError` for a schema that has no columns.
    """

    def __init__(self, writer_schema: Schema) -> None:
        self._program = compile_schema(writer_schema)
        self.schema = self._program.schema

    def decode(self, values: pa.BinaryArray, skip: int = 5) -> Decoded:
        """Decode every message, whose Avro body begins after `skip` bytes. Bad messages raise nothing.

        A message is `too large` when its row, or its items of one array or map, would take more than 64 KiB and 512
        times its size. So a call takes a small multiple of that for all its messages, and what is refused does not
        depend on the others, but where a column is full: one of text ends at 2 GiB.
        """
        nulls = null_indexes(values)
        messages = np.arange(len(values), dtype=np.int64)
        if len(nulls):
            messages = np.delete(messages, nulls)
        return self.decode_some(values, messages, nulls, skip)

    def decode_some(self, values: pa.BinaryArray, messages: Int64s, nulls: Int64s, skip: int = 5) -> Decoded:
        """Decode the messages with the given indexes, ascending and not null."""
        oversized = self._oversized(values, messages, skip)
        run = _Run(self._program, values, np.setdiff1d(messages, oversized) if len(oversized) else messages)
        run.decode(skip)
        bad = run.bad[: run.n_bad]
        if len(oversized):
            nowhere = len(self._program.paths)
            bad = np.concatenate([bad, [(message, ops.TOO_LARGE, nowhere) for message in oversized.tolist()]])
            bad = bad[np.argsort(bad[:, 0])]
        batch = pa.RecordBatch.from_arrays([run.array(c) for c in self._program.columns], schema=self.schema)
        if not self.schema:
            batch = pa.RecordBatch.from_struct_array(pa.nulls(run.rows, pa.struct([])))
        rows = np.setdiff1d(messages, bad[:, 0], assume_unique=True) if len(bad) else messages
        texts = [reason(TEXTS[code], self._program.path(operation)) for _, code, operation in bad.tolist()]
        return Decoded(batch, rows, bad[:, 0].copy(), texts, nulls, np.empty(0, np.int64))

    def _oversized(self, values: pa.BinaryArray, messages: Int64s, skip: int) -> Int64s:
        """The messages whose row alone takes more than it may (see ops), whatever is in it."""
        if self._program.width <= ops.FREE_BYTES or not len(messages):
            return np.empty(0, np.int64)
        ends = np.frombuffer(values.buffers()[1], np.int32)[values.offset : values.offset + len(values) + 1]
        room = ops.FREE_BYTES + ops.BYTES_OF_A_BYTE * (np.diff(ends)[messages].astype(np.int64) - skip)
        return messages[self._program.width > room]


class _Run:
    """One call of the interpreter: the memory that it fills and the arrays made of it."""

    def __init__(self, program: Program, values: pa.BinaryArray, messages: Int64s) -> None:
        _, offsets, data = values.buffers()
        self.program = program
        self.messages = messages
        self.offsets = offsets.address + 4 * values.offset if offsets is not None else 0
        self.data = data.address if data is not None else 0
        self.limit = self.data + (data.size if data is not None else 0)
        self.keep = (offsets, data)
        self.rows = 0
        self.n_bad = 0
        self.bad = np.empty((len(messages), 3), np.int64)
        self.levels = np.zeros((len(program.levels), ops.LEVEL_BYTES // 8), np.int64)
        self.levels[:, ops.MINIMUM // 8] = [level.minimum for level in program.levels]
        self.levels[:, ops.WIDTH // 8] = [level.width for level in program.levels]
        self.levels[:, ops.FREE // 8] = [ops.FREE_BYTES // level.width for level in program.levels]
        # Two blocks a level: the one that columns are, and the one that goes with this run.
        self.blocks = [np.empty(0, np.uint8) for _ in range(2 + 2 * len(program.levels))]
        self.starts = np.zeros(len(program.slots), np.int64)
        self.slots_of = [
            np.array([i for i, slot in enumerate(program.slots) if _block_of(slot) == block], np.int64)
            for block in range(len(self.blocks))
        ]
        self.reserve(0, len(messages))
        for number, level in enumerate(program.levels, 1):
            self.reserve(number, min(len(messages) + 64, ops.FREE_BYTES * (len(messages) + 64) // level.width))

    def size_of(self, slot: int, rows: int) -> int:
        wanted = self.program.slots[slot]
        return wanted.width * (rows + wanted.offsets)

    def reserve(self, level: int, rows: int) -> None:
        """Give a level room for `rows`, keeping what it holds."""
        for block in (2 * level, 2 * level + 1):
            self.enlarge(block, rows, int(self.levels[level - 1, ops.CURSOR // 8]) if level else 0)
        if level:
            self.levels[level - 1, ops.CAPACITY // 8] = rows

    def enlarge(self, number: int, rows: int, held: int) -> None:
        slots = self.slots_of[number].tolist()
        sizes = [-(-self.size_of(slot, rows) // _ALIGNMENT) * _ALIGNMENT for slot in slots]
        old, block = self.blocks[number], np.empty(sum(sizes), np.uint8)
        start = 0
        for slot, size in zip(slots, sizes, strict=True):
            if old.size:
                used = self.size_of(slot, held)
                block[start : start + used] = old[self.starts[slot] : self.starts[slot] + used]
            elif self.program.slots[slot].offsets:
                block[start : start + 4] = 0
            self.starts[slot] = start
            start += size
        self.blocks[number] = block

    def decode(self, skip: int) -> None:
        state = np.zeros(4, np.int64)
        bases = np.zeros(len(self.program.slots), np.int64)
        while True:
            for slots, block in zip(self.slots_of, self.blocks, strict=True):
                bases[slots] = block.ctypes.data + self.starts[slots]
            table = self.program.bind(bases, self.levels.ctypes.data)
            full = decode(
                table.ctypes.data,
                table.ctypes.data + table.nbytes,
                self.data,
                self.limit,
                self.offsets,
                self.messages.ctypes.data,
                len(self.messages),
                skip,
                self.levels.ctypes.data,
                self.levels.ctypes.data + self.levels.nbytes,
                self.bad.ctypes.data,
                state.ctypes.data,
            )
            if full == 0:
                break
            self.reserve(full, 2 * int(state[ops.WANTED // 8]))
        self.rows, self.n_bad = int(state[ops.ROWS // 8]), int(state[ops.BAD // 8])

    def count(self, level: int) -> int:
        return self.rows if level == 0 else int(self.levels[level - 1, ops.CURSOR // 8])

    def view(self, slot: int, n: int) -> npt.NDArray[np.uint8]:
        start = int(self.starts[slot])
        block: npt.NDArray[np.uint8] = self.blocks[_block_of(self.program.slots[slot])]
        return block[start : start + self.size_of(slot, n)]

    def bits(self, slot: int, n: int) -> pa.Buffer:
        return pa.py_buffer(np.packbits(self.view(slot, n), bitorder="little"))

    def strings(self, column: Column, n: int) -> pa.Buffer:
        offsets = self.view(column.offsets, n).view(np.int32)
        out = np.empty(int(offsets[n]) + _SPARE, np.uint8)
        limit = self.limit
        if column.node.kind == "enum":
            limit = self.program.symbols.ctypes.data + self.program.symbols.nbytes
        gather(out.ctypes.data, self.view(column.sources, n).ctypes.data, offsets.ctypes.data, n, limit)
        return pa.py_buffer(out).slice(0, int(offsets[n]))

    def numbers(self, column: Column, n: int) -> tuple[pa.Buffer, pa.Buffer]:
        scales: npt.NDArray[np.int32] | int = column.scale or 0
        value = column
        if column.children:
            scale, value = column.children
            scales = self.view(scale.values, n).view(np.int32)
        valid = self.view(column.validity, n) if column.validity >= 0 else None
        sources, offsets = self.view(value.sources, n).view(np.int64), self.view(value.offsets, n).view(np.int32)
        return to_text(sources, offsets, scales, valid)

    def array(self, column: Column) -> pa.Array:
        n = self.count(column.level)
        kind = column.node.kind
        validity = self.bits(column.validity, n) if column.validity >= 0 else None
        if kind == "null":
            return pa.nulls(n)
        if column.is_number:
            return pa.Array.from_buffers(column.type, n, [validity, *self.numbers(column, n)])
        if column.sources >= 0:
            buffers = [validity, pa.py_buffer(self.view(column.offsets, n)), self.strings(column, n)]
            return pa.Array.from_buffers(column.type, n, buffers)
        if column.offsets >= 0:
            (entry,) = column.children
            if kind == "map":
                entries = [self.array(child) for child in entry.children]
                fields = [column.type.key_field, column.type.item_field]
                items = pa.StructArray.from_arrays(entries, fields=fields)
            else:
                items = self.array(entry)
            offsets = pa.py_buffer(self.view(column.offsets, n))
            return pa.Array.from_buffers(column.type, n, [validity, offsets], children=[items])
        if column.values < 0:
            children = [self.array(child) for child in column.children]
            return pa.Array.from_buffers(column.type, n, [validity], children=children)
        values = self.bits(column.values, n) if kind == "boolean" else pa.py_buffer(self.view(column.values, n))
        return pa.Array.from_buffers(column.type, n, [validity, values])


def _block_of(slot: Slot) -> int:
    return 2 * slot.level + slot.passing


def null_indexes(values: pa.BinaryArray) -> Int64s:
    """Where an array is null, ascending."""
    if values.null_count == 0:
        return np.empty(0, np.int64)
    return np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))
