"""The newest values in memory: what Prometheus is shown and what alerts are decided on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from schemas.kpis import Alert, Kpi
from sinks.kpi.store import Value

MAX_LABELS = 50
"""Groups of a KPI that become metric labels; a KPI with more shows only how many it has."""

_WINDOWS = 2


@dataclass
class _Tile:
    """Newest windows of one KPI, by start (None for a KPI without windows), groups in each."""

    kpi: Kpi
    windows: dict[datetime | None, dict[str, Value]] = field(default_factory=dict)

    def put(self, value: Value) -> None:
        groups = self.windows.setdefault(value.window_start, {})
        known = groups.get(value.group)
        if known is None or value.revision >= known.revision:
            groups[value.group] = value
        if len(self.windows) > _WINDOWS:
            del self.windows[min(start for start in self.windows if start is not None)]

    @property
    def newest(self) -> datetime | None:
        return max((s for s in self.windows if s is not None), default=None)

    def standing(self, alert: Alert) -> dict[str, Value]:
        """The value of each group that an alert is decided on.

        The newest window, and the one before it for groups that are not in it yet. A value below a threshold says
        nothing before its window is over, so for < and <= it is the newest window that has a successor.
        """
        starts = sorted((s for s in self.windows if s is not None), reverse=True)
        if not starts:
            return dict(self.windows.get(None, {}))
        chosen = starts[1:] if alert.op in ("<", "<=") else starts
        standing: dict[str, Value] = {}
        for start in reversed(chosen):
            standing |= self.windows[start]
        return standing


class Board(Collector):
    """Keeps what is needed of each KPI; values of KPIs that are neither measured nor watched are let go."""

    def __init__(self, kpis: Mapping[str, Kpi]) -> None:
        self._tiles = {name: _Tile(kpi) for name, kpi in kpis.items() if kpi.metrics or kpi.alerts}

    def put(self, values: Iterable[Value]) -> None:
        for value in values:
            if tile := self._tiles.get(value.kpi):
                tile.put(value)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        values = GaugeMetricFamily("headrace_kpi_value", "Value in the newest window", labels=["kpi", "group"])
        groups = GaugeMetricFamily("headrace_kpi_groups", "Groups in the newest window", labels=["kpi"])
        for name, tile in self._tiles.items():
            newest = tile.windows.get(tile.newest, {})
            groups.add_metric([name], len(newest))
            if not tile.kpi.metrics or len(newest) > MAX_LABELS:
                continue
            for group, value in newest.items():
                if value.value is not None:
                    values.add_metric([name, label(group)], value.value)
        yield values
        yield groups

    def alerts(
        self, active: Mapping[str, Mapping[str, Any]], now: datetime
    ) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        """(those that fire, those that are over), given the ones that are on. Keys name KPI, group and threshold."""
        on: dict[str, dict[str, Any]] = {}
        for name, tile in self._tiles.items():
            for number, alert in enumerate(tile.kpi.alerts):
                for group, value in tile.standing(alert).items():
                    if value.value is not None and alert.holds(value.value):
                        on[f"{name}|{group}|{number}"] = _event("fired", tile.kpi, alert, group, value, now)
        fired = {key: event for key, event in on.items() if key not in active}
        over = {k: {**e, "state": "resolved", "at": now.isoformat()} for k, e in active.items() if k not in on}
        return fired, over


def _event(state: str, kpi: Kpi, alert: Alert, group: str, value: Value, now: datetime) -> dict[str, Any]:
    return {
        "state": state,
        "kpi": kpi.name,
        "title": kpi.title,
        "group": group,
        "op": alert.op,
        "threshold": alert.value,
        "severity": alert.severity,
        "value": value.value,
        "unit": kpi.unit,
        "window": value.window,
        "revision": value.revision,
        "at": now.isoformat(),
    }


def label(group: str) -> str:
    """`{"country":"DE"}` -> `country=DE`; "" for no dimensions."""
    return ",".join(f"{k}={v}" for k, v in orjson.loads(group).items())
