"""What ends versions of a history without being a change of their row: truncations and baselines.

A truncation has no key and lies in one partition. It ends the versions that were open at its place in the source's log,
in every partition, whatever of them has been read: so the places and times of truncations are kept, and each event and
row belongs to the epoch between two of them. A baseline (schemas/baseline.py) ends, in its own partition, the open
versions whose newest event is older than the snapshot that it closes. Pure.

Rows that were read before a truncation are corrected by their times: between partitions that are read unequally far,
a version is ended exactly where the source's clock was not set back around the truncation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from schemas.envelope import Position
from sinks.iceberg.places import Places
from sinks.iceberg.versions import NEVER

Int64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# Truncations that are remembered. What is read from before all of them ends with the oldest.
KEPT = 256


@dataclass(frozen=True)
class Ends:
    """`truncates`: places in ascending order, each with its time; `baselines`: by partition an offset and a time. Times
    are µs since the epoch."""

    truncates: tuple[tuple[Position, int], ...] = ()
    baselines: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str | None) -> Ends:
        """Reads what `str()` wrote."""
        if not text:
            return cls()
        said = json.loads(text)
        truncates = tuple((Position.parse(place), time) for place, time in said["truncates"])
        return cls(truncates, {int(p): (offset, time) for p, (offset, time) in said["baselines"].items()})

    def __str__(self) -> str:
        truncates = [(str(place), time) for place, time in self.truncates[-KEPT:]]
        return json.dumps({"truncates": truncates, "baselines": dict(sorted(self.baselines.items()))})

    def with_truncates(self, places: Places, times: Int64) -> Ends:
        """With truncations of these places; one that is known keeps its time."""
        pairs = zip(places.high.tolist(), places.low.tolist(), times.tolist(), strict=True)
        found = {Position(high, low): time for high, low, time in pairs} | dict(self.truncates)
        return replace(self, truncates=tuple(sorted(found.items())))

    def with_baselines(self, baselines: Iterable[tuple[int, int, int]]) -> Ends:
        """With (partition, offset, time) of some; one that is no higher than the partition's has nothing to say."""
        found = dict(self.baselines)
        for partition, offset, time in baselines:
            if offset > found.get(partition, (0, 0))[0]:
                found[partition] = (offset, time)
        return replace(self, baselines=found)

    @property
    def times(self) -> Int64:
        """Of the truncations."""
        return np.array([time for _, time in self.truncates], np.int64)

    @property
    def last(self) -> Places:
        """Where the last truncation is; there must be one."""
        place, _ = self.truncates[-1]
        return Places(np.array([place.high]), np.array([place.low]))

    def epochs(self, places: Places, unknown: int) -> Int64:
        """How many truncations are not after each place; `unknown` for places that are not known."""
        lowest = places.lowest
        passed = sum(place <= lowest for place, _ in self.truncates)
        epochs = np.full(len(places), passed)
        for place, _ in self.truncates[passed:]:
            epochs += ~places.below(place)
        epochs[places.high < 0] = unknown
        return epochs

    def left(self, epochs: Int64) -> Int64:
        """When what is left open in these epochs ends."""
        return np.concatenate((self.times, [NEVER]))[epochs]

    def first_new(self, done: Ends) -> int:
        """The first truncation that `done` has not; their number when it has all."""
        known = {place for place, _ in done.truncates}
        return next((n for n, (place, _) in enumerate(self.truncates) if place not in known), len(self.truncates))

    def of_rows(
        self, places: Places, partitions: Int64, offsets: Int64, begin: Int64, end: Int64, unplaced: int
    ) -> Int64:
        """When stored rows end that are said to be valid from `begin` until `end` (`NEVER`). Rows without a place are
        of the epoch `unplaced`."""
        ends = np.minimum(end, np.maximum(begin, self.left(self.epochs(places, unplaced))))
        for partition, (offset, time) in self.baselines.items():
            old = (partitions == partition) & (offsets < offset) & (ends == NEVER)
            ends[old] = np.maximum(begin[old], time)
        return ends
