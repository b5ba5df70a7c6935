"""Flows as each process counts them: rows in, proved, quarantined, dropped; lag and freshness. From /metrics."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx
from prometheus_client.parser import text_string_to_metric_families

PREFIX = "headrace_flow_"
# Counters of a sink move with its commits, every few seconds: a rate is that of several, or not told.
RATE_SECONDS, LEAST_RATE_SECONDS = 30.0, 10.0


@dataclass
class Flow:
    """One topic read by one agent, sink or bridge. `rate`: rows a second of late; None while too little was seen."""

    process: str
    name: str
    topic: str
    rows_in: float = 0
    rows_out: float = 0
    quarantined: float = 0
    dropped: float = 0
    lag: float = 0
    last_record: float = 0
    rate: float | None = None
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


Counts = deque[tuple[float, float]]


def mean_rate(seen: Counts, now: float, rows: float) -> float | None:
    """Rows a second over the last `RATE_SECONDS`, by what a counter was then; `seen` are its counts, this one included
    from here on. None while they are of less than `LEAST_RATE_SECONDS`."""
    if seen and rows < seen[-1][1]:
        # The process was started again.
        seen.clear()
    seen.append((now, rows))
    while seen[0][0] < now - RATE_SECONDS:
        seen.popleft()
    since, before = seen[0]
    return (rows - before) / (now - since) if now - since >= LEAST_RATE_SECONDS else None


class FlowReader:
    """Asks every process for its metrics, and turns counters into rates over a while."""

    def __init__(self, endpoints: Mapping[str, str]) -> None:
        self._endpoints = dict(endpoints)
        self._client = httpx.AsyncClient(timeout=2.0)
        self._seen: dict[tuple[str, str, str], Counts] = {}

    async def close(self) -> None:
        await self._client.aclose()

    async def read(self) -> tuple[list[Flow], list[ProcessState]]:
        answers = await asyncio.gather(*(self._ask(name, url) for name, url in sorted(self._endpoints.items())))
        flows = [flow for found, _ in answers for flow in found]
        now = time.monotonic()
        for flow in flows:
            flow.rate = mean_rate(self._seen.setdefault(flow.key, deque()), now, flow.rows_in)
        self._seen = {key: seen for key, seen in self._seen.items() if seen[-1][0] > now - RATE_SECONDS}
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
