import json

import pytest
from typer.testing import CliRunner

from cli.contract import app
from headrace.errors import ContractError

GOOD = {
    "type": "record",
    "name": "A",
    "doc": "One a.",
    "owner": "me",
    "topic": "a",
    "fields": [{"name": "x", "type": "long"}],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "schemas" / "contracts").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADRACE_REGISTRY__URL", "http://127.0.0.1:9/none")
    return tmp_path / "schemas" / "contracts"


def run(*arguments):
    return CliRunner().invoke(app, arguments)


def test_check_is_silent_and_0_when_all_is_well(folder):
    (folder / "a.avsc").write_text(json.dumps(GOOD))
    result = run("check")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "3 contracts: 0 errors, 0 warnings" in result.stderr


def test_check_names_file_and_field_and_exits_1(folder):
    (folder / "a.avsc").write_text(json.dumps(GOOD | {"key": ["y"]}))
    result = run("check")
    assert result.exit_code == 1
    assert result.stdout.startswith("error: schemas/contracts/a.avsc: key: no field y")
    found = json.loads(run("check", "--json").stdout)
    assert [(p["file"], p["at"], p["severity"]) for p in found["problems"]] == [
        ("schemas/contracts/a.avsc", "key", "error")
    ]


def test_warnings_alone_exit_0(folder):
    (folder / "a.avsc").write_text(json.dumps({k: v for k, v in GOOD.items() if k != "doc"}))
    assert run("check").exit_code == 0


def test_nothing_is_registered_while_there_are_errors(folder):
    (folder / "a.avsc").write_text(json.dumps(GOOD | {"key": ["y"]}))
    result = run("register")
    assert isinstance(result.exception, ContractError)
    assert "nothing was registered" in str(result.exception)


def test_list_works_without_a_registry(folder):
    (folder / "a.avsc").write_text(json.dumps(GOOD))
    rows = {r["name"]: r for r in json.loads(run("list", "--json").stdout)}
    assert rows["A"]["rules"] == ["x: type int64", "x: not_null"]
    assert (rows["A"]["version"], rows["KpiValue"]["table"]) == (None, "gold.kpi_values")
