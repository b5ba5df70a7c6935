"""Flows as each process counts them: rows in, proved, quarantined, dropped; lag and freshness. From /metrics."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx
from prometheus_client.parser import text_string_to_metric_families

PREFIX = "headrace_flow_"


@dataclass
class Flow:
    """One topic read by one agent, sink or bridge."""

    process: str
    name: str
    topic: str
    rows_in: float = 0
    rows_out: float = 0
    quarantined: float = 0
    dropped: float = 0
    lag: float = 0
    last_record: float = 0
    rate: float = 0
    rules: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.process, self.name, self.topic

    def age(self, now: float) -> float | None:
        """Seconds since the newest record that was proved in its target; None before the first."""
        return max(0.0, now - self.last_record) if self.last_record else None


@dataclass(frozen=True)
class ProcessState:
    name: str
    url: str
    up: bool
    problem: str = ""


def parse_flows(process: str, text: str) -> list[Flow]:
    """Flows in one process's metrics text."""
    flows: dict[tuple[str, str], Flow] = {}
    for family in text_string_to_metric_families(text):
        if not family.name.startswith(PREFIX):
            continue
        what = family.name.removeprefix(PREFIX)
        for sample in family.samples:
            if sample.name.endswith(("_created", "_bucket", "_sum", "_count")):
                continue
            labels = sample.labels
            flow = flows.setdefault((labels["flow"], labels["topic"]), Flow(process, labels["flow"], labels["topic"]))
            if what == "rows_in":
                flow.rows_in += sample.value
            elif what == "rows_out":
                flow.rows_out += sample.value
            elif what in ("rows_quarantined", "rows_dropped"):
                if what == "rows_quarantined":
                    flow.quarantined += sample.value
                else:
                    flow.dropped += sample.value
                if sample.value:
                    flow.rules[labels["rule"]] = flow.rules.get(labels["rule"], 0) + sample.value
            elif what == "lag_records":
                flow.lag += sample.value
            elif what == "last_record_processed_timestamp_seconds":
                flow.last_record = max(flow.last_record, sample.value)
    return [flows[key] for key in sorted(flows)]


class FlowReader:
    """Asks every process for its metrics and turns counters into rates between two askings."""

    def __init__(self, endpoints: Mapping[str, str]) -> None:
        self._endpoints = dict(endpoints)
        self._client = httpx.AsyncClient(timeout=2.0)
        self._before: dict[tuple[str, str, str], tuple[float, float]] = {}

    async def close(self) -> None:
        await self._client.aclose()

    async def read(self) -> tuple[list[Flow], list[ProcessState]]:
        answers = await asyncio.gather(*(self._ask(name, url) for name, url in sorted(self._endpoints.items())))
        flows = [flow for found, _ in answers for flow in found]
        now = time.monotonic()
        after: dict[tuple[str, str, str], tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        for flow in flows:
            at, rows = self._before.get(flow.key, (now, flow.rows_in))
            # A counter that fell belongs to a process that was started again.
            flow.rate = max(0.0, flow.rows_in - rows) / (now - at) if now > at else 0.0
            after[flow.key] = (now, flow.rows_in)
        self._before = after
        return flows, [state for _, state in answers]

    async def _ask(self, name: str, url: str) -> tuple[list[Flow], ProcessState]:
        try:
            metrics, ready = await asyncio.gather(self._client.get(f"{url}/metrics"), self._client.get(f"{url}/readyz"))
        except httpx.HTTPError as e:
            return [], ProcessState(name, url, False, f"does not answer: {type(e).__name__}")
        flows = parse_flows(name, metrics.text) if metrics.status_code == 200 else []
        if ready.status_code == 200:
            return flows, ProcessState(name, url, True)
        try:
            problems = ready.json().get("problems", {})
        except ValueError:
            problems = {}
        return flows, ProcessState(name, url, False, "; ".join(map(str, problems.values())) or "not ready")
