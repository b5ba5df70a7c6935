"""What lookups know about a row."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from streams.agent import Step, StepContext
from streams.processor import NotYet

# Keys remembered as waited for in vain; beyond it the oldest are forgotten, and waited for again.
MOST_UNKNOWN = 100_000


def enrich(lookup: str, key: str, columns: Sequence[str] | Mapping[str, str]) -> Step:
    """A step that adds columns of the row that `key` finds in a lookup; null where it finds none.

    `columns` are the lookup's, or {new name: the lookup's name}. A column that is there already is replaced.
    """
    names = dict(columns) if isinstance(columns, Mapping) else {name: name for name in columns}

    def step(batch: pa.RecordBatch, ctx: StepContext) -> pa.RecordBatch:
        found = ctx.lookup(lookup).take(batch.column(key))
        for name, theirs in names.items():
            at = batch.schema.get_field_index(name)
            column = found.column(theirs)
            batch = batch.append_column(name, column) if at < 0 else batch.set_column(at, name, column)
        return batch

    step.__name__ = f"enrich from {lookup}"
    return step


# Lower case because it reads as a function where agents are declared.
class known:
    """A step that sends rows to the quarantine whose `key` a lookup does not have.

    The first record of a new device may overtake the row that makes the device known: for a record that Kafka has had
    for less than `patience` seconds the lookup is asked again until then, once for each unknown key.
    """

    def __init__(self, lookup: str, key: str, rule: str, *, patience: float = 5.0) -> None:
        self.lookup = lookup
        self.key = key
        self.rule = rule
        self.patience = patience
        self._asked: dict[Any, float] = {}

    def __call__(self, batch: pa.RecordBatch, ctx: StepContext) -> pa.RecordBatch:
        keys = batch.column(self.key)
        ok = ctx.lookup(self.lookup).known(keys)
        if pc.all(ok).as_py() is not False:
            return batch
        unknown = batch.filter(pc.invert(ok))
        if self._worth_waiting(unknown.column(self.key), int(ctx.received(unknown).max())):
            raise NotYet(f"{self.key} not in lookup {self.lookup}", where=f"agent {ctx.agent}")
        return ctx.reject(batch, ok, self.rule, keys.cast(pa.string()))

    def _worth_waiting(self, keys: pa.Array, newest: int) -> bool:
        if newest / 1000 < time.time() - self.patience:
            return False
        now = time.monotonic()
        waiting = False
        for key in keys.unique().to_pylist():
            waiting |= now < self._asked.setdefault(key, now) + self.patience
        while len(self._asked) > MOST_UNKNOWN:
            del self._asked[next(iter(self._asked))]
        return waiting
