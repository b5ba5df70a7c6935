"""How numba compiles kernels, and the instructions of the native calls. Imported only to compile: see `kernels`.

A kernel's object file has its machine code alone. numba's wrappers for Python are left out, and with them all that they
would have to be linked with.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from ctypes import sizeof
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, typeof_impl

from headrace.errors import TerminalError
from headrace.kernels import Array, Kernel, NativeCall, Signature

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))

_dispatchers: weakref.WeakKeyDictionary[Kernel, Any] = weakref.WeakKeyDictionary()


def compile_kernel(kernel: Kernel) -> bytes:
    """An object file with the kernel under its symbol.

    Raises numba's errors when it cannot be compiled, and `TerminalError` when numba passes arguments in another way
    than `kernels` does.
    """
    (compiled,) = _dispatcher(kernel).overloads.values()
    module = llvm.parse_assembly(compiled.library.get_llvm_str())
    wanted = compiled.fndesc.llvm_func_name
    passed = [str(one.type) for one in module.get_function(wanted).arguments]
    if passed != _parameters(Signature.parse(kernel.signature)):
        hint = "install the numba of constraints.txt"
        raise TerminalError("this numba passes arguments in another way", where=kernel.symbol, hint=hint)
    for value in (*module.functions, *module.global_variables):
        if not value.is_declaration and value.name != wanted and value.linkage != llvm.Linkage.private:
            value.linkage = llvm.Linkage.internal
    module.get_function(wanted).name = kernel.symbol
    machine = _target_machine()
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options()))
    code: bytes = machine.emit_object(module)
    return code


def _parameters(signature: Signature) -> list[str]:
    """Result, error, then numbers one by one and arrays as (two owners, items, item size, data, shape, strides)."""
    types = ["ptr", "ptr"]
    for one in signature.parameters:
        if isinstance(one, Array):
            types += ["ptr", "ptr", "i64", "i64", "ptr"] + ["i64"] * (2 * one.dimensions)
        else:
            types += [f"i{8 * sizeof(one.ctype)}"] * one.count
    return types


def _target_machine() -> Any:
    triple = llvm.get_default_triple()
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        # As numba has it: with the offset table of position-independent code, code in several object files crashes.
        reloc="static" if triple.startswith("x86") else "default",
        jit=True,
    )


def _dispatcher(kernel: Kernel) -> Any:
    """The kernel as numba knows it, compiled for its signature and for no other."""
    if kernel not in _dispatchers:
        options = {"nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False}
        dispatcher = njit(**options)(kernel.function)
        dispatcher.compile(kernel.signature)
        dispatcher.disable_compile()
        _dispatchers[kernel] = dispatcher
    return _dispatchers[kernel]


@typeof_impl.register(Kernel)  # type: ignore[untyped-decorator]  # numba is untyped
def _type_of_kernel(value: Kernel, _context: Any) -> Any:
    return types.Dispatcher(_dispatcher(value))


@typeof_impl.register(NativeCall)  # type: ignore[untyped-decorator]  # numba is untyped
def _type_of_native_call(value: NativeCall, _context: Any) -> Any:
    return cpu_target.typing_context.resolve_value_type(_INTRINSICS[value.name])


def _intrinsic(name: str, arguments: int, emit: Callable[..., Any], has_result: bool = True) -> Any:
    """A function of `arguments` int64 that returns int64, or nothing."""
    signature = (types.int64 if has_result else types.void)(*[types.int64] * arguments)

    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        out = emit(builder, *values)
        return out if has_result else context.get_dummy_value()

    def of_one(_context: Any, a: Any) -> Any:
        return signature, generate

    def of_two(_context: Any, a: Any, b: Any) -> Any:
        return signature, generate

    def of_three(_context: Any, a: Any, b: Any, c: Any) -> Any:
        return signature, generate

    definition = (of_one, of_two, of_three)[arguments - 1]
    definition.__name__ = name
    return intrinsic(definition)


def _pointer(builder: Any, address: Any, type_: Any = _I8) -> Any:
    return builder.inttoptr(address, type_.as_pointer())


def _load(type_: Any, extend: str = "") -> Callable[..., Any]:
    def emit(builder: Any, address: Any) -> Any:
        value = builder.load(_pointer(builder, address, type_), align=1)
        return getattr(builder, extend)(value, _I64) if extend else value

    return emit


def _store(type_: Any) -> Callable[..., Any]:
    def emit(builder: Any, address: Any, value: Any) -> None:
        if type_ is not _I64:
            value = builder.trunc(value, type_)
        builder.store(value, _pointer(builder, address, type_), align=1)

    return emit


def _copy_bytes(builder: Any, target: Any, source: Any, n: Any) -> None:
    cgutils.raw_memcpy(builder, _pointer(builder, target), _pointer(builder, source), n, 1)


def _crc_of_8(builder: Any, crc: Any, word: Any) -> Any:
    type_ = ir.FunctionType(_I64, [_I64, _I64])
    return builder.call(builder.module.declare_intrinsic("llvm.x86.sse42.crc32.64.64", (), type_), [crc, word])


def _crc_of_1(builder: Any, crc: Any, byte: Any) -> Any:
    instruction = builder.module.declare_intrinsic("llvm.x86.sse42.crc32.32.8", (), ir.FunctionType(_I32, [_I32, _I8]))
    return builder.zext(builder.call(instruction, [builder.trunc(crc, _I32), builder.trunc(byte, _I8)]), _I64)


# All at once: numba looks for new ones when it begins to compile.
_INTRINSICS = {
    "load_u8": _intrinsic("load_u8", 1, _load(_I8, "zext")),
    "load_i32": _intrinsic("load_i32", 1, _load(_I32, "sext")),
    "load_i64": _intrinsic("load_i64", 1, _load(_I64)),
    "store_u8": _intrinsic("store_u8", 2, _store(_I8), False),
    "store_i16": _intrinsic("store_i16", 2, _store(_I16), False),
    "store_i32": _intrinsic("store_i32", 2, _store(_I32), False),
    "store_i64": _intrinsic("store_i64", 2, _store(_I64), False),
    "shift_right_logical": _intrinsic("shift_right_logical", 2, lambda builder, value, bits: builder.lshr(value, bits)),
    "count_trailing_zeros": _intrinsic(
        "count_trailing_zeros", 1, lambda builder, value: builder.cttz(value, ir.IntType(1)(0))
    ),
    "count_leading_zeros": _intrinsic(
        "count_leading_zeros", 1, lambda builder, value: builder.ctlz(value, ir.IntType(1)(0))
    ),
    "byte_swap": _intrinsic("byte_swap", 1, lambda builder, value: builder.bswap(value)),
    "copy_bytes": _intrinsic("copy_bytes", 3, _copy_bytes, False),
    "crc_of_8": _intrinsic("crc_of_8", 2, _crc_of_8),
    "crc_of_1": _intrinsic("crc_of_1", 2, _crc_of_1),
}
