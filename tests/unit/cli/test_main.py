"""What every command keeps to: exit status, where output goes, errors as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.compile import MODULES

ROOT = Path(__file__).parents[3]


def headrace(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
    return subprocess.run(
        [sys.executable, "-P", "-m", "cli.main", *arguments],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_error_is_one_line_on_stderr_and_status_1(tmp_path: Path) -> None:
    done = headrace(tmp_path, "sql", "SELECT 1 FROM silver.t")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip().splitlines() == [
        "headrace: lake.uri: no catalog is configured (start the local stack: headrace up)"
    ]


def test_an_error_is_json_on_stdout_when_json_is_asked_for(tmp_path: Path) -> None:
    done = headrace(tmp_path, "sql", "SELECT 1 FROM silver.t", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["where"] == "lake.uri"


def test_misuse_is_status_2(tmp_path: Path) -> None:
    assert headrace(tmp_path, "run", "nothing").returncode == 2
    assert headrace(tmp_path, "nonsense").returncode == 2


def test_a_wrong_setting_is_named_without_its_value(tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_text('[kafka]\npartitions = "hunter2"\n')
    done = headrace(tmp_path, "config", "explain")
    assert done.returncode == 1
    assert "kafka.partitions" in done.stderr
    assert "hunter2" not in done.stderr


def test_a_command_imports_what_it_needs_alone() -> None:
    made = "import sys; from cli.main import make_app; make_app('status')"
    told = f"{made}; print({{'duckdb', 'pyiceberg'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", told], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("command", ["up", "down", "status", "logs", "sql", "verify", "run"])
def test_each_command_explains_itself(tmp_path: Path, command: str) -> None:
    done = headrace(tmp_path, command, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_kernels_are_compiled_in_sight_and_once(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "cli.compile"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    lines = done.stderr.splitlines()
    assert lines[0].startswith("compiling kernels: 1 of ")
    assert lines[-1].startswith("kernels are ready")


def test_every_kernel_is_compiled_ahead() -> None:
    folders = ("headrace", "schemas", "streams", "sinks", "connectors")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    with_kernels = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in found
        if any(line.startswith("@kernel(") for line in path.read_text().splitlines())
    }
    assert with_kernels == set(MODULES)
