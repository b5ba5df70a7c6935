"""The whole demo, started once as a user starts it, in a home of its own and on free ports."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from stack import control

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


class Headrace:
    """The command line in one home, with content folders of choice."""

    def __init__(self, home: Path, content: list[Path], **environ: str) -> None:
        self.home = home
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
        self.environ = {
            **inherited,
            "HEADRACE_HOME": str(home),
            "HEADRACE_CONTENT": os.pathsep.join(map(str, content)),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            **environ,
        }

    def __call__(self, *arguments: str, check: bool = True, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [BIN / "headrace", *arguments],
            env=self.environ,
            cwd=self.home.parent,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, f"headrace {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *arguments: str, check: bool = True) -> Any:
        return json.loads(self(*arguments, "--json", check=check).stdout)

    def get(self, key: str) -> str:
        """What the stack says of itself; asked often, so without a process for each time."""
        value = json.loads((self.home / "endpoints.json").read_text())
        for part in key.split("."):
            value = value[part]
        return str(value)

    def sql(self, statement: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.json("sql", statement)
        return rows

    def status(self) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in control.status(self.home)}

    def kpis(self) -> dict[str, Any]:
        return {kpi["name"]: kpi for kpi in httpx.get(f"{self.get('endpoints.serve')}/api/kpis", timeout=10).json()}

    def processes(self) -> list[psutil.Process]:
        """Everything that runs on behalf of this home."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get("HEADRACE_HOME") == str(self.home):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found


def eventually(seconds: float, what: str, found: Any, *, every: float = 0.5) -> Any:
    """The first true value of `found()`; fails with `what` and the last value after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, f"{what}: still {value!r} after {seconds:.0f} s"
        time.sleep(every)
    return value


def revisions(headrace: Headrace) -> dict[str, int]:
    return {name: max((p["revision"] for p in kpi["points"]), default=0) for name, kpi in headrace.kpis().items()}


@pytest.fixture(scope="package")
def folder() -> Iterator[Path]:
    # Not below pytest's own folders: they are closed to the user that Postgres runs as.
    path = Path(tempfile.mkdtemp(prefix="headrace-e2e-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


# Not for the whole session: all other tests would run beside it.
@pytest.fixture(scope="package")
def demo(folder: Path) -> Iterator[Headrace]:
    """`headrace demo up --detach`; beside the demo's content there is a folder that tests may add to before."""
    content = folder / "content"
    (content / "connectors" / "debezium").mkdir(parents=True)
    (content / "connectors" / "debezium" / "bench.json").write_text(BENCH_CONNECTOR)
    # Compaction often enough to be met.
    headrace = Headrace(folder / "demo", [REPOSITORY, content], HEADRACE_SINK__COMPACT_EVERY="3")
    try:
        done = headrace("demo", "up", "--detach", "--skip=bench")
        urls = [word for word in done.stderr.split() if word.startswith("http")]
        assert urls[-1] == f"{headrace.get('endpoints.serve')}/", "the dashboard is the last URL printed"
        yield headrace
    finally:
        headrace("down", "--purge", "--yes", check=False)
    assert not headrace.home.exists()
    assert headrace.processes() == []


BENCH_CONNECTOR = json.dumps(
    {
        "name": "bench",
        "config": {
            "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
            "database.hostname": "${env:POSTGRES_HOST}",
            "database.port": "${env:POSTGRES_PORT}",
            "database.user": "${env:POSTGRES_USER}",
            "database.password": "${env:POSTGRES_PASSWORD}",
            "database.dbname": "bench",
            "plugin.name": "pgoutput",
            "slot.name": "bench",
            "publication.name": "bench",
            "publication.autocreate.mode": "filtered",
            "topic.prefix": "bench",
            "schema.include.list": "public",
            "provide.transaction.metadata": "true",
            "skipped.operations": "none",
            "topic.creation.default.partitions": "2",
            "topic.creation.default.replication.factor": "1",
        },
    }
)
