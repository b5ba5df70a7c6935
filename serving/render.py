"""Pure functions from what was collected to what is shown: numbers, chart options, tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from serving.captures import ConnectorState, SnapshotState
from serving.collect import Snapshot
from serving.flows import Flow
from serving.kpis import Kpi
from serving.tables import TableState

PALETTE = ["#0891b2", "#f59e0b", "#8b5cf6", "#10b981", "#ef4444", "#3b82f6", "#ec4899", "#84cc16"]
INK = "#8791a5"
GRID = "rgba(135,145,165,.18)"
MAX_WINDOWS = 45


def number(value: float | None) -> str:
    """A number as short as it can be told: 1.2 M, 48.3 k, 312, 4.07."""
    if value is None:
        return "–"
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= limit:
            return f"{value / limit if unit != ' k' else value / 1e3:.1f}{unit}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"


def age(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    for limit, per, unit in ((90, 1, "s"), (5400, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / per:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def clock(text: str | None) -> str:
    """The time of day of an ISO timestamp, UTC."""
    if not text:
        return "–"
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%H:%M:%S")


def human(name: str) -> str:
    return re.sub(r"[_.]+", " ", name).strip().capitalize()


def chart_options(kpi: Kpi) -> dict[str, Any]:
    """Lines over windows, or bars by group where a KPI has no windows."""
    return _lines(kpi) if kpi.windowed else _bars(kpi)


def _lines(kpi: Kpi) -> dict[str, Any]:
    windows = kpi.windows[-MAX_WINDOWS:]
    totals: dict[str, float] = {}
    values: dict[str, dict[str, float | None]] = {}
    for point in kpi.points:
        if point.window_start in windows:
            values.setdefault(point.label, {})[str(point.window_start)] = point.value
            totals[point.label] = totals.get(point.label, 0.0) + abs(point.value or 0.0)
    groups = sorted(totals, key=lambda g: (-totals[g], g))[: min(kpi.top, len(PALETTE))]
    gap = 0 if kpi.additive else None
    series = [
        {
            "name": group,
            "type": "line",
            "smooth": 0.2,
            "smoothMonotone": "x",
            "showSymbol": len(windows) < 3,
            "connectNulls": True,
            "lineStyle": {"width": 2},
            "areaStyle": {"opacity": 0.08 if kpi.additive else 0},
            "data": [values[group].get(w, gap) for w in windows],
        }
        for group in sorted(groups)
    ]
    return {
        **_base(len(groups) > 1),
        "xAxis": {"type": "category", "boundaryGap": False, "data": [clock(w)[:5] for w in windows], **_axis(False)},
        "yAxis": {"type": "value", "scale": not kpi.additive, "minInterval": 1 if kpi.whole else 0, **_axis(True)},
        "series": series,
    }


def _bars(kpi: Kpi) -> dict[str, Any]:
    top = sorted(kpi.points, key=lambda p: (-(p.value or 0.0), p.label))[: kpi.top][::-1]
    return {
        **_base(False),
        "xAxis": {"type": "value", "minInterval": 1 if kpi.whole else 0, **_axis(True)},
        "yAxis": {"type": "category", "data": [p.label for p in top], **_axis(False)},
        "series": [
            {
                "type": "bar",
                "data": [p.value for p in top],
                "barMaxWidth": 14,
                "itemStyle": {"borderRadius": [0, 4, 4, 0]},
            }
        ],
    }


def _base(legend: bool) -> dict[str, Any]:
    return {
        "color": PALETTE,
        "animationDurationUpdate": 300,
        "grid": {"left": 4, "right": 14, "top": 10, "bottom": 26 if legend else 4, "containLabel": True},
        "tooltip": {"trigger": "axis", "confine": True},
        "legend": {
            "show": legend,
            "type": "scroll",
            "bottom": 0,
            "icon": "circle",
            "itemWidth": 8,
            "itemHeight": 8,
            "textStyle": {"color": INK, "fontSize": 11},
            "pageIconColor": INK,
            "pageTextStyle": {"color": INK},
        },
    }


def _axis(grid: bool) -> dict[str, Any]:
    return {
        "axisLine": {"show": False},
        "axisTick": {"show": False},
        "axisLabel": {"color": INK, "fontSize": 11, "hideOverlap": True},
        "splitLine": {"show": grid, "lineStyle": {"color": GRID}},
        "splitNumber": 3,
    }


Cell = tuple[str, str]
"""Text and CSS class of one table cell."""


def html_table(head: Sequence[Cell], rows: Iterable[Sequence[Cell]], empty: str) -> str:
    """A table; cells are escaped, the class `opt` marks columns that narrow screens leave out."""
    body = "".join("<tr>" + "".join(_cell("td", cell) for cell in row) + "</tr>" for row in rows)
    if not body:
        return f'<p class="empty">{escape(empty)}</p>'
    top = "".join(_cell("th", cell) for cell in head)
    return f'<table class="grid-table"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def _cell(tag: str, cell: Cell) -> str:
    text, css = cell
    if css.startswith("pill"):
        return f'<{tag}><span class="{css}">{escape(text)}</span></{tag}>'
    return f'<{tag} class="{css}">{escape(text)}</{tag}>'


def flows_table(flows: Sequence[Flow], now: float) -> str:
    head = [
        ("flow", ""),
        ("topic", "opt"),
        ("rows/s", "num"),
        ("in", "num opt"),
        ("proved", "num"),
        ("quarantined", "num"),
        ("dropped", "num opt"),
        ("lag", "num"),
        ("newest", "num opt"),
    ]
    rows = [
        [
            (flow.name, "mono strong"),
            (flow.topic, "opt mono"),
            (number(flow.rate), "num"),
            (number(flow.rows_in), "num opt"),
            (number(flow.rows_out), "num"),
            (number(flow.quarantined), "num warn" if flow.quarantined else "num"),
            (number(flow.dropped), "num opt"),
            (number(flow.lag), "num"),
            (age(flow.age(now)), "num opt"),
        ]
        for flow in flows
    ]
    return html_table(head, rows, "No flow has reported yet.")


def syncs_table(flows: Sequence[Flow], now: float) -> str:
    head = [("sync", ""), ("delivered", "num"), ("refused", "num"), ("unchanged", "num opt"), ("lag", "num")]
    rows = [
        [
            (flow.name.removeprefix("sync:"), "strong"),
            (number(flow.rows_out), "num"),
            (number(flow.quarantined), "num warn" if flow.quarantined else "num"),
            (number(flow.dropped), "num opt"),
            (number(flow.lag), "num"),
        ]
        for flow in flows
    ]
    return html_table(head, rows, "No sync is running.")


def tables_table(tables: Sequence[TableState], now: float) -> str:
    head = [("table", ""), ("rows", "num"), ("files", "num opt"), ("size", "num opt"), ("last commit", "num")]
    rows = [
        [
            (table.name, "mono strong"),
            (number(table.rows), "num"),
            (f"{table.files}" + (f" + {table.delete_files}" if table.delete_files else ""), "num opt"),
            (size(table.bytes), "num opt"),
            (age(now - table.committed_at) if table.committed_at else "–", "num"),
        ]
        for table in tables
    ]
    return html_table(head, rows, "No table has been committed yet.")


def captures_table(connectors: Sequence[ConnectorState], now: float) -> str:
    """Connectors with the log kept for them, what is wrong under each, and the snapshots under way."""
    head = [
        ("connector", ""),
        ("state", ""),
        ("log lag", "num"),
        ("log kept", "num opt"),
        ("heartbeat", "num opt"),
        ("last event", "num"),
        ("restarts", "num opt"),
    ]
    rows = [
        [
            (c.name, "strong"),
            (c.state.lower(), f"pill {'ok' if c.well else 'bad'}"),
            (size(c.lag_bytes) if c.lag_bytes is not None else "–", "num"),
            (size(c.kept_bytes) if c.kept_bytes is not None else "–", "num opt"),
            (age(since(c.heartbeat, now)), "num opt"),
            (age(since(c.last_event, now)), "num"),
            (number(c.restarts), "num opt warn" if c.restarts else "num opt"),
        ]
        for c in connectors
    ]
    troubles = "".join(
        f'<p class="trouble"><b>{escape(c.name)}</b> {escape(c.trouble)}</p>' for c in connectors if c.trouble
    )
    parts = [part for c in connectors for part in c.snapshots]
    return html_table(head, rows, "No connector has reported yet.") + troubles + (_snapshots(parts) if parts else "")


def _snapshots(parts: Sequence[SnapshotState]) -> str:
    head = [("snapshot of", ""), ("", ""), ("rows", "num"), ("of", "num"), ("rows/s", "num opt"), ("left", "num")]
    rows = [
        [
            (part.table, "mono strong"),
            (f"{part.kind}, {part.state}", "warn" if part.state == "failed" else ""),
            (number(part.rows), "num"),
            ("" if part.state == "completed" else "unknown" if part.total is None else f"~{number(part.total)}", "num"),
            (number(round(part.rows_per_second)), "num opt"),
            (age(part.seconds_left) if part.state == "running" else "", "num"),
        ]
        for part in parts
    ]
    return html_table(head, rows, "")


def since(at: float | None, now: float) -> float | None:
    return None if at is None else max(0.0, now - at)


def health_table(snapshot: Snapshot) -> str:
    rows: list[list[Cell]] = [
        [(p.name, "strong"), ("ready" if p.up else "not ready", f"pill {'ok' if p.up else 'bad'}"), (p.problem, "")]
        for p in snapshot.processes
    ]
    return html_table([("process", ""), ("state", ""), ("", "")], rows, "No process has reported yet.")
