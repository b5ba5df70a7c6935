"""A second worker with the group of the first and another config topic."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import make_app
from connectors.connect import Connect, load_connector
from connectors.watch import Watch
from headrace.config import Settings
from stack.state import read_children
from stack.testing import SessionStack, scattered_ports
from tests.integration.connectors.conftest import Source


def test_two_clusters_with_one_group_are_told(
    settings: Settings,
    connect_url: str,
    source: Source,
    stack: SessionStack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("connectors.watch.WORKERS_SECONDS", 0.0)
    Connect(connect_url).apply(load_connector(source.write()))
    with closing(Watch(settings)) as watch:
        assert watch.look({source.name})[0].problems == ()
        process = read_children(stack.home)["connect"].process()
        assert process is not None
        *command, config = process.cmdline()
        port = str(scattered_ports(["other"])["other"])
        own = Path(config).read_text().replace(connect_url.rpartition(":")[2], port)
        own = re.sub(r"(?m)^config[.]storage[.]topic=.*", f"config.storage.topic={source.name}.configs", own)
        (tmp_path / "other.properties").write_text(own)
        with open(tmp_path / "log", "wb") as log:
            other = subprocess.Popen(
                [*command, str(tmp_path / "other.properties")],
                env=process.environ(),
                cwd=tmp_path,
                stdout=log,
                stderr=log,
            )
        try:
            _until(lambda: bool(_look(watch, source)))
            assert f"127.0.0.1:{port}/ none" in watch.divided
            assert f"{connect_url}/ {source.name}" in watch.divided
            assert _look(watch, source) == (watch.divided,)
            monkeypatch.setenv("HEADRACE_CONNECT__URL", connect_url)
            monkeypatch.setenv("HEADRACE_KAFKA__BOOTSTRAP_SERVERS", settings.kafka.bootstrap_servers)
            monkeypatch.setenv("HEADRACE_REGISTRY__URL", settings.registry.url)
            monkeypatch.chdir(tmp_path)
            told = CliRunner().invoke(make_app(), ["connect", "status"])
            assert told.exit_code == 1
            assert "give each a group.id" in told.output
        finally:
            other.terminate()
            other.wait(30)
        _until(lambda: not _look(watch, source))


def _look(watch: Watch, source: Source) -> tuple[str, ...]:
    return watch.look({source.name})[0].problems


def _until(true: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.5)
