"""What people run and look at, of one capture: `headrace connect`, the process `connectors`, the dashboard."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from connectors import snapshots
from connectors.connect import load_connector
from connectors.databases import prepare_source
from connectors.lifecycle import resume, stop
from connectors.watch import Watch
from headrace.config import Settings
from headrace.errors import ConfigError
from headrace.kafka import admin
from serving.captures import ConnectorState, SnapshotState, read_captures
from serving.render import captures_table
from tests.integration.connectors.commands import Operator, serving
from tests.integration.connectors.conftest import Source

ROWS = 60_000
TABLE = "public.things"
SLOT = """
SELECT (pg_current_wal_lsn() - confirmed_flush_lsn)::bigint, (pg_current_wal_lsn() - restart_lsn)::bigint, safe_wal_size
FROM pg_replication_slots WHERE slot_name = %s
"""


def test_one_capture_by_its_commands_its_process_and_the_dashboard(
    settings: Settings, connect_url: str, source: Source, tmp_path: Path
) -> None:
    source.file = tmp_path / "connectors" / "debezium" / "one.json"
    source.file.parent.mkdir(parents=True)
    mine = settings.model_copy(update={"content": [tmp_path], "databases": {source.name: source.url}})
    connector = load_connector(source.write(**{"incremental.snapshot.chunk.size": "10"}))
    prepare_source(mine, connector)
    with psycopg.connect(source.url, autocommit=True) as db:
        db.execute("INSERT INTO things SELECT n, 0 FROM generate_series(2, %s) n", (ROWS,))
        db.execute("ANALYZE things")
    with serving(mine, tmp_path, "connectors") as (operator, url), closing(Watch(mine)) as watch:
        watch.connect.apply(connector)

        def shown() -> ConnectorState:
            return next(one for one in read_captures(url, watch.connect) if one.name == source.name)

        until(lambda: any(part.kind == "initial" and part.state == "completed" for part in parts(url, watch, source)))
        a_part_is_read_by_command(operator, source)
        a_table_is_paused_resumed_and_stopped_by_command(operator, source, shown)
        target = snapshots.find(watch, mine, TABLE, source.name)
        with pytest.raises(ConfigError, match="captured by no connector"):
            snapshots.find(watch, mine, "public.nothing")
        with pytest.raises(ConfigError, match="databases"):
            snapshots.execute(watch, settings, target, TABLE)
        the_metrics_are_what_the_servers_say(mine, source, watch, url, shown)


def a_part_is_read_by_command(operator: Operator, source: Source) -> None:
    _, said = operator.run("connect", "snapshot", TABLE, "--where", f"id > {ROWS - 10}", "--follow")
    first, *_, before, last = said.splitlines()
    assert first.startswith(f"{source.name}: asked for a snapshot of {TABLE}: headrace-part-")
    assert (before, last) == (f"{TABLE}: completed, 10 rows", f"{source.name}: completed")
    row = the_row(operator, source)
    assert (row["kind"], row["state"], row["rows"], row["total"]) == ("incremental", "completed", 10, None)


def a_table_is_paused_resumed_and_stopped_by_command(
    operator: Operator, source: Source, shown: Callable[[], ConnectorState]
) -> None:
    operator.run("connect", "snapshot", TABLE)

    def part() -> SnapshotState:
        return shown().snapshots[-1]

    until(lambda: part().total == ROWS and part().rows > 100)
    operator.run("connect", "snapshot", TABLE, "--pause")
    until(lambda: part().state == "paused")
    held = the_row(operator, source)
    time.sleep(1.0)
    until(lambda: part().rows == held["rows"])
    assert (held["state"], held["seconds_left"], part().seconds_left) == ("paused", None, None)
    assert f"{held['rows']:,}" in operator.run("connect", "status")[0]

    operator.run("connect", "snapshot", TABLE, "--resume")
    until(lambda: part().state == "running" and part().rows > held["rows"])
    one = part()
    assert one.seconds_left is not None
    assert one.total is not None
    assert one.seconds_left == pytest.approx((one.total - one.rows) / one.rows_per_second)
    page = captures_table([shown()], time.time())
    assert f"{TABLE}" in page
    assert f"~{ROWS / 1000} k" in page

    follow = operator.start("cli.main", "connect", "snapshot", TABLE, "--stop", "--follow")
    _, said = follow.communicate(timeout=150)
    assert follow.returncode == 0, said
    first, *lines, last = said.splitlines()
    assert (first, last) == (f"{source.name}: told to stop", f"{source.name}: aborted")
    pattern = rf"{TABLE}: (running|aborted), [0-9,]+ rows of about {ROWS:,}, [0-9,]+/s, time left ([0-9,]+ s|unknown)"
    assert lines
    assert all(re.fullmatch(pattern, line) for line in lines), lines


def the_metrics_are_what_the_servers_say(
    mine: Settings, source: Source, watch: Watch, url: str, shown: Callable[[], ConnectorState]
) -> None:
    name, heartbeat, topic = source.name, f"__debezium-heartbeat.{source.name}", f"{source.name}.{TABLE}"
    until(lambda: metric(url, "connector_state", connector=name, state="RUNNING") == 1)
    until(lambda: time.time() - (metric(url, "heartbeat_timestamp_seconds", connector=name) or 0) < 10)
    assert shown().well
    assert (shown().restarts, metric(url, "restarts_given_up", connector=name)) == (0, 0)

    # Nothing moves while it is stopped, but for what is written here.
    stop(watch.connect, name)
    with psycopg.connect(source.url, autocommit=True) as db:
        db.execute("UPDATE things SET price = 2")

        def differs() -> Any:
            (lag, kept, safe) = db.execute(SLOT, (name,)).fetchone() or ()
            newest = {at: ms / 1000 for at, ms in admin.newest_timestamps(mine.kafka, [heartbeat, topic]).items()}
            want = {
                "log_lag_bytes": lag,
                "log_kept_bytes": kept,
                "log_safe_bytes": safe,
                "heartbeat_timestamp_seconds": newest[heartbeat],
                "changes_missing": 0,
            }
            have = {one: metric(url, one, connector=name) for one in want}
            event = metric(url, "last_event_timestamp_seconds", connector=name, table=TABLE)
            told = {"log_lag_bytes": shown().lag_bytes, "log_kept_bytes": shown().kept_bytes}
            told |= {"heartbeat_timestamp_seconds": shown().heartbeat}
            return have != want or event != newest[topic] or shown().last_event != event or told.items() - want.items()

        until(lambda: not differs(), 40)
    lag = metric(url, "log_lag_bytes", connector=name) or 0
    assert lag > 100 * ROWS
    assert metric(url, "connector_state", connector=name, state="RUNNING") == 0
    assert metric(url, "connector_state", connector=name, state="STOPPED") == 1
    page = captures_table([shown()], time.time())
    assert "stopped" in page
    assert f"{name}" in page
    resume(watch.connect, name)
    until(lambda: (metric(url, "log_lag_bytes", connector=name) or lag) < lag / 10)


def parts(url: str, watch: Watch, source: Source) -> list[SnapshotState]:
    return [p for one in read_captures(url, watch.connect) if one.name == source.name for p in one.snapshots]


def the_row(operator: Operator, source: Source) -> dict[str, Any]:
    """The newest snapshot in `headrace connect status --json`."""
    told = json.loads(operator.run("connect", "status", "--json")[0])
    found: dict[str, Any] = next(one for one in told if one["name"] == source.name)["snapshots"][-1]
    return found


def metric(url: str, name: str, **labels: str) -> float | None:
    text = httpx.get(f"{url}/metrics", timeout=10).text
    samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
    return next((s.value for s in samples if s.name == f"headrace_cdc_{name}" and s.labels == labels), None)


def until(true: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)
