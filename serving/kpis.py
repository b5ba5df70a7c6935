"""Live KPI values, as the KPI sink keeps them in Redis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
from redis.asyncio import Redis

META = "kpi:meta:"


@dataclass(frozen=True)
class Point:
    """One value: of one window (None: of all time) and one group of dimensions."""

    window_start: str | None
    group: dict[str, str]
    value: float | None
    revision: int
    updated_at: str
    final: bool

    @property
    def label(self) -> str:
        return " · ".join(str(v) for v in self.group.values()) or "all"


@dataclass(frozen=True)
class Kpi:
    """A declared KPI with its current values, oldest window first."""

    name: str
    title: str
    unit: str
    doc: str
    measure: str
    windowed: bool
    points: tuple[Point, ...]
    top: int = 10
    """Groups that a chart shows."""

    @property
    def windows(self) -> list[str]:
        return sorted({p.window_start for p in self.points if p.window_start is not None})

    @property
    def latest(self) -> list[Point]:
        """The values of the newest window, or all of them without windows."""
        windows = self.windows
        return [p for p in self.points if p.window_start == windows[-1]] if windows else list(self.points)

    @property
    def additive(self) -> bool:
        """Whether groups may be added up to one headline number."""
        return self.measure in ("sum", "count")

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers."""
        return self.measure in ("count", "distinct")

    @property
    def headline(self) -> float | None:
        """Groups added up where that means something; else the highest of them."""
        values = [p.value for p in self.latest if p.value is not None]
        if not values:
            return None
        return sum(values) if self.additive or self.measure == "distinct" else max(values)

    @property
    def as_of(self) -> str | None:
        return max((p.updated_at for p in self.points), default=None)

    @property
    def revision(self) -> int:
        return max((p.revision for p in self.points), default=0)


def _point(raw: bytes) -> Point:
    data = orjson.loads(raw)
    group = data.get("group") or {}
    return Point(
        window_start=data.get("window_start"),
        group=orjson.loads(group) if isinstance(group, str) else group,
        value=data.get("value"),
        revision=int(data.get("revision", 0)),
        updated_at=str(data.get("updated_at", "")),
        final=bool(data.get("final", False)),
    )


async def read_kpis(redis: Redis) -> list[Kpi]:
    """Every KPI that has been declared to Redis, with or without values, by name."""
    names = sorted([key.decode().removeprefix(META) async for key in redis.scan_iter(f"{META}*")])
    found = []
    for name in names:
        raw = await redis.get(META + name)
        if raw is None:
            continue
        meta: dict[str, Any] = orjson.loads(raw)
        values = await redis.hvals(f"kpi:{name}")
        points = sorted(
            (_point(v if isinstance(v, bytes) else v.encode()) for v in values),
            key=lambda p: (p.window_start or "", p.label),
        )
        found.append(
            Kpi(
                name=name,
                title=meta.get("title") or name,
                unit=meta.get("unit") or "",
                doc=meta.get("doc") or "",
                measure=str(meta.get("measure", "")).split()[0] if meta.get("measure") else "",
                windowed=bool(meta.get("window")),
                points=tuple(points),
                top=int(meta.get("top", 10)),
            )
        )
    return found
