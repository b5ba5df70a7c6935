"""Which connectors are watched, as files come, go and are wrong."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest

from connectors.connect import ConnectorStatus
from connectors.notices import Snapshot
from connectors.snapshots import lost
from connectors.supervise import Supervisor
from connectors.watch import Capture
from headrace.config import Settings
from headrace.errors import ConfigError

SHOP = Path(__file__).parents[3] / "connectors" / "debezium" / "shop.json"


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    made = Supervisor(Settings(home=tmp_path / "home", content=[tmp_path]))

    def look(names: Collection[str]) -> list[Capture]:
        made.watch.configs = {name: {} for name in names}
        return [Capture(name, ConnectorStatus(name, "RUNNING").state) for name in sorted(names)]

    monkeypatch.setattr(made.watch, "look", look)
    return made


def watched(supervisor: Supervisor) -> list[str]:
    return [one["name"] for one in supervisor.report()]


def test_files_that_come_are_found_and_wrong_ones_said(supervisor: Supervisor, tmp_path: Path) -> None:
    folder = tmp_path / "connectors" / "debezium"
    folder.mkdir(parents=True)
    supervisor.step()
    assert watched(supervisor) == []
    whole = json.loads(SHOP.read_text())
    (folder / "a.json").write_text(json.dumps(whole | {"name": "a"}))
    supervisor.step()
    assert watched(supervisor) == ["a"]
    (folder / "b.json").write_text("{")
    supervisor.captures = []
    with pytest.raises(ConfigError, match="not valid JSON"):
        supervisor.step()
    assert watched(supervisor) == ["a"], "those known before are looked at all the same"
    (folder / "b.json").write_text(json.dumps(whole | {"name": "b"}))
    (folder / "a.json").unlink()
    supervisor.step()
    assert watched(supervisor) == ["a", "b"], "a connector outlives its file"


def test_a_snapshot_is_lost_when_it_is_silent_and_in_no_place() -> None:
    running = Snapshot("headrace-all-1", "incremental", "running", 0, 100_000)
    place = {"lsn_proc": 5, "incremental_snapshot_collections": "[...]"}
    assert lost(running, {"lsn_proc": 5}, 161.0, 60.0)
    assert not lost(running, {"lsn_proc": 5}, 159.0, 60.0), "it may still be heard of"
    assert not lost(running, place, 161.0, 60.0), "it goes on from there"
    assert not lost(replace(running, state="paused"), {}, 161.0, 60.0)
    assert not lost(replace(running, kind="initial"), {}, 161.0, 60.0)
