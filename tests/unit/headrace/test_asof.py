"""Point-in-time reads over tables that were written by the sink's own code."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from cli.main import make_app
from cli.sql import point_in_time
from headrace.config import LakeSettings
from headrace.errors import TerminalError
from headrace.lake import answer
from sinks.iceberg.compact import expire
from sinks.iceberg.current import CurrentTable
from sinks.iceberg.history import HistoryTable
from tests.unit.sinks.iceberg import test_history as histories
from tests.unit.sinks.iceberg.support import TOPIC, catalog_in, land, slice_of, source
from tests.unit.sinks.iceberg.support import lake as lake_in

SQL = "SELECT id, name FROM silver.things ORDER BY id"
Tables = dict[str, Any]


@pytest.fixture
def lake(tmp_path: Path) -> LakeSettings:
    return lake_in(tmp_path)


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    catalog = catalog_in(tmp_path)
    history = HistoryTable(catalog, "silver.things_history", TOPIC, of="silver.things")
    made = {"current": CurrentTable(catalog, "silver.things", TOPIC), "history": history}
    for table in made.values():
        table.open(source())
    return made


def landed(tables: Tables, *events: dict[str, Any], only: str = "") -> datetime:
    """When the current state got these changes."""
    for name, table in tables.items():
        if only in ("", name):
            land(table, slice_of(events, table.offsets.get(0, 0), schema=histories.timed()))
    snapshot = tables["current"].table.current_snapshot()
    return datetime.fromtimestamp(snapshot.timestamp_ms / 1000, UTC)


def rounds(tables: Tables, only: str = "") -> list[datetime]:
    """Three commits, a millisecond apart or more."""
    times = []
    for number in range(3):
        while times and datetime.now(UTC) - times[-1] < timedelta(milliseconds=2):
            pass
        events = [histories.event("u" if number else "c", 1, f"v{number}", 100 * (number + 1))]
        events += [histories.event("c", 10 + number, "new", 100 * (number + 1) + 1)]
        times.append(landed(tables, *events, only=only))
    return times


def test_a_table_is_read_as_of_its_newest_snapshot_before_a_time(lake: LakeSettings, tables: Tables) -> None:
    times = rounds(tables)
    for number, time in enumerate(times):
        found = answer(lake, SQL, as_of=time)
        assert found.rows == [(1, f"v{number}"), *((10 + n, "new") for n in range(number + 1))]
        assert found.sources["silver.things"].startswith("snapshot of ")
    between = times[1] + (times[2] - times[1]) / 2
    assert answer(lake, SQL, as_of=between).rows[0] == (1, "v1")
    assert answer(lake, SQL, as_of=times[2] + timedelta(days=1)).rows == answer(lake, SQL).rows


def test_the_past_of_an_expired_snapshot_is_read_from_the_history(lake: LakeSettings, tables: Tables) -> None:
    times = rounds(tables)
    expire(tables["current"]._committer, keep=1)
    assert answer(lake, SQL, as_of=times[2]).rows[0] == (1, "v2")
    # The changes were committed at the source at 100, 200 and 300 seconds after the epoch.
    for time, name in ((100, "v0"), (199, "v0"), (200, "v1"), (299, "v1"), (301, "v2")):
        found = answer(lake, SQL, as_of=datetime.fromtimestamp(time, UTC))
        assert found.rows[0] == (1, name)
        assert found.sources == {"silver.things": "versions in silver.things_history"}
    with pytest.raises(TerminalError, match=r"silver\.things.*earliest time that can be read is 1970-01-01T00:01:40"):
        answer(lake, SQL, as_of=datetime.fromtimestamp(99, UTC))


def test_a_time_before_what_is_kept_is_refused_with_the_earliest(lake: LakeSettings, tables: Tables) -> None:
    times = rounds(tables, only="current")
    expire(tables["current"]._committer, keep=2)
    earliest = times[1].isoformat(timespec="milliseconds").replace("+", r"\+")
    with pytest.raises(TerminalError, match=f"earliest time that can be read is {earliest}"):
        answer(lake, SQL, as_of=times[0])
    assert answer(lake, SQL, as_of=times[1]).rows[0] == (1, "v1")


def test_a_column_that_the_history_does_not_have_yet_is_null(lake: LakeSettings, tables: Tables) -> None:
    rounds(tables)
    row = histories.event("c", 50, "x", 400, extra=1.5)
    wide = histories.timed(pa.struct([*histories.ROW, ("extra", pa.float64())]))
    land(tables["current"], slice_of([row], tables["current"].offsets[0], schema=wide))
    expire(tables["current"]._committer, keep=1)
    found = answer(lake, "SELECT id, extra FROM silver.things ORDER BY id", as_of=datetime.fromtimestamp(150, UTC))
    assert found.rows == [(1, None), (10, None)]


def test_the_command_says_what_it_has_read(
    tmp_path: Path, monkeypatch: Any, lake: LakeSettings, tables: Tables
) -> None:
    times = rounds(tables)
    monkeypatch.setenv("HEADRACE_LAKE__URI", lake.uri)
    monkeypatch.setenv("HEADRACE_LAKE__WAREHOUSE", lake.warehouse)
    monkeypatch.chdir(tmp_path)
    ran = CliRunner().invoke(make_app(), ["sql", "--as-of", times[0].isoformat(), "--json", SQL])
    assert ran.exit_code == 0
    assert '"name": "v0"' in ran.stdout
    assert "silver.things: snapshot of " in ran.stderr
    ago = CliRunner().invoke(make_app(), ["sql", "--as-of", "1d", SQL])
    assert ago.exit_code == 0
    assert "silver.things: versions in silver.things_history" in ago.stderr


NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("15m", NOW - timedelta(minutes=15)),
        ("2026-01-30T10:00:00Z", datetime(2026, 1, 30, 10, tzinfo=UTC)),
        ("2026-01-30 10:00", datetime(2026, 1, 30, 10, tzinfo=UTC)),
        ("2026-01-30T10:00:00+02:00", datetime(2026, 1, 30, 8, tzinfo=UTC)),
    ],
)
def test_a_time_is_iso_or_how_long_ago(text: str, time: datetime) -> None:
    assert point_in_time(text, NOW) == time


def test_anything_else_is_no_time() -> None:
    with pytest.raises(TerminalError, match="yesterday"):
        point_in_time("yesterday", NOW)
