"""Which values are newest, when alerts fire and end, what becomes a metric."""

from datetime import UTC, datetime, timedelta

from prometheus_client import CollectorRegistry, generate_latest

from schemas.kpis import Kpi
from sinks.kpi.board import MAX_LABELS, Board
from sinks.kpi.store import Value

START = datetime(2026, 1, 1, tzinfo=UTC)


def kpi(op=">=", metrics=True, window=60):
    event_time = "at" if window else ""
    return Kpi.model_validate(
        {
            "name": "alarms", "title": "Alarms", "source": "t", "measure": "count", "window": f"{window}s" if window
            else None, "event_time": event_time, "metrics": metrics, "dimensions": ["site"],
            "alerts": [{"op": op, "value": 5}],
        }
    )  # fmt: skip


def value(minute, number, site="a", revision=1):
    start = None if minute is None else START + timedelta(minutes=minute)
    end = start and start + timedelta(minutes=1)
    return Value("alarms", start, end, f'{{"site":"{site}"}}', number, "n", False, revision, "{}", START)


def active(board, on):
    fired, over = board.alerts(on, START)
    return {k: v for k, v in on.items() if k not in over} | fired


def test_an_alert_fires_once_and_ends_when_a_full_window_is_quiet():
    board = Board({"alarms": kpi()})
    board.put([value(0, 6.0)])
    fired, over = board.alerts({}, START)
    assert [e["state"] for e in fired.values()] == ["fired"]
    assert not over
    on = active(board, {})
    assert board.alerts(on, START) == ({}, {})
    # The next window says nothing of the group yet.
    board.put([value(1, 1.0, site="b")])
    assert active(board, on) == on
    board.put([value(2, 1.0, site="b")])
    fired, over = board.alerts(on, START)
    assert (fired, [e["state"] for e in over.values()]) == ({}, ["resolved"])


def test_too_little_is_decided_when_the_window_is_over():
    board = Board({"alarms": kpi("<")})
    board.put([value(0, 3.0)])
    assert active(board, {}) == {}
    board.put([value(1, 9.0)])
    assert len(active(board, {})) == 1


def test_without_windows_the_value_decides():
    board = Board({"alarms": kpi(window=None)})
    board.put([value(None, 6.0)])
    on = active(board, {})
    assert len(on) == 1
    board.put([value(None, 4.0, revision=2)])
    board.put([value(None, 6.0, revision=1)])
    assert active(board, on) == {}


def metrics(board):
    registry = CollectorRegistry()
    registry.register(board)
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if line.startswith("headrace_kpi") and "_groups" not in line]


def test_metrics_show_the_newest_window_and_no_flood_of_labels():
    board = Board({"alarms": kpi()})
    board.put([value(0, 6.0), value(1, 2.0), value(1, None, site="b")])
    assert metrics(board) == ['headrace_kpi_value{group="site=a",kpi="alarms"} 2.0']
    board.put([value(2, 1.0, site=str(i)) for i in range(MAX_LABELS + 1)])
    assert metrics(board) == []
    assert metrics(Board({"alarms": kpi(metrics=False)})) == []
