from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from typer.testing import CliRunner

from cli import quarantine
from headrace.errors import TerminalError, UnavailableError
from streams.quarantine import Departure, quarantine_batch, texts
from tests.unit.streams.support import make_chunk


class Registry:
    """Knows one schema; everything else is out of reach."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def schema(self, schema_id: int) -> dict[str, Any]:
        if schema_id != 7:
            raise UnavailableError("away")
        return {"type": "record", "name": "R", "fields": [{"name": "x", "type": "string"}]}

    def close(self) -> None: ...


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SqlCatalog:
    uri, warehouse = f"sqlite:///{tmp_path}/catalog.db", f"file://{tmp_path}/lake"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADRACE_LAKE__URI", uri)
    monkeypatch.setenv("HEADRACE_LAKE__WAREHOUSE", warehouse)
    monkeypatch.setattr("schemas.registry.Registry", Registry)
    return SqlCatalog("headrace", uri=uri, warehouse=warehouse)


def fill(catalog: SqlCatalog) -> None:
    chunk = make_chunk([b"\0\0\0\0\7\6abc", b"text", b"x"], topic="a/b")
    departures = [
        Departure(np.array([0, 1]), "quarantined", "temperature: between -60 90", texts(["91.5", "99"], 2), "Reading"),
        Departure(np.array([2]), "dropped", "duplicate", texts("seq=4", 1)),
    ]
    new = quarantine_batch("agent:readings", chunk, departures, np.array([7, -1, -1]), "id")
    old = quarantine_batch(
        "bronze",
        make_chunk([b"junk"], topic="other"),
        [Departure(np.array([0]), "quarantined", "not framed", texts("not framed", 1))],
        np.array([-1]),
        None,
        now=(datetime.now(UTC) - timedelta(days=3)).timestamp(),
    )
    assert new is not None
    assert old is not None
    catalog.create_namespace("ops")
    table = catalog.create_table("ops.quarantine", pa.Table.from_batches([new]).schema)
    for batch in (new, old):
        table.append(pa.Table.from_batches([batch]).cast(pa.Table.from_batches([new]).schema))


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(quarantine.app, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_list_and_show(lake: SqlCatalog) -> None:
    assert run("list") == []
    fill(lake)
    found = run("list")
    assert [row["source"] for row in found] == ["a/b/2/101", "a/b/2/100", "other/2/100"]
    assert found[0]["reason"] == "99"
    assert [row["source"] for row in run("list", "--since", "1d", "--limit", "1")] == ["a/b/2/101"]
    assert [row["source"] for row in run("list", "--topic", "other")] == ["other/2/100"]
    assert [row["source"] for row in run("list", "--rule", "temperature")] == ["a/b/2/101", "a/b/2/100"]
    assert [row["rule"] for row in run("list", "--dropped", "--rule", "dup")] == ["duplicate"]

    (shown,) = run("show", "a/b/2/101")
    assert (shown["key"], shown["value"], shown["stage"], shown["decoded"]) == ("k1", "text", "agent:readings", None)
    (shown,) = run("show", "a/b/2/100")
    assert (shown["value"], shown["decoded"]) == ("base64:AAAAAAcGYWJj", {"x": "abc"})
    with pytest.raises(TerminalError, match="not in the quarantine"):
        run("show", "a/b/2/999")


@pytest.mark.parametrize("text", ["topic", "topic/1", "topic/x/1", "topic/1/-1"])
def test_coordinates_are_checked(text: str) -> None:
    with pytest.raises(TerminalError, match="is not TOPIC/PARTITION/OFFSET"):
        quarantine.parse_coordinates(text)
