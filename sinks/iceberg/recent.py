"""Which keys a table's topic has changed of late: what an incremental snapshot reads of them may be older. Pure.

24 bytes a change of the last minute, by Connect's clock as the changes say it: a backlog that is read in seconds takes
no more than what Connect sent in a minute of its time. Nothing is kept over a restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.keyindex import KeyIndex, Keys, slots_for
from schemas import envelope
from sinks.iceberg.applicable import mask_of
from sinks.iceberg.changes import join
from sinks.iceberg.versions import sequence

Int64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

CHANGES = pa.array(["c", "u", "d"])


@dataclass(frozen=True, eq=False)
class Sent:
    """Events of one partition and one writer's schema, in order: their keys, and when Connect made them, -1 for those
    that say nothing about their key's last change."""

    keys: Keys
    times: Int64
    schema: Mapping[str, Any] | None

    @cached_property
    def newest(self) -> int:
        return int(self.times.max(initial=-1))

    def take(self, rows: Any) -> Sent:
        return Sent(self.keys.take(rows), self.times[rows], self.schema)


@dataclass(frozen=True, eq=False)
class Recent:
    """Changes of the last minute, by partition: of a key, only its last one counts."""

    changes: Mapping[int, tuple[Sent, ...]] = field(default_factory=dict)

    def judged(
        self, partition: int, batch: pa.RecordBatch, keys: Keys, schema: Mapping[str, Any] | None
    ) -> tuple[Recent, Mask]:
        """What is known after these events of a partition and of one writer's schema; and which of them are `stale`."""
        changed = mask_of(pc.is_in(envelope.operations(batch), CHANGES))
        read = ~changed if changed.all() else mask_of(envelope.incremental_mask(batch))
        sent = Sent(keys, np.where(changed | read, envelope.sent_time(batch), -1), schema)
        stale = self.stale(partition, sent, read)
        return self.after(partition, replace(sent, times=np.where(read, -1, sent.times))), stale

    def after(self, partition: int, sent: Sent) -> Recent:
        """And these changes."""
        if sent.newest < 0:
            return self
        oldest = max(0, sent.newest - envelope.UNSEEN_MS)
        known = (one for one in self.changes.get(partition, ()) if one.newest >= oldest)
        late = sent.times >= oldest
        return Recent({**self.changes, partition: (*known, sent if late.all() else sent.take(late))})

    def without(self, keys: Keys) -> Recent:
        """Nothing is known of these keys."""
        if not len(keys):
            return self
        some = _index(keys)
        return Recent(
            {p: tuple(one.take(some.locations(one.keys) < 0) for one in sent) for p, sent in self.changes.items()}
        )

    def stale(self, partition: int, sent: Sent, read: Mask) -> Mask:
        """Which of the rows that an incremental snapshot read (`read[i]`) may be older than their key's last change,
        among these events or before them."""
        stale = np.zeros(len(read), np.bool_)
        if not read.any():
            return stale
        keys = _index(sent.keys.take(read))
        known = [one.take(keys.locations(one.keys) >= 0) for one in self.changes.get(partition, ())]
        alike = np.concatenate([*(np.full(len(one.times), one.schema == sent.schema) for one in known), ~stale])
        times = np.concatenate([*(one.times for one in known), sent.times])
        changed = times >= 0
        changed[len(times) - len(read) :] &= ~read
        if not changed.any():
            return stale
        every = join([*(one.keys for one in known), sent.keys])
        last = sequence(every, np.zeros(len(every), np.int64)).last_marked(changed)
        found = (last >= 0) & alike[last] & envelope.stale(times, times[last])
        late: Mask = read & found[len(times) - len(read) :]
        return late


def among(keys: Keys, some: Keys) -> Mask:
    """Which keys are one of some."""
    found: Mask = _index(some).locations(keys) >= 0
    return found


def _index(keys: Keys) -> KeyIndex:
    index = KeyIndex(slots_for(len(keys)))
    index.put(keys, np.zeros(len(keys), np.int64))
    return index
