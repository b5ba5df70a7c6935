"""Records that a flow leaves out: counted by rule, and told of where somebody has to mend something."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.logs import get_logger
from headrace.metrics import ROWS_DROPPED
from schemas import envelope
from schemas.codec import reasons

Mask = npt.NDArray[np.bool_]

log = get_logger("records")

UNPLACED = "the change does not say its place in the log; set provide.transaction.metadata=true in the connector"
_RETYPED = "a column that this flow uses has another type than before; begin anew, or use another column"


def foreign(batch: pa.RecordBatch, topic: str) -> Mask:
    """Which changes say that they are of another table than the topic's. Those that say nothing are not among them."""
    out: Mask = pc.fill_null(pc.invert(envelope.is_of(batch, topic)), False).to_numpy(zero_copy_only=False)
    return out


def uncountable(batch: pa.RecordBatch, topic: str) -> Iterator[tuple[str, str, Mask]]:
    """Which change events no reader can count: (rule, what there is to say, mask) each.

    Places of another table's changes say nothing of this topic's: whoever compares places does it without them.
    """
    yield "of another table", "the change is not of the topic's table", foreign(batch, topic)
    yield "position", UNPLACED, envelope.unplaced(batch)


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

    def countable(self, batch: pa.RecordBatch) -> Mask | None:
        """Which change events count, None when all do. Those that do not are counted and told of."""
        keep: Mask | None = None
        for rule, what, mask in uncountable(batch, self._topic):
            gone = mask if keep is None else mask & keep
            if gone.any():
                self.count(rule, int(gone.sum()))
                self.tell(what)
                keep = ~gone if keep is None else keep & ~gone
        return keep
