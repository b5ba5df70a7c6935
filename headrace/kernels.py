"""Compiled kernels: functions of numbers and arrays that run as machine code, without Python objects or the GIL.

numba compiles a kernel once a machine. What it makes is kept as an object file, and later processes load that through
LLVM alone: numba itself, 80 MB and a quarter of a second of each process, is imported to compile and not otherwise.

A kernel is loaded when it is first called from Python. Kernels and native calls that it calls are part of its code.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, update_wrapper
from importlib.metadata import version
from operator import index
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

import llvmlite.binding as llvm
import numpy as np

from headrace.errors import TerminalError
from headrace.logs import get_logger

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Part of every kernel: the native calls, and what compiles them.
_ALWAYS = tuple(Path(__file__).with_name(name) for name in ("native.py", "jit.py"))
# Where a kernel says which error it raises; nobody looks, its status says that it did.
_RAISED = ctypes.create_string_buffer(8)


@dataclass(frozen=True, slots=True)
class Array:
    """A parameter that takes a C-contiguous array. It may be read-only: a kernel must not write to what is."""

    dtype: np.dtype[Any]
    dimensions: int


@dataclass(frozen=True, slots=True)
class Numbers:
    """A parameter or result of `count` numbers of one type: a tuple, unless `alone`."""

    ctype: type[Any]
    count: int = 1
    alone: bool = True


@dataclass(frozen=True)
class Signature:
    """What a kernel takes and returns; `result` is None for nothing."""

    result: Numbers | None
    parameters: tuple[Array | Numbers, ...]

    @classmethod
    def parse(cls, text: str) -> Signature:
        """Read numba's notation: `i8` and `u8` have 8 bytes, `b1` is a boolean, `UniTuple(i8,3)` three numbers,
        `u1[::1]` an array of bytes, `i8[:,::1]` one of two dimensions, `void` nothing. Raises ValueError for others."""
        found = re.fullmatch(r"(UniTuple\(\w+,\d+\)|\w+)\((.*)\)", text.replace(" ", ""))
        if found is None:
            raise ValueError(f"not a kernel's signature: {text}")
        result = None if found[1] == "void" else _type(found[1])
        if isinstance(result, Array):
            raise ValueError(f"a kernel returns numbers: {text}")
        return cls(result, tuple(map(_type, re.findall(r"UniTuple\(\w+,\d+\)|\w+\[[^]]*\]|\w+", found[2]))))


_NUMBERS: dict[str, type[Any]] = {"i8": ctypes.c_int64, "u8": ctypes.c_uint64, "b1": ctypes.c_uint8}


def _type(text: str) -> Array | Numbers:
    name, array, shape = text.partition("[")
    if array:
        if not shape.endswith("::1]"):
            raise ValueError(f"not a C-contiguous array: {text}")
        return Array(np.dtype(name), shape.count(",") + 1)
    several = re.fullmatch(r"UniTuple\((\w+),(\d+)\)", text)
    name = several[1] if several else text
    if name not in _NUMBERS:
        raise ValueError(f"not a type that kernels take: {text}")
    return Numbers(_NUMBERS[name], int(several[2]), False) if several else Numbers(_NUMBERS[name])


class NativeCall:
    """A few instructions that kernels, and nobody else, call by this name; `headrace.jit` has them."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *_: int) -> int:
        raise TypeError(f"{self.name} can be called by kernels alone")


class Kernel:
    """A function that is compiled for one signature. Other types of arguments raise TypeError."""

    def __init__(self, function: Callable[..., Any], signature: str, uses: Iterable[ModuleType] = ()) -> None:
        update_wrapper(self, function)
        self.function = function
        self.signature = signature
        self.symbol = f"{function.__module__}.{function.__qualname__}".replace(".", "_")
        self._uses = tuple(uses)
        self._call: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        return (self._call or self.load())(*arguments)

    def load(self) -> Callable[..., Any]:
        """The compiled function: the one in memory or on disk, or else compiled now, which takes a second or so.

        Raises numba's errors when it cannot be compiled.
        """
        with _LOCK:
            if self._call is None:
                code = self._read() or self._compile()
                self._call = _bind(self, _engine().link(self.symbol, code))
        return self._call

    def _file_name(self) -> str:
        source = Path(self.function.__code__.co_filename)
        used = (Path(str(module.__file__)) for module in self._uses)
        parts = [self.signature, *map(_fingerprint, (source, *_ALWAYS, *used)), _maker()]
        return f"{self.symbol}-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:24]}.o"

    def _folders(self) -> tuple[Path, Path]:
        """Beside the source, where an image is built by another user than runs it; where that can't be written, the
        user's own."""
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return Path(self.function.__code__.co_filename).parent / "__pycache__", home / "headrace" / "kernels"

    def _read(self) -> bytes | None:
        for folder in self._folders():
            try:
                return (folder / self._file_name()).read_bytes()
            except OSError:
                continue
        return None

    def _compile(self) -> bytes:
        from headrace.jit import compile_kernel  # numba is imported where it is needed, and nowhere else

        code = compile_kernel(self)
        for folder in self._folders():
            if _keep(folder, self.symbol, self._file_name(), code):
                return code
        get_logger("kernels").warning("cannot be kept: compiled at every start", kernel=self.symbol)
        return code


def _keep(folder: Path, symbol: str, name: str, code: bytes) -> bool:
    """Put code where later processes find it, and take away what older sources made."""
    unfinished = folder / f"{name}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(code)
        for older in folder.glob(f"{symbol}-*.o"):
            older.unlink(missing_ok=True)
        unfinished.replace(folder / name)
    except OSError:
        return False
    return True


def kernel(signature: str, uses: Iterable[ModuleType] = ()) -> Callable[[_Function], _Function]:
    """Make a function of this signature (see `Signature.parse`) a kernel.

    It is compiled anew when its file, `headrace/native.py`, one of the modules in `uses`, numba or the processor has
    changed: a kernel that calls kernels of further modules or takes their constants names them there. Arrays reach it
    as they are, without bounds checks.
    """

    def make(function: _Function) -> _Function:
        return cast(_Function, Kernel(function, signature, uses))

    return make


def _bind(kernel: Kernel, address: int) -> Callable[..., Any]:
    """Machine code as a function of Python's values, by the calling convention that `headrace.jit` makes sure of: what
    is returned is a status, and the kernel's result is behind the first pointer."""
    signature = Signature.parse(kernel.signature)
    flat: list[Any] = []
    for parameter in signature.parameters:
        if isinstance(parameter, Array):
            flat += [ctypes.c_int64] * (5 + 2 * parameter.dimensions)
        else:
            flat += [parameter.ctype] * parameter.count
    native = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *flat)(address)
    parameters = signature.parameters
    result = signature.result
    make_result: Any = ctypes.c_int64 if result is None else result.ctype * result.count

    def call(*arguments: Any) -> Any:
        if len(arguments) != len(parameters):
            raise TypeError(f"{kernel.symbol} takes {len(parameters)} arguments, not {len(arguments)}")
        values: list[int] = []
        for parameter, argument in zip(parameters, arguments, strict=True):
            if isinstance(parameter, Array):
                values += _array(parameter, argument)
            elif parameter.alone:
                values.append(index(argument))
            elif len(argument) == parameter.count:
                values += argument
            else:
                raise TypeError(f"takes {parameter.count} numbers, not {len(argument)}")
        out = make_result()
        if native(ctypes.byref(out), _RAISED, *values):
            raise TerminalError("a kernel failed", where=kernel.symbol)
        if result is None:
            return None
        return out[0] if result.alone else tuple(out)

    return call


def _array(parameter: Array, array: Any) -> tuple[int, ...]:
    if array.dtype != parameter.dtype or array.ndim != parameter.dimensions or not array.flags.c_contiguous:
        raise TypeError(f"takes a contiguous array of {parameter.dtype}, {parameter.dimensions}-dimensional")
    data = array.__array_interface__["data"][0]
    return 0, 0, array.size, array.itemsize, data, *array.shape, *array.strides


class _Engine:
    """LLVM's linker of this process."""

    def __init__(self) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)

    def link(self, symbol: str, code: bytes) -> int:
        """The address of a function in an object file."""
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        return int(self._engine.get_function_address(symbol))


# Re-entrant: to compile a kernel asks for those that it calls.
_LOCK = threading.RLock()


@cache
def _engine() -> _Engine:
    return _Engine()


@cache
def _fingerprint(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def _maker() -> str:
    processor = f"{llvm.get_default_triple()} {llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}"
    return f"numba {version('numba')}, llvmlite {version('llvmlite')}, {processor}"
