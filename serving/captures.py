"""Change data capture as the process `connectors` sees it; Connect's own word where that process does not run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx

from connectors.connect import Connect, ConnectorStatus


@dataclass(frozen=True)
class SnapshotState:
    """One table's part in a snapshot. `total` is an estimate; None, and `seconds_left` too, where nobody knows."""

    table: str
    kind: str
    state: str
    rows: int
    total: int | None
    rows_per_second: float
    seconds_left: float | None


@dataclass(frozen=True)
class ConnectorState:
    """One connector. Times in seconds since the epoch; what is not known is None. `trouble`: what to do something
    about, with the command that mends it."""

    name: str
    state: str
    tasks: int
    trouble: str = ""
    lag_bytes: int | None = None
    kept_bytes: int | None = None
    heartbeat: float | None = None
    last_event: float | None = None
    restarts: int | None = None
    snapshots: tuple[SnapshotState, ...] = ()

    @property
    def well(self) -> bool:
        return self.state == "RUNNING" and not self.trouble


def of_status(status: ConnectorStatus) -> ConnectorState:
    return ConnectorState(status.name, status.state, len(status.tasks), status.reason)


def of_report(one: dict[str, Any]) -> ConnectorState:
    """From an entry of the page `/connectors`."""
    kept = one["log"] or {}
    trouble = f"{one['fault']}: {one['remedy']}" if one["fault"] else one["reason"] or one["flaw"]
    if one["given_up"]:
        trouble = f"not restarted any more: {trouble}"
    names = SnapshotState.__dataclass_fields__
    parts = tuple(SnapshotState(**{name: part[name] for name in names}) for part in one["snapshots"])
    return ConnectorState(
        one["name"],
        one["state"],
        one["tasks"],
        "; ".join(filter(None, [trouble, *one["problems"]])),
        kept.get("lag_bytes"),
        kept.get("kept_bytes"),
        one["heartbeat"],
        one["last_event"],
        one["restarts"],
        parts,
    )


def read_captures(url: str | None, connect: Connect) -> list[ConnectorState]:
    """Every connector, by name. Blocks. Raises `httpx.HTTPError` or `UnavailableError`."""
    if url is None:
        return [of_status(status) for status in connect.statuses()]
    answer = httpx.get(f"{url}/connectors", timeout=5)
    answer.raise_for_status()
    return [of_report(one) for one in answer.json()]
