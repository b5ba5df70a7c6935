from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cli.compile import MODULES
from headrace import jit, kernels, keyindex, native
from headrace.errors import TerminalError
from headrace.kernels import Kernel, Signature, kernel


@kernel("UniTuple(i8,3)(u1[:,::1],i4[::1],UniTuple(i8,2),b1,i8)", reads=("table",))
def _look(table: Any, words: Any, pair: Any, yes: Any, number: Any) -> Any:
    words[0] = -7
    return table[1, 2] + words[1], pair[0] - pair[1], number if yes else -number


@kernel("i8(i8)")
def _twice(number: int) -> int:
    return 2 * number


@kernel("i8(i8)")
def _four_times(number: int) -> int:
    return _twice(_twice(number))


@kernel("i8(i8,i8)")
def _divide(a: int, b: int) -> int:
    return a // b


@kernel("void(u8[::1],u8)")
def _fill(numbers: Any, number: int) -> None:
    numbers[:] = number


def test_numbers_tuples_and_arrays_come_and_go() -> None:
    table = np.arange(6, dtype=np.uint8).reshape(2, 3)
    words = np.array([1, 2], np.int32)
    assert _look(table, words, (10, 3), True, np.int64(5)) == (7, 7, 5)
    assert _look(table, words, (10, 3), False, 5) == (7, 7, -5)
    assert words.tolist() == [-7, 2]
    numbers = np.zeros(2, np.uint64)
    _fill(numbers, (1 << 64) - 1)
    assert numbers.tolist() == [(1 << 64) - 1] * 2
    assert _four_times(-3) == -12


def test_an_array_that_is_only_read_may_be_read_only() -> None:
    table = np.arange(6, dtype=np.uint8).reshape(2, 3)
    table.flags.writeable = False
    assert _look(table, np.zeros(2, np.int32), (0, 0), False, 1) == (5, 0, -1)
    with pytest.raises(TypeError, match="read-only"):
        _look(table, np.frombuffer(bytes(8), np.int32), (0, 0), False, 1)


@pytest.mark.parametrize(
    "words",
    [np.zeros(2, np.int64), np.zeros((2, 1), np.int32), np.zeros(4, np.int32)[::2]],
    ids=["type", "shape", "gaps"],
)
def test_another_array_is_refused(words: Any) -> None:
    with pytest.raises(TypeError, match="contiguous array of int32, 1-dimensional"):
        _look(np.zeros((2, 3), np.uint8), words, (0, 0), False, 1)


def test_arguments_of_another_number_or_kind_are_refused() -> None:
    with pytest.raises(TypeError, match="takes 1 arguments, not 2"):
        _twice(1, 2)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        _twice(1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        _look(np.zeros((2, 3), np.uint8), np.zeros(2, np.int32), (0, 0, 0), False, 1)
    with pytest.raises(TypeError, match="by kernels alone"):
        native.load_u8(0)


def test_an_error_in_a_kernel_is_raised() -> None:
    assert _divide(7, 2) == 3
    with pytest.raises(TerminalError, match="_divide"):
        _divide(7, 0)


@pytest.mark.parametrize("text", ["i8", "i8[::1](i8)", "void(f8)", "void(i8[:])", "void(UniTuple(i4,2))"])
def test_what_is_no_signature_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"kernel|contiguous"):
        Signature.parse(text)


def test_every_kernel_is_loaded_without_numba_once_it_is_compiled() -> None:
    """Also shows that their code needs no other code: LLVM ends a process that links what it does not find."""
    code = (
        "import sys; from importlib import import_module; from headrace.kernels import Kernel\n"
        f"for name in {MODULES}:\n"
        "    [value.load() for value in vars(import_module(name)).values() if isinstance(value, Kernel)]\n"
        "sys.exit('numba' in sys.modules)"
    )
    subprocess.run([sys.executable, "-m", "cli.compile"], check=True, capture_output=True)
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the kernels that are compiled in a test, whose object files are kept in `source` or `user`."""
    names: list[str] = []
    compile_kernel = jit.compile_kernel

    def spy(one: Kernel) -> bytes:
        names.append(one.symbol.rpartition("_test_kernels_")[2])
        code: bytes = compile_kernel(one)
        return code

    monkeypatch.setattr("headrace.jit.compile_kernel", spy)
    monkeypatch.setattr(Kernel, "_folders", lambda _: (tmp_path / "source", tmp_path / "user"))
    return names


def test_another_way_of_passing_arguments_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.jit._parameters", lambda _: ["ptr", "i64"])
    with pytest.raises(TerminalError, match=r"constraints\.txt"):
        jit.compile_kernel(again(_twice))


def again(one: Any, *uses: ModuleType) -> Kernel:
    return Kernel(one.function, one.signature, uses, one.reads)


def test_code_is_read_until_its_signature_or_a_source_changes(
    compiled: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert [again(_twice)(2), again(_twice)(3)] == [4, 6]
    assert compiled == ["_twice"]
    maker, fingerprint = kernels._maker(), kernels._fingerprint
    for name in ("test_kernels.py", "native.py", "jit.py", "keyindex.py"):
        changed = lambda path, name=name: "changed" if path.name == name else fingerprint(path)  # noqa: E731
        monkeypatch.setattr(kernels, "_fingerprint", changed)
        assert again(_twice, keyindex)(4) == 8
    monkeypatch.setattr(kernels, "_maker", lambda: "another")
    assert again(_twice)(4) == 8
    assert compiled == ["_twice"] * 6
    kept = {path.name.split("-")[1] for path in (tmp_path / "source").iterdir()}
    assert kept == {maker, "another"}, "older code is taken away, that of other machines is not"
    assert len(list((tmp_path / "source").iterdir())) == 2


def test_a_source_that_changes_under_a_process_leaves_its_code_alone(
    compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    early = again(_twice)
    monkeypatch.setattr(kernels, "_fingerprint", lambda _: "changed")
    late = again(_twice)
    assert [early(1), late(1), again(_twice)(1)] == [2, 2, 2]
    assert compiled == ["_twice"] * 2, "what the early one compiled is not that of the changed source"


@pytest.mark.parametrize("damage", [lambda kept: kept[:-100], lambda kept: kept[:-1] + b"?", lambda _: b""])
def test_a_damaged_file_is_compiled_anew(compiled: list[str], tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    assert again(_twice)(2) == 4
    (kept,) = (tmp_path / "source").iterdir()
    kept.write_bytes(damage(kept.read_bytes()))
    assert [again(_twice)(3), again(_twice)(4)] == [6, 8]
    assert compiled == ["_twice"] * 2


def test_what_is_prepared_is_not_compiled_when_it_is_called(
    compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = again(_twice)
    monkeypatch.setattr(kernels, "_KERNELS", [one])
    kernels.prepare()
    kernels.prepare()
    assert compiled == ["_twice"]
    assert one(2) == 4
    assert compiled == ["_twice"]


def test_code_is_kept_for_the_user_where_the_source_cannot_be_written(compiled: list[str], tmp_path: Path) -> None:
    (tmp_path / "source").write_text("a file, so no folder")
    assert [again(_twice)(2), again(_twice)(3)] == [4, 6]
    assert compiled == ["_twice"]
    assert len(list((tmp_path / "user").iterdir())) == 1


def test_what_cannot_be_kept_is_compiled_and_said(
    compiled: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "source").write_text("a file, so no folder")
    (tmp_path / "user").write_text("a file, so no folder")
    assert [again(_twice)(2), again(_twice)(3)] == [4, 6]
    assert compiled == ["_twice"] * 2
    assert "cannot be kept" in capsys.readouterr().out
