"""What the dashboard shows of what was collected."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from connectors.source import LogState
from connectors.watch import Capture, Progress
from headrace.config import Settings
from serving.captures import ConnectorState, of_report
from serving.collect import Collector, Snapshot
from serving.flows import Counts, Flow, FlowReader, ProcessState, mean_rate, parse_flows
from serving.kpis import Kpi, Point
from serving.render import age, captures_table, chart_options, html_table, number, size


def kpi(measure: str, windows: list[str | None], groups: list[str], value: float = 2.0) -> Kpi:
    points = tuple(
        Point(w, {"country": g} if g else {}, value, 1, "2026-01-01T00:00:00+00:00", False)
        for w in windows
        for g in groups
    )
    return Kpi("k", "K", "EUR", "", measure, windows[0] is not None, points)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (4.0712, "4.07"),
        (312.6, "313"),
        (48_300, "48.3 k"),
        (1_234_567, "1.2 M"),
        (-20_000, "-20.0 k"),
    ],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert number(value) == text


def test_ages_and_sizes_have_units() -> None:
    assert [age(s) for s in (None, 3, 120, 7200, 200_000)] == ["–", "3 s", "2 min", "2 h", "2 d"]
    assert size(1_500_000) == "2 MB"


def test_headline_adds_groups_of_the_newest_window_only_where_that_means_something() -> None:
    windows: list[str | None] = ["2026-01-01T00:00:00+00:00", "2026-01-01T00:01:00+00:00"]
    assert kpi("sum", windows, ["fr", "de"]).headline == 4.0
    assert kpi("quantile", windows, ["fr", "de"]).headline == 2.0
    assert kpi("sum", [None], ["a", "b", "c"]).headline == 6.0


def test_windows_become_lines_and_groups_without_windows_bars() -> None:
    lines = chart_options(kpi("sum", ["2026-01-01T00:00:00+00:00"], ["fr", "de"]))
    assert [s["name"] for s in lines["series"]] == ["de", "fr"]
    bars = chart_options(kpi("count", [None], ["new", "paid"]))
    assert bars["series"][0]["type"] == "bar"
    assert len(bars["yAxis"]["data"]) == 2


def test_cells_are_escaped() -> None:
    assert "<script>" not in html_table([("a", "")], [[("<script>", "")]], "")


def test_troubles_name_what_is_not_running() -> None:
    snapshot = Snapshot(
        connectors=[ConnectorState("shop", "FAILED", 1, "boom"), ConnectorState("crm", "RUNNING", 1)],
        processes=[ProcessState("sink", "http://x", False, "not ready"), ProcessState("worker", "http://y", True)],
        problems={"KPIs": "Redis is down"},
    )
    assert snapshot.troubles() == ["KPIs: Redis is down", "connector shop: boom", "process sink: not ready"]


def test_flows_are_read_from_metrics_text() -> None:
    text = """
# TYPE headrace_flow_rows_in_total counter
headrace_flow_rows_in_total{flow="sink",topic="t"} 10.0
# TYPE headrace_flow_rows_quarantined_total counter
headrace_flow_rows_quarantined_total{flow="sink",topic="t",rule="magic byte"} 2.0
headrace_flow_rows_quarantined_total{flow="sink",topic="t",rule="truncated"} 1.0
# TYPE headrace_flow_lag_records gauge
headrace_flow_lag_records{flow="sink",topic="t"} 4.0
"""
    (flow,) = parse_flows("sink", text)
    assert (flow.rows_in, flow.quarantined, flow.lag) == (10, 3, 4)
    assert flow.rules == {"magic byte": 2, "truncated": 1}


def test_rates_are_of_several_commits_whenever_they_are_asked_for() -> None:
    """400 rows a second, committed every 5 s and asked for every 2 s, the process restarted in between."""

    def counted(second: int) -> float:
        return 2000.0 * (second // 5)

    seen: Counts = deque()
    rates = [mean_rate(seen, float(at), counted(at)) for at in range(0, 60, 2)]
    assert rates[:5] == [None] * 5
    assert all(rate is not None and rate > 200 for rate in rates[5:])
    assert all(abs(rate - 400) <= 400 * 5 / 30 for rate in rates[15:] if rate is not None)
    assert len(seen) <= 16
    rates = [mean_rate(seen, float(60 + at), counted(at)) for at in range(0, 40, 2)]
    assert rates[:5] == [None] * 5, "a counter that fell says nothing of before"
    assert all(rate is not None and rate >= 0 for rate in rates[5:])
    assert [mean_rate(seen, float(at), counted(38)) for at in range(100, 140, 2)][-1] == 0.0


async def test_rates_outlive_an_answer_that_did_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, rows = [0.0], [0.0]

    async def ask(_: FlowReader, name: str, url: str) -> tuple[list[Flow], ProcessState]:
        rows[0] += 100
        return [] if clock[0] == 8 else [Flow(name, "sink", "t", rows_in=rows[0])], ProcessState(name, url, True)

    monkeypatch.setattr(FlowReader, "_ask", ask)
    monkeypatch.setattr("serving.flows.time", SimpleNamespace(monotonic=lambda: clock[0]))
    reader = FlowReader({"sink": "http://b"})
    rates = []
    for second in range(0, 14, 2):
        clock[0] = float(second)
        flows, _ = await reader.read()
        rates += [flow.rate for flow in flows]
    await reader.close()
    assert rates == [None, None, None, None, 50.0, 50.0]


async def test_the_serving_process_is_among_those_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(_: FlowReader, name: str, url: str) -> tuple[list[Flow], ProcessState]:
        return [Flow(name, "ingest", "t")], ProcessState(name, url, True)

    monkeypatch.setattr(FlowReader, "_ask", ask)
    collector = Collector(Settings(endpoints={"serve": "http://a", "sink": "http://b"}))
    await collector._read_flows()
    assert [flow.process for flow in collector.snapshot.flows] == ["serve", "sink"]


def test_connectors_show_their_log_their_trouble_and_honest_snapshots() -> None:
    part = Progress("1", "incremental", "public.<b>", "running", 5000, None, 100.0, None, 0.0)
    capture = Capture(
        "shop",
        "RUNNING",
        fault="slot is lost",
        remedy="headrace connect resnapshot shop",
        log=LogState(3_000_000, 7_000_000, None, "lost", 5),
        heartbeat=90.0,
        snapshots=(part,),
        problems=("Kafka: away",),
    )
    report = json.loads(json.dumps(asdict(capture) | {"last_event": None, "restarts": 2, "given_up": False}))
    state = of_report(report)
    assert not state.well
    html = captures_table([state], 100.0)
    for text in ("3 MB", "7 MB", "10 s", "slot is lost: headrace connect resnapshot shop; Kafka: away", "unknown"):
        assert text in html
    assert "<b>" not in html.replace("<b>shop</b>", "")
