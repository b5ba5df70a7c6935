"""How a partition's contributions are written down and read back: the changelog that is the state agent's only output.

One compacted topic a source, with the source's partitions. Every write is one record batch: the contributions that
changed, in full, each with the source offset it is as of, and last the progress of each KPI that moved. Kafka appends
a batch whole or not at all, so that reading it back gives values and offsets that belong together, whatever was killed.

Contributions are the same function of the same records for everyone, so where two writers meet (one that lost its
partition and does not know yet), the higher offset wins and nothing is wrong. Windows that are final everywhere are
taken out by tombstones, which the merger writes: it alone knows when nobody needs them any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import pyarrow as pa

from headrace.errors import DecodeError
from schemas.kpis import Kpi
from streams.kpi.contributions import Change, Key
from streams.kpi.events import Progress
from streams.kpi.partials import Partial

Writer = tuple[str, str]
"""(name of the KPI, fingerprint of its declaration)"""


def changelog_topic(application: str, source: str) -> str:
    return f"{application}-kpi-{source}-changelog"


def value_key(writer: Writer, key: Key | None) -> bytes:
    """Key of a contribution's record; of the progress record without a `key`."""
    return orjson.dumps([*writer, *(key or ())])


def encode_values(kpi: Kpi, at: int, values: Mapping[Key, Partial]) -> tuple[list[bytes], list[bytes]]:
    """Keys and values of contributions as of a source offset. They count once a progress follows them."""
    writer = (kpi.name, kpi.fingerprint)
    keys = [value_key(writer, key) for key in values]
    return keys, [orjson.dumps({"at": at} | partial.dump()) for partial in values.values()]


def encode(changes: Iterable[tuple[Kpi, Change]]) -> tuple[pa.BinaryArray, pa.BinaryArray]:
    """Keys and values of one record batch."""
    keys, values = [], []
    for kpi, change in changes:
        more = encode_values(kpi, change.progress.next, change.values)
        keys += [*more[0], value_key((kpi.name, kpi.fingerprint), None)]
        values += [*more[1], orjson.dumps(change.progress.dump())]
    return pa.array(keys, pa.binary()), pa.array(values, pa.binary())


@dataclass
class Folded:
    """What one partition's changelog says of one KPI.

    `values` hold (offset it is as of, value) and belong to `progress`; `stale` are keys of which an older value was
    written last.
    """

    progress: Progress | None = None
    values: dict[Key, tuple[int, Partial]] = field(default_factory=dict)
    stale: set[Key] = field(default_factory=set)
    pending: dict[Key, tuple[int, Partial]] = field(default_factory=dict)

    def _take(self, key: Key, value: tuple[int, Partial]) -> None:
        known = self.pending.get(key) or self.values.get(key)
        if known is None or value[0] >= known[0]:
            self.pending[key] = value
            self.stale.discard(key)
        else:
            self.stale.add(key)

    def _reach(self, progress: Progress) -> dict[Key, Partial | None]:
        if self.progress is not None and progress.next < self.progress.next:
            return {}
        self.progress = progress
        self.values.update(self.pending)
        moved: dict[Key, Partial | None] = {key: partial for key, (_, partial) in self.pending.items()}
        self.pending.clear()
        return moved


class Fold:
    """Reads one partition's changelog, from its beginning, into `Folded` by KPI and fingerprint."""

    def __init__(self) -> None:
        self.kpis: dict[Writer, Folded] = {}

    def feed(self, keys: pa.BinaryArray, values: pa.BinaryArray) -> dict[Writer, set[Key]]:
        """Takes records in order; returns the keys whose value moved, by KPI.

        A value counts from the progress that follows it in its batch on, so it does not matter how batches are cut.
        Raises `DecodeError` for a record that is none of ours.
        """
        moved: dict[Writer, set[Key]] = {}
        for raw_key, raw in zip(keys.to_pylist(), values.to_pylist(), strict=True):
            writer, key, data = _parse(raw_key, raw)
            folded = self.kpis.setdefault(writer, Folded())
            if key is None:
                if data is None:
                    del self.kpis[writer]
                    continue
                reached = folded._reach(Progress.load(data))
                moved.setdefault(writer, set()).update(reached)
            elif data is None:
                folded.pending.pop(key, None)
                folded.stale.discard(key)
                if folded.values.pop(key, None) is not None:
                    moved.setdefault(writer, set()).add(key)
            else:
                folded._take(key, (data["at"], Partial.load(data)))
        return moved


def _parse(raw_key: bytes | None, raw: bytes | None) -> tuple[Writer, Key | None, Mapping[str, Any] | None]:
    try:
        parts = orjson.loads(raw_key or b"")
        name, fingerprint, *rest = parts
        key = (rest[0], rest[1]) if rest else None
        return (name, fingerprint), key, None if raw is None else orjson.loads(raw)
    except (ValueError, IndexError, TypeError) as e:
        raise DecodeError("a record that no KPI agent wrote", where=f"changelog key {raw_key!r}") from e
