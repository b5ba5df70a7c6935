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
import secrets
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
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
    """A parameter that takes a C-contiguous array."""

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

    def __init__(
        self, function: Callable[..., Any], signature: str, uses: Iterable[ModuleType] = (), reads: Iterable[str] = ()
    ) -> None:
        update_wrapper(self, function)
        self.function = function
        self.signature = signature
        self.reads = frozenset(reads)
        self.symbol = f"{function.__module__}.{function.__qualname__}".replace(".", "_")
        self._source = Path(function.__code__.co_filename)
        # As they are when they are imported: a file may be another one by the time that its kernel is called.
        files = (self._source, *_ALWAYS, *(Path(str(module.__file__)) for module in uses))
        self._version = _digest("|".join([signature, *map(_fingerprint, files)]).encode()).hex()[:24]
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

    def prepare(self) -> bool:
        """Compile it unless that was done; whether it was not."""
        with _LOCK:
            missing = self._call is None and self._read() is None
            if missing:
                self._compile()
        return missing

    def _file_name(self) -> str:
        return f"{self.symbol}-{_maker()}-{self._version}.o"

    def _folders(self) -> tuple[Path, Path]:
        """Beside the source, where an image is built by another user than runs it; where that can't be written, the
        user's own."""
        home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
        return self._source.parent / "__pycache__", home / "headrace" / "kernels"

    def _read(self) -> bytes | None:
        """What was compiled, or None where there is none that is whole."""
        for folder in self._folders():
            try:
                kept = (folder / self._file_name()).read_bytes()
            except OSError:
                continue
            if kept[:32] == _digest(kept[32:]):
                return kept[32:]
        return None

    def _compile(self) -> bytes:
        from headrace.jit import compile_kernel  # numba is imported where it is needed, and nowhere else

        code = compile_kernel(self)
        for folder in self._folders():
            if _keep(folder, self._file_name(), _digest(code) + code):
                return code
        get_logger("kernels").warning("cannot be kept: compiled at every start", kernel=self.symbol)
        return code


def prepare(told: Callable[[str], None] = lambda _: None) -> None:
    """Compile, of the kernels that are imported, those that were not: before a process does what must not wait. `told`
    gets the symbol of each."""
    for one in _KERNELS:
        if one.prepare():
            told(one.symbol)


def _keep(folder: Path, name: str, content: bytes) -> bool:
    """Put a file where later processes find it, and take away what older sources made."""
    unfinished = folder / f"{name}.{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        unfinished.replace(folder / name)
    except OSError:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        return False
    for older in folder.glob(f"{name.rpartition('-')[0]}-*.o"):
        if older.name != name:
            with suppress(OSError):
                older.unlink()
    return True


_KERNELS: list[Kernel] = []


def kernel(
    signature: str, uses: Iterable[ModuleType] = (), reads: Iterable[str] = ()
) -> Callable[[_Function], _Function]:
    """Make a function of this signature (see `Signature.parse`) a kernel.

    It is compiled anew when its file, `headrace/native.py`, one of the modules in `uses`, numba or the processor has
    changed: a kernel that calls kernels of further modules or takes their constants names them there. `reads` are
    arrays that it does not write to: these may be read-only. They reach it as they are, without bounds checks.
    """

    def make(function: _Function) -> _Function:
        made = Kernel(function, signature, uses, reads)
        _KERNELS.append(made)
        return cast(_Function, made)

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
    names = kernel.function.__code__.co_varnames
    parameters = [(one, name in kernel.reads) for one, name in zip(signature.parameters, names, strict=False)]
    result = signature.result
    make_result: Any = ctypes.c_int64 if result is None else result.ctype * result.count

    def call(*arguments: Any) -> Any:
        if len(arguments) != len(parameters):
            raise TypeError(f"{kernel.symbol} takes {len(parameters)} arguments, not {len(arguments)}")
        values: list[int] = []
        for (parameter, only_read), argument in zip(parameters, arguments, strict=True):
            if isinstance(parameter, Array):
                values += _array(parameter, argument, only_read)
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


def _array(parameter: Array, array: Any, only_read: bool) -> tuple[int, ...]:
    if not (only_read or array.flags.writeable):
        raise TypeError("writes to an array that is read-only")
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
        address = int(self._engine.get_function_address(symbol))
        if not address:
            raise TerminalError("its object file lacks it", where=symbol)
        return address


# Re-entrant: to compile a kernel asks for those that it calls.
_LOCK = threading.RLock()


@cache
def _engine() -> _Engine:
    return _Engine()


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


@cache
def _fingerprint(path: Path) -> str:
    return _digest(path.read_bytes()).hex()


@cache
def _maker() -> str:
    processor = f"{llvm.get_default_triple()} {llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}"
    return _digest(f"numba {version('numba')}, llvmlite {version('llvmlite')}, {processor}".encode()).hex()[:12]
