"""Decisions about tables, and the commands that take them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from cli.table import app
from headrace.errors import IdentityError, OffsetGapError, TerminalError
from sinks.iceberg.append import AppendTable
from sinks.iceberg.current import CurrentTable
from sinks.iceberg.operate import accept_gaps, adopt, existing_table, table_names, table_state
from tests.unit.sinks.iceberg.support import TOPIC, change, lake, land, rows_of, slice_of, source


@pytest.fixture
def bronze(catalog):
    table = AppendTable(catalog, "bronze.things", TOPIC)
    table.open(source())
    land(table, slice_of([None, None]))
    return table


def test_an_accepted_gap_stays_recorded_and_the_table_goes_on(catalog, bronze):
    with pytest.raises(OffsetGapError, match="accept-gap"):
        bronze.open(source(begin=5))
    assert accept_gaps(existing_table(catalog, "bronze.things")) == [f"{TOPIC}-0 2-5"]
    assert accept_gaps(existing_table(catalog, "bronze.things")) == []
    assert bronze.open(source(begin=5)) == {0: 5}
    land(bronze, slice_of([None], 5))
    assert rows_of(bronze, "_offset") == [(0,), (1,), (5,)]
    assert bronze.properties[f"headrace.gap.{TOPIC}.0"] == "2-5:accepted"


def test_an_adopted_table_starts_over_and_keeps_its_rows(catalog, bronze):
    elsewhere = source(topic_id="new", begin=0)
    with pytest.raises(IdentityError, match="adopt"):
        bronze.open(elsewhere)
    assert adopt(existing_table(catalog, "bronze.things")) == [TOPIC]
    assert bronze.open(elsewhere) == {0: 0}
    land(bronze, slice_of([None]))
    assert len(rows_of(bronze, "_offset")) == 3
    assert bronze.properties[f"headrace.identity.{TOPIC}"] == "cluster/new"


def test_a_table_in_numbers(catalog, bronze):
    table = CurrentTable(catalog, "silver.things", TOPIC)
    table.open(source())
    for i in range(2):
        land(table, slice_of([change("u", {"id": n, "name": "x", "n": i}, 3 * i + n + 1) for n in range(3)], 3 * i))
    assert table_names(catalog) == ["bronze.things", "silver.things"]
    state = table_state(existing_table(catalog, "silver.things"))
    assert (state.rows, state.dead_rows, state.files, state.delete_files, state.snapshots) == (3, 3, 2, 1, 2)
    assert state.topics[TOPIC]["offsets"] == {0: 6}
    with pytest.raises(TerminalError, match="no such table"):
        existing_table(catalog, "silver.nothing")


def test_commands(tmp_path: Path, catalog, bronze, monkeypatch):
    settings = lake(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADRACE_LAKE__URI", settings.uri)
    monkeypatch.setenv("HEADRACE_LAKE__WAREHOUSE", settings.warehouse)
    stray = tmp_path / "warehouse" / "bronze" / "things" / "data" / "stray.parquet"
    stray.write_bytes(b"abc")

    def run(*arguments: str) -> object:
        result = CliRunner().invoke(app, [*arguments, "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    assert [table["rows"] for table in run("list")] == [2]
    assert run("show", "bronze.things")["topics"][TOPIC]["offsets"] == {"0": 2}
    assert run("sweep", "--min-age", "60") == []
    (found,) = run("sweep", "--min-age", "0", "--dry-run")
    assert found["path"] == str(stray)
    assert stray.exists()
    assert len(run("sweep", "bronze.things", "--min-age", "0")) == 1
    assert not stray.exists()
    assert run("accept-gap", "bronze.things") == []
    before = existing_table(catalog, "bronze.things").properties
    asked = CliRunner().invoke(app, ["adopt", "bronze.things", "--json"])
    assert isinstance(asked.exception, TerminalError)
    assert (asked.exception.where, "twice" in asked.exception.what) == ("bronze.things", True)
    assert "--yes" in asked.exception.hint
    with monkeypatch.context() as terminal:
        terminal.setattr("cli.table.sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
        assert isinstance(CliRunner().invoke(app, ["adopt", "bronze.things"], input="y\n").exception, TerminalError)
        assert existing_table(catalog, "bronze.things").properties == before
        typed = CliRunner().invoke(app, ["adopt", "bronze.things"], input="bronze.things\n")
    assert (typed.exit_code, "twice" in typed.stderr) == (0, True)
    assert existing_table(catalog, "bronze.things").properties != before
    bronze.open(source(begin=0))
    land(bronze, slice_of([None]))
    assert run("adopt", "bronze.things", "--yes") == [TOPIC]
    assert run("adopt", "bronze.things") == []
    for command in (["list"], ["show", "bronze.things"]):
        assert CliRunner().invoke(app, command).exit_code == 0
