"""Each event once, by key and a number that the sender counts up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.keyindex import hash_keys
from streams.agent import StepContext
from streams.steps.window import NEW, OLD, SEEN, Seen

DUPLICATE = "duplicate"


# Lower case because it reads as a function where agents are declared.
class deduplicate:
    """A step that drops rows whose `keys` and `order` were seen before in the partition.

    `order` is a whole number that the sender counts up, `keys` what it is counted by; all must be in the agent's
    output under the same names. Rows may be late: a row is dropped only when the very same number was seen. A number
    `window` or more below its key's highest cannot be told apart from a repeat and goes to the quarantine.

    Memory is rebuilt from the last `horizon` records of the agent's own output: across restarts and rebalances a
    repeat is recognised for certain when its original is among them. Equal keys must be in the same partition.
    """

    def __init__(self, keys: Sequence[str], order: str, *, window: int = 1024, horizon: int = 1_000_000) -> None:
        self.keys = tuple(keys)
        self.order = order
        self.window = window
        self.horizon = horizon
        self.columns = (*self.keys, order)
        self._seen: dict[int, Seen] = {}

    def __call__(self, batch: pa.RecordBatch, ctx: StepContext) -> pa.RecordBatch:
        verdicts = self._judge(ctx.partition, batch)
        if (verdicts == NEW).all():
            return batch
        detail = pc.binary_join_element_wise(self.order, batch.column(self.order).cast(pa.string()), "=")
        first = verdicts != SEEN
        batch = ctx.drop(batch, pa.array(first), DUPLICATE, detail)
        return ctx.reject(
            batch, pa.array(verdicts[first] != OLD), f"{self.window} behind", detail.filter(pa.array(first))
        )

    def remember(self, partition: int, rows: pa.RecordBatch) -> None:
        self._judge(partition, rows)

    def forget(self, partition: int) -> None:
        self._seen.pop(partition, None)

    def _judge(self, partition: int, batch: pa.RecordBatch) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        seen = self._seen.setdefault(partition, Seen(self.window))
        keys = hash_keys([batch.column(name) for name in self.keys])
        return seen.judge(keys, batch.column(self.order).to_numpy(zero_copy_only=False))
