"""How far the changes of a partition have been applied, which of those that come are repeats, and which only look so.

A repeat was applied before, so it is not newer than all that was. A change that is, and yet has no position above
theirs, is of another log: a server's that was begun anew (RESET MASTER), another server's, a restored database's. It
would vanish as a repeat. Within a second, the unit of MariaDB's times, and where clocks go back, it cannot be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from schemas import envelope
from schemas.envelope import NOWHERE, Position
from sinks.iceberg import progress
from sinks.iceberg.places import Places

LOG_RULE = "position: another log"
OTHER_LOG = (
    "the change is newer than all before it, but its place in the source's log is not above theirs: the log was begun "
    "anew, or is another server's; see docs/operations.md#changes-are-missing"
)

Mask = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]


class Mark(NamedTuple):
    """The highest position applied, and when the source committed the newest change (ms since the epoch)."""

    position: Position = NOWHERE
    newest: int = -1

    @classmethod
    def stored(cls, properties: Mapping[str, str], topic: str, partition: int) -> Mark:
        position = properties.get(progress.position_property(topic, partition))
        newest = properties.get(progress.newest_property(topic, partition), -1)
        return cls(Position.parse(position) if position else NOWHERE, int(newest))

    def properties(self, topic: str, partition: int) -> dict[str, str]:
        if self.position == NOWHERE:
            return {}
        return {
            progress.position_property(topic, partition): str(self.position),
            progress.newest_property(topic, partition): str(self.newest),
        }

    def judge(self, places: Places, times: Int64) -> tuple[Mask, Mask, Mark]:
        """Of changes in offset order: which are fresh, which are of another log (the others are repeats), and the mark
        after them."""
        fresh = envelope.after_position(places.high, places.low, self.position)
        newest = np.maximum.accumulate(np.concatenate(([self.newest], np.where(fresh, times, -1))))
        after = Mark(envelope.highest(places.high, places.low, self.position), int(newest[-1]))
        return fresh, ~fresh & (times > newest[:-1]), after
