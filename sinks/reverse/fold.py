"""The rows of a sync as its sources make them, and what the target is still to be told. Pure.

A row is the fold of everything its sources said about its key. What the target has is remembered as a fingerprint: a
change is due when the row as it should be has another one. Many changes of a row between two sendings are one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from sinks.reverse.declaration import EVENT_COLUMNS, Sync

Key = tuple[Any, ...]
Values = dict[str, Any]


@dataclass(frozen=True)
class Event:
    """What one record says about a key: `values` None means that the source no longer has it.

    `ranks` are set for values of KPIs: of two values of a column the one with the higher rank counts, whatever their
    order in the topic. `kept` are columns whose value the record does not know, for it did not change. Values are plain
    JSON data. `at` is `topic-partition-offset`, `timestamp` Kafka's, in ms.
    """

    source: int
    key: Key
    values: Values | None
    at: str
    timestamp: int = 0
    ranks: dict[str, tuple[int, int]] | None = None
    kept: tuple[str, ...] = ()
    op: str = ""


@dataclass(frozen=True)
class Refusal:
    """A change that the target will not take as it is. `number` counts up within the sync."""

    number: int
    fingerprint: str | None
    op: str
    row: Values
    at: str
    response: str
    timestamp: int
    attempts: int = 1


@dataclass
class Row:
    """State of one key. `sent` is the fingerprint of what the target has, None when it has no such row."""

    key: Key
    parts: list[Values | None]
    ranks: dict[str, tuple[int, int]] = field(default_factory=dict)
    at: str = ""
    timestamp: int = 0
    sent: str | None = None
    refused: Refusal | None = None

    @property
    def is_empty(self) -> bool:
        return self.sent is None and self.refused is None and all(part is None for part in self.parts)


@dataclass(frozen=True)
class Change:
    """One thing to tell the target. `id` is the idempotency key: the same for the same change whenever it is sent.

    `version` grows from one round of a sync to the next; `order` identifies the key, whose changes stay in order.
    """

    id: str
    op: Literal["upsert", "delete", "event"]
    key: Values
    row: Values
    version: int
    order: str
    fingerprint: str | None
    at: str
    timestamp: int


def key_text(key: Key) -> str:
    """Identity of a key: numbers and their text are the same key, as KPIs' groups and tables' columns differ there."""
    return orjson.dumps([value if value is None else _plain(value) for value in key]).decode()


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def fingerprint(row: Values) -> str:
    return hashlib.sha256(orjson.dumps(row, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def change_id(sync: str, *parts: Any) -> str:
    """Opaque: keys of rows may be personal data, and idempotency keys end in other people's logs."""
    return hashlib.sha256(orjson.dumps([sync, *parts])).hexdigest()[:32]


class Table:
    """All rows of a sync, by identity of their key."""

    def __init__(self, sync: Sync) -> None:
        self.sync = sync
        self.rows: dict[str, Row] = {}

    def apply(self, events: Iterable[Event]) -> set[str]:
        """Fold events in their order; the identities of the rows that they touched."""
        touched = set()
        for event in events:
            identity = key_text(event.key)
            row = self.rows.get(identity) or Row(event.key, [None] * len(self.sync.sources))
            if self._fold(row, event):
                row.at, row.timestamp = event.at, event.timestamp
                self.rows[identity] = row
                touched.add(identity)
        return touched

    @staticmethod
    def _fold(row: Row, event: Event) -> bool:
        part = row.parts[event.source]
        if event.values is None:
            row.parts[event.source] = None
            return part is not None
        if event.ranks is not None:
            newer = {n: v for n, v in event.values.items() if event.ranks[n] >= row.ranks.get(n, event.ranks[n])}
            row.ranks |= {name: event.ranks[name] for name in newer}
            merged = (part or {}) | newer
        else:
            known = {name: (part or {}).get(name) for name in event.kept}
            merged = event.values | known
        row.parts[event.source] = merged
        return merged != part

    def forget(self, *, ranked: bool) -> None:
        """What the sources said, to be read anew; what the target has stays known.

        Values with ranks are forgotten only if `ranked`: read again they change nothing, and a topic of KPIs may have
        let go of those that stood still for long.
        """
        for row in self.rows.values():
            if ranked:
                row.parts, row.ranks = [None] * len(self.sync.sources), {}
            else:
                row.parts = [
                    part if source.pivot else None for source, part in zip(self.sync.sources, row.parts, strict=True)
                ]

    def wanted(self, row: Row) -> Values | None:
        """The row as the target should have it, None when it should not."""
        required = [i for i, source in enumerate(self.sync.sources) if source.required]
        if any(row.parts[i] is None for i in required) or all(part is None for part in row.parts):
            return None
        out: Values = dict(zip(self.sync.key, row.key, strict=True))
        for source, part in zip(self.sync.sources, row.parts, strict=True):
            out |= {name: (part or {}).get(name) for name in source.names}
        return {name: self.sync.defaults.get(name) if value is None else value for name, value in out.items()}

    def due(self, identity: str, version: int) -> Change | None:
        """What the target is to be told about a row now; None when it is current, or has refused just this."""
        row = self.rows.get(identity)
        if row is None:
            return None
        wanted = self.wanted(row)
        if wanted is None and (self.sync.mode != "mirror" or row.sent is None):
            row.refused = None  # what was refused is not wanted any more
            return None
        op: Literal["upsert", "delete"] = "delete" if wanted is None else "upsert"
        now = None if wanted is None else fingerprint(wanted)
        if wanted is not None and now == row.sent:
            row.refused = None
            return None
        if row.refused is not None and (row.refused.op, row.refused.fingerprint) == (op, now):
            return None
        key = dict(zip(self.sync.key, row.key, strict=True))
        # With the content in it: the same key never stands for two contents, however a restart cuts its rounds.
        number = change_id(self.sync.name, identity, op, row.at, version, now)
        return Change(number, op, key, wanted or key, version, identity, now, row.at, row.timestamp)

    def done(self, change: Change) -> None:
        """The target has the change."""
        row = self._row(change)
        row.sent, row.refused = change.fingerprint, None

    def refuse(self, change: Change, refusal: Refusal) -> None:
        """The target will not have it; it is left alone until the row is another, or somebody asks for it."""
        self._row(change).refused = refusal

    def _row(self, change: Change) -> Row:
        """The change's row; made where a plan outlived what its row was made of."""
        key = tuple(change.key[name] for name in self.sync.key)
        return self.rows.setdefault(change.order, Row(key, [None] * len(self.sync.sources)))

    def drop_empty(self, identity: str) -> bool:
        """Forget a row that nobody has any more; true when it was one."""
        row = self.rows.get(identity)
        if row is None or not row.is_empty:
            return False
        del self.rows[identity]
        return True


def event_change(sync: Sync, event: Event) -> Change:
    """The change of a record in a sync of events: the same for the same record, always."""
    topic, partition, offset = event.at.rsplit("-", 2)
    extras = dict(zip(EVENT_COLUMNS, (event.op, topic, int(partition), int(offset)), strict=True))
    key = dict(zip(sync.key, event.key, strict=True))
    given = key | (event.values or {}) | dict.fromkeys(event.kept)
    values = {name: sync.defaults.get(name) if value is None else value for name, value in given.items()}
    identity = key_text(event.key)
    return Change(
        change_id(sync.name, identity, event.at),
        "event",
        key,
        values | extras,
        int(offset),
        identity,
        None,
        event.at,
        event.timestamp,
    )
