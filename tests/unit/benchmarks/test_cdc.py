"""Change data capture benchmarks: what is expected of a table, delays, bars, and the page."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.cdc.__main__ import parse
from benchmarks.cdc.accounts import FILLER, PARTITIONS, base, expected, rows_of, updates
from benchmarks.cdc.figures import BARS, Merge, Paced, Phase, Read, Report, Stream
from benchmarks.cdc.merge_job import folded
from benchmarks.cdc.ours import index_built
from benchmarks.cdc.page import page, write_page
from benchmarks.cdc.stream import Watch
from benchmarks.topics import share

OURS = Merge("headrace", 10_000_000, 1_000_000, 10.0, 12.5, 900.0, 40.0, True, 5.0, 4.0, 3.0, 310.0)
SLOW = Merge("pyiceberg upsert", 10_000_000, 20_000, 60.0, 2500.0, 4000.0, 9000.0, True)
BROKEN = Merge("DuckDB MERGE into Iceberg", 10_000_000, error="no | store\nat all")
PACED = (Paced(5.0, Phase(100, 2.0, 2.0, 0.4), 2.8, 4.9), Paced(1.0, Phase(100, 2.0, 2.0, 1.9), 0.8, 1.4))
STREAM = Stream("pgbench", Phase(100, 1.0, 1.0, 0.1), Phase(200, 1.0, 4.0, 0.5), PACED, True)
REPORT = Report([OURS, SLOW, BROKEN], [Read("headrace", "before", 0.1, 0.4, 9, 0, 0, 300.0)], [STREAM])


@pytest.mark.parametrize("changes", [0, 1, 7, 60_001])
def test_the_expected_table_is_what_one_change_after_the_other_makes(changes: int) -> None:
    rows, balances = 5_003, dict[int, int]()
    for partition in range(PARTITIONS):
        for aids, values in updates(rows, partition, 0, share(changes, partition, PARTITIONS)):
            for aid, value in zip(aids.tolist(), values.tolist(), strict=True):
                assert aid % PARTITIONS == partition
                assert 0 <= aid < rows
                balances[aid] = value
    weighted = sum((aid + 1) * balance for aid, balance in balances.items())
    assert expected(rows, changes).values == (rows, rows, weighted)


def test_changes_are_the_same_however_they_are_asked_for() -> None:
    whole = np.concatenate([aids for aids, _ in updates(10_000, 1, 0, 120_000)])
    parts = [
        aids for first, end in ((0, 7), (7, 50_000), (50_000, 120_000)) for aids, _ in updates(10_000, 1, first, end)
    ]
    assert np.array_equal(whole, np.concatenate(parts))


def test_the_base_has_every_key_once_whatever_the_partitions() -> None:
    parts = [batch.column("aid") for p in range(PARTITIONS) for batch in base(1_003, p, PARTITIONS)]
    assert sorted(pa.chunked_array(parts).to_pylist()) == list(range(1_003))
    (batch,) = base(1_003)
    assert batch.slice(17, 1).equals(rows_of(np.array([17]), [0]))
    assert {len(text) for text in batch.column("filler").to_pylist()} == {FILLER}
    assert len(set(batch.column("filler").to_pylist())) == 1_003


def test_a_batch_is_folded_to_the_last_row_of_each_key() -> None:
    rows = pa.table({"aid": [1, 2, 1, 3, 2], "abalance": [10, 20, 11, 30, 21]})
    assert folded(rows).sort_by("aid").to_pydict() == {"aid": [1, 2, 3], "abalance": [11, 21, 30]}


def test_a_change_came_when_its_offset_was_first_to_be_read() -> None:
    watch = Watch({"t": [(10.0, {0: 2}), (11.0, {0: 4, 1: 1}), (12.0, {0: 4, 1: 3})]})
    partitions, offsets = np.array([0, 0, 1, 1]), np.array([1, 2, 0, 2])
    assert watch.delays("t", partitions, offsets, np.array([9.5, 9.5, 9.5, 9.5])).tolist() == [0.5, 1.5, 1.5, 2.5]
    with pytest.raises(ValueError, match="t-0 never came"):
        watch.delays("t", np.array([0]), np.array([4]), np.array([9.5]))


def test_phases_are_differences_and_shares_are_of_all_streaming() -> None:
    assert Phase(300, 9.0, 5.0, 0.6) - Phase(100, 8.0, 1.0, 0.1) == STREAM.burst
    assert STREAM.burst.rate == 200
    assert STREAM.burst.micros(STREAM.burst.connect_cpu) == 20_000
    assert STREAM.cpu_share == pytest.approx(0.9 / 6.0)


def test_bars_are_held_against_ours_alone() -> None:
    assert [bar.found(REPORT) for bar in BARS] == [80_000, pytest.approx(0.15)]
    assert [bar.reached(REPORT) for bar in BARS] == [True, True]
    slow = Report([replace(OURS, cpu_us=20.1)], [], [STREAM, replace(STREAM, paced=PACED[1:])])
    assert [bar.reached(slow) for bar in BARS] == [False, False]


def test_wrong_rows_reach_no_bar() -> None:
    wrong = Report([replace(OURS, rows_ok=False)], [], [replace(STREAM, rows_ok=False)])
    assert [bar.reached(wrong) for bar in BARS] == [None, None]
    assert not wrong.right
    assert REPORT.right


def test_the_log_tells_the_index_of_the_table_alone() -> None:
    lines = [{"event": "index built", "table": name, "seconds": s} for name, s in (("silver.a", 1), ("silver.b", 2))]
    said = "\n".join(["not JSON", *map(json.dumps, lines)])
    assert index_built(said, "silver.b")["seconds"] == 2
    assert index_built(said, "silver.c") == {}


def test_the_page_tells_everything(tmp_path: Path) -> None:
    write_page(REPORT, "python -m benchmarks.cdc", tmp_path)
    text = (tmp_path / "cdc.md").read_text()
    assert "small run" not in text
    assert "| 2,500 (200.0x) |" in text
    assert "not measured: no / store at all" in text
    assert "31 MB a million keys" in text
    assert "| pgbench | paced | 100 | 50 | 20000.0 | 4000.0 | 0.20 | 5 | 2.80 | 4.90 | yes |" in text
    assert "| pgbench | paced | 100 | 50 | 20000.0 | 19000.0 | 0.95 | 1 | 0.80 | 1.40 | yes |" in text
    found = json.loads((tmp_path / "cdc.json").read_text())
    assert found["merges"][0]["changes"] == 1_000_000
    assert found["command"] == "python -m benchmarks.cdc"
    small = page(Report([replace(OURS, rows=200_000)]), "x", datetime.now(UTC))
    assert "**A small run**" in small
    assert "not measured |" in small


def test_systems_and_workloads_are_chosen() -> None:
    asked = parse(["--systems", "--workloads", "tpch", "--orders", "10"])
    assert (asked.systems, asked.workloads, asked.orders) == ([], ["tpch"], 10)
    with pytest.raises(SystemExit):
        parse(["--systems", "nobody"])
