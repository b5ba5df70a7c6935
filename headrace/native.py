"""Raw memory for compiled kernels: loads, stores, copies, varints and checksums on plain 64-bit addresses.

Kernels (Kafka's record batches, Avro) take addresses of Arrow buffers and run without Python objects and without the
GIL. All integers are signed 64-bit, little endian in memory unless `byte_swap` says otherwise, and may be unaligned.
Nothing here checks an address: a kernel compares every length that it reads with the end of its input, as
`length > end - position`, because `position + length` can overflow.

numba's disk cache knows the file of the cached function alone, not the files of the functions inlined into it. So
`kernel` adds this file's fingerprint to every cache key: kernels are compiled anew when this file changes. A kernel
that calls compiled functions or takes constants of further modules names them in `uses`.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import llvmlite.binding
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.caching import FunctionCache
from numba.extending import intrinsic

_Function = TypeVar("_Function", bound=Callable[..., Any])
_FINGERPRINT = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))


class _KernelCache(FunctionCache):  # type: ignore[misc]
    fingerprints: tuple[str, ...] = ()

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return (*super()._index_key(sig, codegen), *self.fingerprints)


def kernel(signature: str, uses: Iterable[ModuleType] = ()) -> Callable[[_Function], _Function]:
    """Compile a function once a machine, for exactly one signature (numba's notation, `i8` is int64).

    The compiled code releases the GIL and is read from the disk cache when neither its file, this file, the modules in
    `uses`, numba nor the processor changed. Raises numba's errors at import when the function cannot be compiled.
    """
    sources = (hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest() for module in uses)
    fingerprints = (_FINGERPRINT, *sources)

    def compile_(function: _Function) -> _Function:
        dispatcher = njit(nogil=True)(function)
        if hasattr(dispatcher, "compile"):  # not so under NUMBA_DISABLE_JIT
            dispatcher._cache = _KernelCache(function)
            dispatcher._cache.fingerprints = fingerprints
            dispatcher.compile(signature)
            dispatcher.disable_compile()
        compiled: _Function = dispatcher
        return compiled

    return compile_


def native_call(name: str, arguments: int, emit: Callable[..., Any], *, result: bool = True) -> Callable[..., int]:
    """A function of `arguments` int64, emitted as LLVM instructions by `emit(builder, *values)`.

    Returns int64, or nothing when `result` is false.
    """

    def signature() -> Any:
        return (types.int64 if result else types.void)(*[types.int64] * arguments)

    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        out = emit(builder, *values)
        return out if result else context.get_dummy_value()

    def of_one(_context: Any, a: Any) -> Any:
        return signature(), generate

    def of_two(_context: Any, a: Any, b: Any) -> Any:
        return signature(), generate

    def of_three(_context: Any, a: Any, b: Any, c: Any) -> Any:
        return signature(), generate

    definition = (of_one, of_two, of_three)[arguments - 1]
    definition.__name__ = name
    function: Callable[..., int] = intrinsic(definition)
    return function


def _pointer(builder: Any, address: Any, type_: Any = _I8) -> Any:
    return builder.inttoptr(address, type_.as_pointer())


def _load(name: str, type_: Any, extend: str = "") -> Callable[[int], int]:
    def emit(builder: Any, address: Any) -> Any:
        value = builder.load(_pointer(builder, address, type_), align=1)
        return getattr(builder, extend)(value, _I64) if extend else value

    return native_call(name, 1, emit)


def _store(name: str, type_: Any) -> Callable[[int, int], int]:
    def emit(builder: Any, address: Any, value: Any) -> None:
        if type_ is not _I64:
            value = builder.trunc(value, type_)
        builder.store(value, _pointer(builder, address, type_), align=1)

    return native_call(name, 2, emit, result=False)


load_u8 = _load("load_u8", _I8, "zext")
load_i32 = _load("load_i32", _I32, "sext")
load_i64 = _load("load_i64", _I64)
store_u8 = _store("store_u8", _I8)
store_i16 = _store("store_i16", _I16)
store_i32 = _store("store_i32", _I32)
store_i64 = _store("store_i64", _I64)
shift_right_logical = native_call("shift_right_logical", 2, lambda b, value, bits: b.lshr(value, bits))
count_trailing_zeros = native_call("count_trailing_zeros", 1, lambda b, value: b.cttz(value, ir.IntType(1)(0)))
count_leading_zeros = native_call("count_leading_zeros", 1, lambda b, value: b.ctlz(value, ir.IntType(1)(0)))
byte_swap = native_call("byte_swap", 1, lambda b, value: b.bswap(value))
copy_bytes = native_call(
    "copy_bytes",
    3,
    lambda b, target, source, n: cgutils.raw_memcpy(b, _pointer(b, target), _pointer(b, source), n, 1),
    result=False,
)


@kernel("void(i8,i8,i8,i8)")
def copy_padded(target: int, source: int, n: int, limit: int) -> None:
    """Copy n bytes, in blocks of 16 while these stay below `limit`, the end of what may be read.

    `target` must have 16 spare bytes after n. Several times faster than `copy_bytes` for short strings.
    """
    if n <= limit - source - 15:
        k = 0
        while k < n:
            store_i64(target + k, load_i64(source + k))
            store_i64(target + k + 8, load_i64(source + k + 8))
            k += 16
    else:
        copy_bytes(target, source, n)


@kernel("UniTuple(i8,2)(i8,i8)")
def read_varint_bytewise(p: int, limit: int) -> tuple[int, int]:
    """`read_varint` without reading 8 bytes at once: near the end of the input and for 9 or 10 byte values."""
    value = 0
    shift = 0
    while p < limit and shift < 70:
        byte = load_u8(p)
        p += 1
        value |= (byte & 0x7F) << shift
        if byte < 128:
            return shift_right_logical(value, 1) ^ -(value & 1), p
        shift += 7
    return 0, limit + 1


@kernel("UniTuple(i8,2)(i8,i8)")
def read_varint(p: int, limit: int) -> tuple[int, int]:
    """Zigzag varint (Kafka's varlong, Avro's long) at p: (value, next position).

    Never reads at or past `limit`. The next position is above `limit` when the value is cut off or has more than 10
    bytes.
    """
    if limit - p < 8:
        return read_varint_bytewise(p, limit)
    word = load_i64(p)
    if (word & 0x80) == 0:
        byte = word & 0x7F
        return (byte >> 1) ^ -(byte & 1), p + 1
    ends = (word & -0x7F7F7F7F7F7F7F80) ^ -0x7F7F7F7F7F7F7F80  # the top bits of bytes that end a value
    if ends == 0:
        return read_varint_bytewise(p, limit)
    last = count_trailing_zeros(ends)
    word &= (ends ^ (ends - 1)) & 0x7F7F7F7F7F7F7F7F
    word = ((word & 0x7F007F007F007F00) >> 1) | (word & 0x007F007F007F007F)
    word = ((word & 0x3FFF00003FFF0000) >> 2) | (word & 0x00003FFF00003FFF)
    word = ((word & 0x0FFFFFFF00000000) >> 4) | (word & 0x000000000FFFFFFF)
    return (word >> 1) ^ -(word & 1), p + (last >> 3) + 1


@kernel("i8(i8)")
def varint_size(value: int) -> int:
    """Bytes that `write_varint` writes: 1 to 10."""
    zigzag = (value << 1) ^ (value >> 63)
    if zigzag == 0:
        return 1
    return (63 - count_leading_zeros(zigzag)) // 7 + 1


@kernel("i8(i8,i8)")
def write_varint(p: int, value: int) -> int:
    """Write a zigzag varint at p; returns the position after it."""
    rest = (value << 1) ^ (value >> 63)
    while rest & -128 != 0:
        store_u8(p, (rest & 0x7F) | 0x80)
        p += 1
        rest = shift_right_logical(rest, 7)
    store_u8(p, rest)
    return p + 1


def _crc_table() -> npt.NDArray[np.int64]:
    table = np.arange(256, dtype=np.int64)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ 0x82F63B78, table >> 1)
    return table


_CRC_TABLE = _crc_table()
_HAS_CRC_INSTRUCTION = platform.machine() in ("x86_64", "AMD64") and bool(
    llvmlite.binding.get_host_cpu_features().get("sse4.2")
)


def _emit_crc_of_8(builder: ir.IRBuilder, crc: ir.Value, word: ir.Value) -> ir.Value:
    type_ = ir.FunctionType(_I64, [_I64, _I64])
    return builder.call(builder.module.declare_intrinsic("llvm.x86.sse42.crc32.64.64", (), type_), [crc, word])


def _emit_crc_of_1(builder: ir.IRBuilder, crc: ir.Value, byte: ir.Value) -> ir.Value:
    instruction = builder.module.declare_intrinsic("llvm.x86.sse42.crc32.32.8", (), ir.FunctionType(_I32, [_I32, _I8]))
    return builder.zext(builder.call(instruction, [builder.trunc(crc, _I32), builder.trunc(byte, _I8)]), _I64)


_crc_of_8 = native_call("crc_of_8", 2, _emit_crc_of_8)
_crc_of_1 = native_call("crc_of_1", 2, _emit_crc_of_1)


@kernel("i8(i8,i8)")
def crc32c_by_table(data: int, size: int) -> int:
    """CRC-32C (Castagnoli) of a buffer, on any processor."""
    crc = 0xFFFFFFFF
    for i in range(size):
        crc = _CRC_TABLE[(crc ^ load_u8(data + i)) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


crc32c = crc32c_by_table

if _HAS_CRC_INSTRUCTION:

    @kernel("i8(i8,i8)")
    def crc32c(data: int, size: int) -> int:
        """CRC-32C (Castagnoli) of a buffer."""
        crc = 0xFFFFFFFF
        end = data + size
        while end - data >= 8:
            crc = _crc_of_8(crc, load_i64(data))
            data += 8
        while data < end:
            crc = _crc_of_1(crc, load_u8(data))
            data += 1
        return crc ^ 0xFFFFFFFF
