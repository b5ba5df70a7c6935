"""Records that a flow leaves out: counted by rule, and told of where somebody has to mend something."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.logs import get_logger
from headrace.metrics import ROWS_DROPPED
from schemas.codec import reasons

log = get_logger("records")

_RETYPED = "a column that this flow uses has another type than before; begin anew, or use another column"


class LeftOut:
    """What one flow leaves out of one topic. Each reason is logged once in a process."""

    def __init__(self, flow: str, topic: str) -> None:
        self._flow = flow
        self._topic = topic
        self._told: set[str] = set()

    def count(self, rule: str, rows: int) -> None:
        if rows:
            ROWS_DROPPED.labels(self._flow, self._topic, rule).inc(rows)

    def tell(self, reason: str, hint: str = "") -> None:
        if reason not in self._told:
            self._told.add(reason)
            log.error("records are left out", flow=self._flow, topic=self._topic, reason=reason, hint=hint)

    def undecoded(self, found: Sequence[str]) -> None:
        """Tell of records whose schema does not fit those before. Other reasons are of one record each."""
        for reason in {text for text in found if reasons.rule_of(text) == reasons.INCOMPATIBLE_SCHEMA}:
            self.tell(reason, _RETYPED)
