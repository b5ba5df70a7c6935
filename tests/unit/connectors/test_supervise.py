"""Which connectors are watched, as files come, go and are wrong."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from connectors.connect import ConnectorStatus
from connectors.notices import TOPIC, Snapshot
from connectors.restarts import MOST
from connectors.snapshots import lost, stuck
from connectors.supervise import Supervisor
from connectors.watch import Capture
from headrace.config import Settings
from headrace.errors import ConfigError, TerminalError

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


def test_a_snapshot_is_stuck_when_it_is_silent_while_changes_stream() -> None:
    running = Snapshot("headrace-all-1", "incremental", "running", 0, 100_000)
    place = {"lsn_proc": 5, "incremental_snapshot_collections": "[...]"}
    assert stuck(running, place, 161.0, 162.0, 60.0)
    assert not stuck(running, place, 160.0, 500.0, 60.0), "it may be reading one long chunk"
    assert not stuck(running, place, None, 500.0, 60.0)
    assert not stuck(running, place, 161.0, 160.0, 60.0), "clocks differ"
    assert not stuck(running, {"lsn_proc": 5}, 161.0, 162.0, 60.0), "it is lost"
    assert not stuck(replace(running, state="paused"), place, 161.0, 162.0, 60.0)
    assert not stuck(replace(running, kind="initial"), place, 161.0, 162.0, 60.0)


class Connect:
    """Refuses to restart what is `broken`; `asked` is what it was asked for."""

    def __init__(self, *broken: str, offset: dict[str, Any] | None = None) -> None:
        self.asked: list[str] = []
        self._broken = broken
        self._offset = offset

    def restart(self, name: str, *, only_failed: bool = True) -> None:
        self.asked.append(name if only_failed else f"{name}, all of it")
        if name in self._broken:
            raise TerminalError("answered 500", where="Connect")

    def call(self, method: str, path: str) -> dict[str, Any]:
        self.asked.append(f"{method} {path}")
        return {"offsets": [{"offset": self._offset}]}


def attending(folder: Path, connect: Connect, config: dict[str, Any], **states: str) -> Supervisor:
    clock = count(0, 1_000)
    made = Supervisor(Settings(home=folder, content=[folder]), clock=lambda: next(clock), chance=lambda: 0.0)
    made.watch.connect = connect  # type: ignore[assignment]
    made.watch.configs = dict.fromkeys(states, config)
    made.watch.look = lambda _: [Capture(name, state) for name, state in states.items()]  # type: ignore[method-assign]
    return made


def test_one_that_cannot_be_restarted_keeps_no_other_from_it_and_is_given_up(tmp_path: Path) -> None:
    connect = Connect("a")
    supervisor = attending(tmp_path, connect, {}, a="FAILED", b="FAILED")
    said: list[str] = []
    for _ in range(30):
        try:
            supervisor.step()
        except TerminalError as e:
            said.append(e.what)
    assert Counter(connect.asked) == {"a": MOST, "b": MOST}
    assert said == ["answered 500"] * MOST
    assert [one["given_up"] for one in supervisor.report()] == [True, True]


def test_one_that_was_stopped_to_begin_anew_and_has_a_place_is_resumed(tmp_path: Path) -> None:
    config = {"connector.class": "io.debezium.connector.mariadb.MariaDbConnector"}
    connect = Connect(offset={"file": "binlog.000001", "pos": 4})
    mark = tmp_path / "connectors" / "m.anew"
    mark.parent.mkdir()
    mark.touch()
    supervisor = attending(tmp_path, connect, config, m="STOPPED")
    supervisor.step()
    supervisor.step()
    assert [asked for asked in connect.asked if asked.startswith("PUT")] == ["PUT /connectors/m/resume"]
    assert not mark.exists()


def test_one_whose_snapshot_is_stuck_is_restarted_each_time_after_twice_as_long(tmp_path: Path) -> None:
    connect = Connect(offset={"lsn_proc": 5, "incremental_snapshot_collections": "[...]"})
    supervisor = attending(tmp_path, connect, {TOPIC: "notifications"}, a="RUNNING")
    snapshots = {"s": Snapshot("s", "incremental", "running", 0, 100_000)}
    supervisor.watch.notices.known = lambda _: snapshots  # type: ignore[method-assign]
    seen: list[int] = []
    for streamed in (150.0, 161.0, 219.0, 221.0, 339.0, 341.0):
        supervisor.watch.look = lambda _, at=streamed: [Capture("a", "RUNNING", heartbeat=at)]  # type: ignore[misc]
        supervisor.step()
        supervisor.step()
        seen.append(connect.asked.count("a, all of it"))
    assert seen == [0, 1, 1, 2, 2, 3]
    snapshots["s"] = replace(snapshots["s"], updated=280_000)
    supervisor.step()
    assert connect.asked.count("a, all of it") == 4, "it has come further: it counts anew"
