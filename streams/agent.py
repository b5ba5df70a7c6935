"""Agents: what a user declares. A source topic, an output topic, and steps between, each batch to batch.

A step is a plain function of a `RecordBatch` and a `StepContext` that returns the rows that go on. It may be called
again with the same batch, so what it remembers it must change last. A batch has the columns of the source's contract
(for a database table: the change event, with `before` and `after` in the contract's types) and `source_offset`, the
coordinate that ties a row to its record; steps keep that column, and never reorder rows or make new ones. Rows that a
step neither returns nor rejects are recorded as dropped by it: every record of the source is accounted for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import ConfigError, TerminalError
from headrace.kafka.columns import Chunk
from streams.lookup import Lookup, LookupTable
from streams.quarantine import Departure, Disposition, texts

COORDINATE = "source_offset"


class Step(Protocol):
    def __call__(self, batch: pa.RecordBatch, ctx: StepContext, /) -> pa.RecordBatch: ...


@runtime_checkable
class RememberingStep(Protocol):
    """A step with memory, which is built anew from the agent's own output when a partition comes.

    `columns` are those it reads of the output, `horizon` how many of the partition's last records it wants to see.
    """

    columns: Sequence[str]
    horizon: int

    def __call__(self, batch: pa.RecordBatch, ctx: StepContext, /) -> pa.RecordBatch: ...

    def remember(self, partition: int, rows: pa.RecordBatch) -> None:
        """Rows that are in the output already, oldest first."""

    def forget(self, partition: int) -> None:
        """The partition went to another worker."""


@dataclass(frozen=True)
class Agent:
    """One flow from a topic to a topic under contract. `name` is unique; it is also what its metrics and its rows in
    the quarantine are called by. Defined at the top of a file in `streams/agents/`."""

    name: str
    source: str
    output: str
    steps: Sequence[Step]
    lookups: Sequence[Lookup] = field(default=())


def step_name(step: Step) -> str:
    return getattr(step, "__name__", type(step).__name__)


class StepContext:
    """What a step may ask, and where it sends rows away."""

    def __init__(
        self, agent: str, chunk: Chunk, coordinates: npt.NDArray[np.int64], lookups: Mapping[str, LookupTable]
    ) -> None:
        """`coordinates` are the `source_offset` of each row of the chunk, ascending; -1 for rows that have none."""
        self.agent = agent
        self.topic = chunk.topic
        self.partition = chunk.partition
        self.departures: list[Departure] = []
        self._chunk = chunk
        self._coordinates = coordinates
        self._rows = np.flatnonzero(coordinates >= 0)
        self._lookups = lookups

    def lookup(self, name: str) -> LookupTable:
        """Raises `ConfigError` when the agent does not declare it."""
        if name not in self._lookups:
            raise ConfigError(
                f"no lookup {name!r}", where=f"agent {self.agent}", hint="name it in the agent's `lookups`"
            )
        return self._lookups[name]

    def received(self, batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
        """When Kafka got each row, in ms since the epoch."""
        return self._chunk.timestamps[self.rows(batch)]

    def reject(
        self, batch: pa.RecordBatch, ok: pa.BooleanArray, rule: str, detail: str | pa.Array = ""
    ) -> pa.RecordBatch:
        """The rows where `ok`; the others go to the quarantine, whole, under `rule`.

        `detail` says what was seen: one text, or an array with one for each row of the batch. A null in `ok` is false.
        """
        return self._leave(batch, ok, "quarantined", rule, detail)

    def drop(
        self, batch: pa.RecordBatch, keep: pa.BooleanArray, rule: str, detail: str | pa.Array = ""
    ) -> pa.RecordBatch:
        """The rows to keep; of the others only coordinates and rule are recorded."""
        return self._leave(batch, keep, "dropped", rule, detail)

    def rows(self, batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
        """Index of each row's record in the chunk. Raises `TerminalError` when the batch has lost its coordinates."""
        if COORDINATE not in batch.schema.names:
            raise TerminalError(f"a step lost the column {COORDINATE}", where=f"agent {self.agent}")
        wanted = batch.column(COORDINATE).to_numpy(zero_copy_only=False)
        if not len(wanted):
            return np.empty(0, np.int64)
        if len(self._rows):
            # Nearly always coordinates count up by one: then a row is where its distance from the first says.
            first = self._rows[0]
            for guess in (lambda: wanted - self._coordinates[first] + first, lambda: self._searched(wanted)):
                found: npt.NDArray[np.int64] = guess()
                inside = found.min() >= 0 and found.max() < len(self._coordinates)
                if inside and (self._coordinates[found] == wanted).all():
                    return found
        raise TerminalError(f"a step changed the column {COORDINATE}", where=f"agent {self.agent}")

    def _searched(self, wanted: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        at = np.searchsorted(self._coordinates[self._rows], wanted)
        found: npt.NDArray[np.int64] = self._rows[np.minimum(at, len(self._rows) - 1)]
        return found

    def depart(
        self,
        rows: npt.NDArray[np.int64],
        disposition: Disposition,
        rule: str,
        detail: str | pa.Array | Sequence[str],
        contract: str | None = None,
    ) -> None:
        """Records of the chunk, by index, leave the flow. For the wrapper; steps use `reject` and `drop`."""
        if len(rows):
            self.departures.append(Departure(rows, disposition, rule, texts(detail, len(rows)), contract))

    def _leave(
        self, batch: pa.RecordBatch, ok: pa.BooleanArray, disposition: Disposition, rule: str, detail: str | pa.Array
    ) -> pa.RecordBatch:
        ok = pc.fill_null(ok, False)
        if pc.all(ok).as_py() or not len(batch):
            return batch
        gone = pc.invert(ok)
        if not isinstance(detail, str):
            detail = detail.filter(gone)
        self.depart(self.rows(batch.filter(gone)), disposition, rule, detail)
        return batch.filter(ok)


def run_step(step: Step, batch: pa.RecordBatch, ctx: StepContext) -> pa.RecordBatch:
    """One step, all or nothing: if it raises, nobody has left. What it swallows is recorded as dropped by it.

    Raises what the step raises, and `TerminalError` when it breaks the order of rows.
    """
    mark = len(ctx.departures)
    try:
        out = step(batch, ctx)
    except BaseException:
        del ctx.departures[mark:]
        raise
    rows = ctx.rows(out)
    if len(rows) > 1 and (np.diff(rows) <= 0).any():
        raise TerminalError(f"step {step_name(step)} reordered or multiplied rows", where=f"agent {ctx.agent}")
    left = sum(len(d.rows) for d in ctx.departures[mark:])
    if len(rows) + left != len(batch):
        accounted = np.concatenate([rows, *(d.rows for d in ctx.departures[mark:])])
        missing = np.setdiff1d(ctx.rows(batch), accounted)
        ctx.depart(missing, "dropped", f"step {step_name(step)}", "")
    return out
