"""What figures are made of: one more event, bars and their verdicts, delays, stages, charts, the page."""

from __future__ import annotations

import json
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from benchmarks import chart
from benchmarks.bars import BARS, Bar
from benchmarks.freshness import delays
from benchmarks.page import bar_line, bottleneck, hop_table, page, write_page
from benchmarks.row import Row, next_event
from benchmarks.stages import REST, STAGES, START, Clock, owner_of, read

OURS = Row("append", "headrace", 10_000_000, 8.0, 0.8, 450.0, True, next_cpu_us=0.6, short_events=2_000_000)
SPARK = Row("append", "Spark", 10_000_000, 40.0, 7.2, 900.0, True, next_cpu_us=3.0, short_events=2_000_000)
LOSING = Row("append", "loser", 10_000_000, 4.0, 0.1, 90.0, False, next_cpu_us=0.1)
BROKEN = Row("append", "Quix", error="cannot be installed: no | network\nat all")


def test_one_more_event_is_free_of_start_up() -> None:
    start, each = 3.0, 0.5e-6
    long, short = (Row("append", "x", n, cpu_us_per_event=(start + each * n) / n * 1e6) for n in (10**7, 2 * 10**6))
    assert next_event(long, short) == pytest.approx(0.5)


def test_one_more_event_is_unknown_where_noise_is_larger() -> None:
    assert next_event(Row("a", "x", 100, cpu_us_per_event=1.0), Row("a", "x", 50, cpu_us_per_event=3.0)) is None
    assert next_event(OURS, OURS) is None


@pytest.mark.parametrize(("value", "verdict"), [(1.19, "below"), (1.2, "bar"), (1.8, "goal"), (None, "not measured")])
def test_a_bar_is_reached_from_its_value_on(value: float | None, verdict: str) -> None:
    assert Bar("rate", 1.2, 1.8, "M", lambda _: value).verdict([]) == verdict


@pytest.mark.parametrize(("value", "verdict"), [(601.0, "below"), (600.0, "bar"), (300.0, "goal")])
def test_some_bars_must_not_be_passed(value: float, verdict: str) -> None:
    assert Bar("memory", 600, 300, "MB", lambda _: value, least=False).verdict([]) == verdict


def test_the_best_peer_is_one_whose_rows_are_right() -> None:
    found = {bar.what: bar.found([OURS, SPARK, LOSING, BROKEN]) for bar in BARS}
    assert found["Kafka -> Iceberg, against the best peer, start-up included"] == pytest.approx(9.0)
    assert found["the same, one more event"] == pytest.approx(5.0)
    assert found["Kafka -> Iceberg, committed: IoT"] == pytest.approx(1.25)
    assert found["peak memory of a sink at full speed, of the hungriest hop"] == 450.0


def test_what_was_not_measured_has_no_verdict() -> None:
    assert {bar.verdict([BROKEN]) for bar in BARS} == {"not measured"}
    assert bar_line(BARS[0], []).endswith("|  | not measured |")


def test_a_row_that_comes_again_counts_when_it_first_came() -> None:
    first, second = np.array([1_000_000, 2_000_000]), np.array([3_000_000])
    again = np.concatenate([first, second])
    found = delays([(first, 2.5), (second, 3.5), (again, 9.0)])
    assert found.tolist() == pytest.approx([1.5, 0.5, 0.5])


def test_stages_do_not_count_what_is_inside_them() -> None:
    clock = Clock()

    def burn(seconds: float) -> None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    inner = clock.timed("commit", lambda: burn(0.1))

    def outer() -> None:
        burn(0.01)
        inner()

    clock.timed("Parquet", outer)()
    assert not clock.spent
    clock.begin()
    clock.timed("Parquet", outer)()
    report = clock.report()
    assert report["commit"] >= 100e6
    assert 10e6 <= report["Parquet"] < report["commit"]
    assert list(report) == [START, "Parquet", "commit", REST]


def test_a_generator_is_timed_while_it_works_and_not_while_it_waits() -> None:
    clock = Clock()
    clock.begin()

    def numbers(n: int) -> object:
        yield from range(n)

    timed = clock.timed("parse", numbers)
    total = 0
    for number in timed(3):
        total += number
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass
    assert total == 3
    assert 0 < clock.spent["parse"] < 3 * 20e6


@pytest.mark.parametrize("name", [name for names in STAGES.values() for name in names])
def test_every_stage_names_a_function_that_exists(name: str) -> None:
    owner, last = owner_of(name)
    assert callable(getattr(owner, last))


def test_stages_are_read_as_nanoseconds_an_event(tmp_path: Path) -> None:
    (tmp_path / "stages.json").write_text(json.dumps({START: 1000, "parse": 500}))
    assert read(tmp_path / "stages.json", 100) == {START: 10.0, "parse": 5.0}


def test_the_bottleneck_is_not_start_up() -> None:
    assert bottleneck(replace(OURS, stages_ns={START: 900.0, "parse": 100.0, "Parquet": 300.0})) == "Parquet"
    assert bottleneck(OURS) == ""


def test_charts_are_well_formed_and_widest_for_the_most() -> None:
    svg = chart.bars(
        "a < b", "note & note", [("x", 10.0, "10", True), ("y <", 5.0, "5", False), ("z", 0.0, "0", False)]
    )
    widths = [float(rect.attrib["width"]) for rect in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect")]
    assert widths[0] == 2 * widths[1] > widths[2] > 0
    assert "prefers-color-scheme: dark" in svg


def test_a_stacked_chart_has_a_part_for_each_stage() -> None:
    svg = chart.stacked("t", "n", [("one", [("parse", 30.0), ("rest", 10.0)]), ("two", [("rest", 5.0)])], "ns")
    titles = [title.text for title in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["t", "parse: 30 ns", "rest: 10 ns", "rest: 5 ns"]


def test_no_chart_fails_on_nothing() -> None:
    for svg in (chart.bars("t", "n", []), chart.stacked("t", "n", [], "ns")):
        ET.fromstring(svg)


def test_the_page_tells_what_was_not_measured_and_why() -> None:
    table = hop_table([OURS, SPARK, LOSING, BROKEN])
    assert "| Quix | not measured: cannot be installed: no / network at all |" in table
    assert "7.20 (9.0x)" in table
    assert "3.00 (5.0x)" in table
    assert "**NO**" in table


def test_the_page_holds_every_bar_and_hop(tmp_path: Path) -> None:
    rows = [replace(OURS, stages_ns={START: 200.0, "parse": 90.0}), SPARK, BROKEN]
    fresh = Row("freshness", "headrace", 1_000, 1.0, 1.0, 1.0, True, freshness_p50=0.8, freshness_p99=1.4)
    started = Row("start", "headrace", 1, 1.85, 1.7e6, 270.0, True)
    text = page([*rows, fresh, started], "python -m benchmarks --write", datetime(2026, 1, 2, tzinfo=UTC))
    assert all(bar.what in text for bar in BARS)
    assert "| headrace | 0.80 | 1.40 | 1,000 | yes |" in text
    assert "| headrace | 1.85 | 1.70 | 270 |" in text
    assert "2026-01-02" in text
    assert "A short run" not in text
    assert "A short run" in page([fresh], "python -m benchmarks", datetime(2026, 1, 2, tzinfo=UTC))
    write_page(rows, "python -m benchmarks", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "results.json", "append.svg", "profile.svg"}
    (first, _, broken) = json.loads((tmp_path / "results.json").read_text())
    wanted = {"hop", "system", "events", "seconds", "cpu_us_per_event", "peak_rss_mb", "rows_ok"}
    assert wanted <= first.keys()
    assert wanted <= broken.keys()


def test_stock_faust_is_compared_without_its_start_up() -> None:
    ours = Row("agent", "headrace", 10_000_000, 1.0, 1.6, 1.0, True, next_cpu_us=1.0)
    stock = Row("agent", "stock Faust", 100_000, 1.0, 500.0, 1.0, True, next_cpu_us=400.0)
    (bar,) = (bar for bar in BARS if "stock Faust" in bar.what)
    assert bar.found([ours, stock]) == pytest.approx(250.0)
    assert bar.found([ours, replace(stock, next_cpu_us=None)]) is None
