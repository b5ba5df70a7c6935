"""What the dashboard and the API show, gathered by one task for all viewers. Each part says how old it is.

A part that cannot be read keeps its last values and carries the reason: a dashboard must not look healthy because its
sources are silent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import httpx
import redis.exceptions
from redis.asyncio import Redis

from connectors.connect import Connect
from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.process import Lifecycle
from serving.captures import ConnectorState, read_captures
from serving.flows import Flow, FlowReader, ProcessState
from serving.kpis import Kpi, read_kpis
from serving.tables import TableState, read_tables


@dataclass
class Snapshot:
    """The newest of everything. `read_at` is when each part was last read, `problems` why one could not be."""

    kpis: list[Kpi] = field(default_factory=list)
    flows: list[Flow] = field(default_factory=list)
    processes: list[ProcessState] = field(default_factory=list)
    tables: list[TableState] = field(default_factory=list)
    connectors: list[ConnectorState] = field(default_factory=list)
    read_at: dict[str, float] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def troubles(self) -> list[str]:
        """What somebody should look at, worst first."""
        found = [f"{part}: {reason}" for part, reason in sorted(self.problems.items())]
        found += [f"connector {c.name}: {c.trouble or c.state}" for c in self.connectors if not c.well]
        found += [f"process {p.name}: {p.problem}" for p in self.processes if not p.up]
        return found


class Collector:
    """Reads the sources at their own pace while the process runs."""

    def __init__(self, settings: Settings) -> None:
        self.snapshot = Snapshot()
        self._settings = settings
        self._redis = Redis.from_url(settings.redis.url, socket_timeout=5, socket_connect_timeout=5)
        # This process is among them: HTTP ingest is a flow too.
        self._flows = FlowReader(settings.endpoints)
        self._connect = Connect(settings.connect.url)

    async def run(self, lifecycle: Lifecycle) -> None:
        try:
            await asyncio.gather(
                self._every(lifecycle, "KPIs", 1.0, self._read_kpis),
                self._every(lifecycle, "flows", 2.0, self._read_flows),
                self._every(lifecycle, "tables", 5.0, self._read_tables),
                self._every(lifecycle, "connectors", 2.0, self._read_connectors),
            )
        finally:
            await asyncio.gather(self._redis.aclose(), self._flows.close())

    async def _every(
        self, lifecycle: Lifecycle, part: str, seconds: float, read: Callable[[], Awaitable[None]]
    ) -> None:
        while not lifecycle.stopping.is_set():
            try:
                await read()
            except (HeadraceError, httpx.HTTPError, redis.exceptions.RedisError, OSError) as e:
                self.snapshot.problems[part] = e.what if isinstance(e, HeadraceError) else f"{type(e).__name__}: {e}"
            else:
                self.snapshot.problems.pop(part, None)
                self.snapshot.read_at[part] = time.time()
            await lifecycle.sleep(seconds)

    async def _read_kpis(self) -> None:
        self.snapshot.kpis = await read_kpis(self._redis)

    async def _read_flows(self) -> None:
        self.snapshot.flows, self.snapshot.processes = await self._flows.read()

    async def _read_tables(self) -> None:
        self.snapshot.tables = await asyncio.to_thread(read_tables, self._settings.lake)

    async def _read_connectors(self) -> None:
        url = self._settings.endpoints.get("connectors")
        self.snapshot.connectors = await asyncio.to_thread(read_captures, url, self._connect)
