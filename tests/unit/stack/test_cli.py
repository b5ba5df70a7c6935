from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.processes import PROCESSES
from cli.stack import PORTS, app, pipeline
from headrace.errors import StackError
from stack.spec import ProcessSpec
from stack.state import Plan, write_plan

run = CliRunner()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_every_process_has_a_port_of_its_own() -> None:
    assert set(PORTS) == set(PROCESSES)
    assert len({spec.port for spec in pipeline()}) == len(PROCESSES)


def test_status_of_nothing_fails_with_the_way_out() -> None:
    result = run.invoke(app, ["status"])
    assert result.exit_code == 1
    assert "headrace up" in result.stderr


def test_status_tells_what_is_stopped_as_json(home: Path) -> None:
    write_plan(home, Plan(["redis"], {"redis": 6379}, processes=[ProcessSpec("sink", ["x"], 9103)]))
    result = run.invoke(app, ["status", "--json"])
    assert result.exit_code == 1
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert (rows["redis"]["kind"], rows["redis"]["state"], rows["redis"]["pid"]) == ("server", "stopped", None)
    assert rows["sink"]["kind"] == "process"


def test_purge_asks_for_the_name_and_never_without_a_terminal(home: Path) -> None:
    (home / "run").mkdir(parents=True)
    result = run.invoke(app, ["down", "--purge"])
    assert isinstance(result.exception, StackError)
    assert home.exists()
    assert run.invoke(app, ["down", "--purge", "--yes"]).exit_code == 0
    assert not home.exists()


def test_down_of_nothing_is_fine() -> None:
    result = run.invoke(app, ["down"])
    assert result.exit_code == 0
    assert "nothing was running" in result.stderr


@pytest.mark.parametrize("arguments", [["--port", "kafka"], ["--port", "kafka=many"], ["--heap", "=1g"]])
def test_malformed_options_are_misuse(arguments: list[str]) -> None:
    assert run.invoke(app, ["up", *arguments]).exit_code == 2


def test_logs_names_what_there_is(home: Path) -> None:
    (home / "logs").mkdir(parents=True)
    (home / "logs" / "redis.log").write_text("one\ntwo\nthree\n")
    assert run.invoke(app, ["logs", "redis", "-n", "2"]).stdout == "two\nthree\n"
    assert run.invoke(app, ["logs", "-n", "1"]).stdout == "redis | three\n"
    assert "there are redis" in str(run.invoke(app, ["logs", "kafka"]).exception)
