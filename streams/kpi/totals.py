"""Adding partitions up: from changelogs to the values that are published, each a consistent cut.

Pure: what Kafka said goes in, what is to be said goes out; clocks and offsets are arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import pyarrow as pa

from schemas.kpis import Kpi
from streams.kpi.changelog import Fold, Writer
from streams.kpi.contributions import Key
from streams.kpi.partials import total_of, value_of

KEEP_FINAL_US = 3_600_000_000
"""How long, in event time, contributions outlive the moment their window is final: a partition that was idle may
wake up with rows of it, and corrects a value that is already final."""

IDLE_SECONDS = 60.0
"""A partition that has read all there is and got nothing new for so long does not hold windows open."""


@dataclass(frozen=True)
class Published:
    """What the world knows of one value."""

    value: float | None
    final: bool


@dataclass(frozen=True)
class Publication:
    """One value to publish."""

    kpi: Kpi
    key: Key
    value: float | None
    final: bool
    cut: str


@dataclass
class _Partition:
    fold: Fold = field(default_factory=Fold)
    moved_at: float = 0.0
    end: int | None = None


class Totals:
    """The state of the merger: contributions by partition, what was published, watermarks."""

    def __init__(self, kpis: Iterable[Kpi]) -> None:
        self.kpis = {kpi.name: kpi for kpi in kpis}
        self.published: dict[tuple[str, Key], Published] = {}
        self.watermarks: dict[str, int] = {}
        self._expired: dict[str, int] = {}
        self._partitions: dict[tuple[str, int], _Partition] = {}
        self._dirty: dict[str, set[Key]] = {name: set() for name in self.kpis}
        self._open: dict[str, dict[int, set[Key]]] = {name: {} for name in self.kpis}
        self._ended: dict[str, dict[int, set[Key]]] = {name: {} for name in self.kpis}

    def recall(self, name: str, key: Key, value: float | None, *, final: bool) -> None:
        """What was published before this process began; a final window was final for all windows before it too."""
        kpi = self.kpis.get(name)
        if kpi is None or (key[0] is None) != (kpi.window_us is None):
            return
        self.published[name, key] = Published(value, final)
        if final and key[0] is not None:
            closed = key[0] + (kpi.window_us or 0) + kpi.lateness_us
            self.watermarks[name] = self._expired[name] = max(self.watermarks.get(name, closed), closed)

    def feed(self, source: str, partition: int, keys: pa.BinaryArray, values: pa.BinaryArray, now: float) -> None:
        """Records of a source partition's changelog; `now` in seconds since the epoch (the records' own time)."""
        place = self._partitions.setdefault((source, partition), _Partition())
        for (name, fingerprint), moved in place.fold.feed(keys, values).items():
            kpi = self.kpis.get(name)
            if kpi is None or kpi.fingerprint != fingerprint:
                continue
            self._dirty[name] |= moved
            if kpi.window_us is not None:
                for key in moved:
                    windows = self._ended if self._is_final(kpi, key[0]) else self._open
                    windows[name].setdefault(key[0] or 0, set()).add(key)
            place.moved_at = max(place.moved_at, now)

    def ends(self, ends: Mapping[tuple[str, int], int]) -> None:
        """End offsets of the source partitions: a partition with records to read is not idle."""
        for place, end in ends.items():
            self._partitions.setdefault(place, _Partition()).end = end

    def changed(self, now: float) -> list[Publication]:
        """All values that differ from what is published. Each is given once: who fails to publish it begins anew."""
        out: list[Publication] = []
        for name, kpi in self.kpis.items():
            self._advance(kpi, now)
            dirty = self._dirty[name]
            if not dirty:
                continue
            cut = self._cut(kpi)
            for key in sorted(dirty, key=lambda k: (k[0] or 0, k[1])):
                if self._is_gone(kpi, key[0]):
                    continue
                parts = [f.values[key][1] for f in self._folded(kpi) if key in f.values]
                total = value_of(kpi, total_of(parts))
                value = None if total is None else float(total)
                final = self._is_final(kpi, key[0])
                if self.published.get((name, key)) != Published(value, final):
                    out.append(Publication(kpi, key, value, final, cut))
            dirty.clear()
        return out

    def keep(self, publications: Iterable[Publication]) -> None:
        """These are published now."""
        for p in publications:
            self.published[p.kpi.name, p.key] = Published(p.value, p.final)

    def expired(self) -> dict[tuple[str, int], list[tuple[Writer, Key]]]:
        """Contributions that nobody needs any more, by source partition: to be replaced by tombstones.

        To be called when all that `changed` gave is published: final values must be out before their parts go.
        """
        out: dict[tuple[str, int], list[tuple[Writer, Key]]] = {}
        for name, kpi in self.kpis.items():
            ended = self._ended[name]
            if name in self.watermarks:
                self._expired[name] = self.watermarks[name]
            for start in [s for s in ended if self._is_gone(kpi, s)]:
                for key in ended.pop(start):
                    self.published.pop((name, key), None)
                    for place, partition in self._partitions.items():
                        writer = (name, kpi.fingerprint)
                        folded = partition.fold.kpis.get(writer)
                        if place[0] == kpi.source and folded is not None and key in folded.values:
                            out.setdefault(place, []).append((writer, key))
        return out

    def late(self, kpi: Kpi) -> int:
        """Rows left out because their window was closed."""
        return sum(f.progress.late for f in self._folded(kpi) if f.progress)

    def _folded(self, kpi: Kpi) -> list[Any]:
        writer = (kpi.name, kpi.fingerprint)
        return [
            p.fold.kpis[writer]
            for (source, _), p in self._partitions.items()
            if source == kpi.source and writer in p.fold.kpis
        ]

    def _cut(self, kpi: Kpi) -> str:
        """Canonical JSON: {topic: {partition: next offset}}."""
        writer = (kpi.name, kpi.fingerprint)
        offsets = {
            str(number): folded.progress.next
            for (source, number), place in sorted(self._partitions.items())
            if source == kpi.source and (folded := place.fold.kpis.get(writer)) and folded.progress
        }
        return orjson.dumps({kpi.source: offsets}).decode()

    def _advance(self, kpi: Kpi, now: float) -> None:
        """Move the KPI's watermark and mark the windows that became final."""
        if kpi.window_us is None:
            return
        watermark = self._watermark(kpi, now)
        if watermark is None or watermark <= self.watermarks.get(kpi.name, watermark - 1):
            return
        self.watermarks[kpi.name] = watermark
        still = self._open[kpi.name]
        for start in [s for s in still if self._is_final(kpi, s)]:
            keys = still.pop(start)
            self._dirty[kpi.name] |= keys
            self._ended[kpi.name].setdefault(start, set()).update(keys)

    def _watermark(self, kpi: Kpi, now: float) -> int | None:
        """The lowest of the partitions that are not idle; None while one of them has not said its own."""
        writer = (kpi.name, kpi.fingerprint)
        found: list[int] = []
        for (source, _), place in self._partitions.items():
            if source != kpi.source:
                continue
            folded = place.fold.kpis.get(writer)
            progress = folded.progress if folded else None
            read = progress.next if progress else 0
            waiting = place.end is None or read < place.end
            if not waiting and now - place.moved_at > IDLE_SECONDS:
                continue
            if progress is None or progress.watermark is None:
                if waiting:
                    return None
                continue
            found.append(progress.watermark)
        return min(found, default=None)

    def _is_final(self, kpi: Kpi, start: int | None) -> bool:
        return _passed(kpi, start, self.watermarks.get(kpi.name))

    def _is_gone(self, kpi: Kpi, start: int | None) -> bool:
        """Whether contributions to this window may have been taken out: what is left of them is no total."""
        expired = self._expired.get(kpi.name)
        return _passed(kpi, start, None if expired is None else expired - KEEP_FINAL_US)


def _passed(kpi: Kpi, start: int | None, watermark: int | None) -> bool:
    if start is None or kpi.window_us is None or watermark is None:
        return False
    return start + kpi.window_us + kpi.lateness_us <= watermark
