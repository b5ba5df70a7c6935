"""The command line and its processes, where they find a session's servers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from headrace.config import Settings
from stack.testing import scattered_ports

SECTIONS = {"content", "kafka", "registry", "postgres", "mariadb", "connect", "databases", "endpoints"}


@dataclass(frozen=True)
class Operator:
    """Somebody in a folder of a test's own."""

    folder: Path

    @classmethod
    def of(cls, settings: Settings, folder: Path) -> Operator:
        home = folder / ".headrace"
        home.mkdir(exist_ok=True)
        (home / "endpoints.json").write_text(settings.model_dump_json(include=SECTIONS))
        return cls(folder)

    def start(self, module: str, *arguments: str) -> subprocess.Popen[str]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        return subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            cwd=self.folder,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, status: int = 0) -> tuple[str, str]:
        """What `headrace` prints, data and messages."""
        process = self.start("cli.main", *arguments)
        data, messages = process.communicate(timeout=150)
        assert process.returncode == status, messages + data
        return data, messages


@contextmanager
def serving(settings: Settings, folder: Path, name: str) -> Iterator[tuple[Operator, str]]:
    """A process of the pipeline, and its address, which the operator's commands know."""
    url = f"http://127.0.0.1:{(port := scattered_ports([name])[name])}"
    operator = Operator.of(settings.model_copy(update={"endpoints": {name: url}}), folder)
    process = operator.start("cli.processes", name, "--port", str(port))
    try:
        deadline = time.monotonic() + 60
        while not _well(url):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield operator, url
    finally:
        process.terminate()
        process.communicate(timeout=60)


def _well(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
