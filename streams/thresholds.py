"""How much of a flow leaves it, against what its contract allows: above `alert` it says so, above `stop` it halts.

Shares are over the last thousand rows or more, so that a handful of bad records is not yet a share.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from prometheus_client import Gauge

from headrace import metrics
from headrace.logs import get_logger
from schemas.contracts import Contract, Threshold
from streams.processor import FlowHaltedError

log = get_logger("thresholds")

WINDOW_ROWS = 1_000

SHARE = Gauge(
    "headrace_flow_departed_ratio", "Share of the last rows that were quarantined or dropped", (*metrics.FLOW, "how")
)
EXCEEDED = Gauge(
    "headrace_flow_threshold_exceeded", "1 while that share is above the contract's alert", (*metrics.FLOW, "how")
)


class Thresholds:
    """The limits of one flow. Without a contract, or with none set, nothing is watched."""

    def __init__(self, flow: str, topic: str, contract: Contract | None) -> None:
        self._labels = (flow, topic)
        self._limits: Mapping[str, Threshold] = contract.thresholds if contract is not None else {}
        self._recent: deque[tuple[int, Mapping[str, int]]] = deque()
        self._rows = 0
        self._alerted: set[str] = set()

    def count(self, rows: int, departed: Mapping[str, int]) -> None:
        """Take a chunk into account. Raises `FlowHaltedError` when a share is above its `stop`."""
        if not self._limits or not rows:
            return
        self._recent.append((rows, departed))
        self._rows += rows
        while self._rows - self._recent[0][0] >= WINDOW_ROWS:
            self._rows -= self._recent.popleft()[0]
        for how, limit in self._limits.items():
            share = sum(some.get(how, 0) for _, some in self._recent) / self._rows
            SHARE.labels(*self._labels, how).set(share)
            if self._rows >= WINDOW_ROWS:
                self._judge(how, share, limit)

    def _judge(self, how: str, share: float, limit: Threshold) -> None:
        above = limit.alert is not None and share > limit.alert
        EXCEEDED.labels(*self._labels, how).set(above)
        if above != (how in self._alerted):
            (self._alerted.add if above else self._alerted.discard)(how)
            say = log.warning if above else log.info
            say("above threshold" if above else "below threshold again", flow=self._labels[0], how=how, share=share)
        if limit.stop is not None and share > limit.stop:
            raise FlowHaltedError(
                f"{share:.1%} of the last {self._rows} rows are {how}, the contract stops at {limit.stop:.1%}",
                where=self._labels[0],
                hint="headrace quarantine list; then restart the worker",
            )
