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

WRITES = ("c", "u", "r")
OPERATIONS = (*WRITES, "d", "t")
UNPLACED = "the change does not say its place in the log; set provide.transaction.metadata=true in the connector"
_RETYPED = "a column that this flow uses has another type than before; begin anew, or use another column"


def _is_in(op: pa.Array, *codes: str) -> Mask:
    out: Mask = pc.is_in(op, value_set=pa.array(codes, pa.string())).to_numpy(zero_copy_only=False)
    return out


def foreign(batch: pa.RecordBatch, topic: str) -> Mask:
    """Which changes say that they are of another table than the topic's. Those that say nothing are not among them."""
    out: Mask = pc.fill_null(pc.invert(envelope.is_of(batch, topic)), False).to_numpy(zero_copy_only=False)
    return out


def uncountable(batch: pa.RecordBatch, topic: str, *, whole: bool) -> Iterator[tuple[str, str, Mask]]:
    """Which change events no reader can count: (rule, what there is to say, mask) each. `whole`: the reader needs whole
    rows before a change, and says itself what to do where there is none.

    Places of another table's changes say nothing of this topic's: whoever compares places does it without them.
    """
    yield "of another table", "the change is not of the topic's table", foreign(batch, topic)
    op = envelope.operations(batch)
    yield "unknown operation", "the change has an operation that Debezium's have not", ~_is_in(op, *OPERATIONS)
    after, before = (envelope.has_row(batch, part).to_numpy(zero_copy_only=False) for part in ("after", "before"))
    lacks = _is_in(op, *WRITES) & ~after
    if not whole:
        lacks |= _is_in(op, "d") & ~before
    yield "no row", "the change lacks the row that it is of", lacks
    yield "position", UNPLACED, envelope.unplaced(batch)


class LeftOut:
    """What one flow leaves out of one topic. Each reason is logged once. `whole` as for `uncountable`."""

    def __init__(self, flow: str, topic: str, *, whole: bool = False) -> None:
        self._whole = whole
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
        for rule, what, mask in uncountable(batch, self._topic, whole=self._whole):
            gone = mask if keep is None else mask & keep
            if gone.any():
                self.count(rule, int(gone.sum()))
                self.tell(what)
                keep = ~gone if keep is None else keep & ~gone
        return keep
