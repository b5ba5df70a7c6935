"""The copy in hand of a current-state table: its rows, changed as the database's log says, compared with others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Any, Self

from governance.verify.kafka import Record
from governance.verify.report import Check, coordinates
from governance.verify.values import difference
from schemas import envelope

Key = tuple[Hashable, ...]
Frozen = tuple[tuple[str, str], ...]
META = ("_kafka_partition", "_offset", "_timestamp", "_position", "_order")
NOWHERE = (-1, -1)


def _strip(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in META and value is not None}


def _freeze(row: dict[str, Any]) -> Frozen:
    return tuple(sorted((name, repr(value)) for name, value in _strip(row).items()))


def is_incremental(event: dict[str, Any]) -> bool:
    """Whether the event is a row that an incremental snapshot read."""
    return bool(event["op"] == "r" and event["source"].get("snapshot") == envelope.INCREMENTAL)


def sent(event: dict[str, Any]) -> int:
    """When Connect made the event, in ms since the epoch; -1 where it does not say."""
    time = event.get("ts_ms")
    return -1 if time is None else int(time)


def _written(row: dict[str, Any]) -> tuple[int, int]:
    """Where in the log a row of the table was written. One that does not say is older than all others."""
    high, order = row.get("_position"), row.get("_order")
    return (-1 if high is None else high, -1 if order is None else order)


class Keyed:
    """Rows by key. Nothing below the floor is there, in whatever order partitions are read: a truncate raises it.

    What is read by an incremental snapshot and may be older than the last change of its key changes nothing
    (`schemas.envelope.stale`).
    """

    def __init__(self, key: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
        self._key = key
        self._floor = NOWHERE
        self._twice: list[dict[str, Any]] = []
        self._rows: dict[Key, dict[str, Any]] = {}
        # The last change of each key: when Connect made it, and its writer's schema.
        self._changed: dict[Key, tuple[int, Any]] = {}
        for row in rows:
            at = self._at(row)
            if at in self._rows:
                self._twice.append(row)
            self._rows[at] = row

    def _at(self, row: dict[str, Any]) -> Key:
        return tuple(row.get(name) for name in self._key)

    def raised(self, floor: tuple[int, int]) -> Self:
        """With this floor, at least. The table's own rows stand already."""
        self._floor = max(self._floor, floor)
        return self

    def fill(self, values: dict[str, Any]) -> None:
        """All rows hold these values in columns that they have not."""
        self._rows = {at: values | row for at, row in self._rows.items()}

    def recall(self, changes: Iterable[tuple[Record, dict[str, Any]]]) -> None:
        """Changes from shortly before the table's cut. Those that it did not apply, as the quarantine has them, do not
        count: it has neither their row nor a later one."""
        last = {
            self._at(row): (record, event)
            for record, event in changes
            if event["op"] in "cud" and (row := event.get("after") or event.get("before"))
        }
        for at, (record, event) in last.items():
            row = self._rows.get(at)
            gone = row is None and event["op"] == "d"
            if at not in self._changed and (gone or (row is not None and row["_offset"] >= record.offset)):
                self._changed[at] = sent(event), event["schema"]

    def stale(self, event: dict[str, Any]) -> bool:
        """Whether an event changes nothing. To be asked of every event, in order, applied or not."""
        row = event.get("after") or event.get("before")
        if row is not None and is_incremental(event):
            time, schema = self._changed.get(self._at(row), (-1, None))
            return schema == event["schema"] and bool(envelope.stale(sent(event), time))
        if row is not None and event["op"] in "cud":
            self._changed[self._at(row)] = sent(event), event["schema"]
        return False

    def apply(self, record: Record, event: dict[str, Any], place: tuple[int, int]) -> None:
        if NOWHERE < place < self._floor:
            return
        if event["op"] == "t":
            self.raised(place)
            self._rows = {at: row for at, row in self._rows.items() if _written(row) > place}
        before, after = event.get("before"), event.get("after")
        if before is not None:
            self._rows.pop(self._at(before), None)
        if after is not None:
            meta = {"_kafka_partition": record.partition, "_offset": record.offset}
            self._rows[self._at(after)] = {**after, **meta, "_position": place[0], "_order": place[1]}

    def differs(self, expected: list[dict[str, Any]]) -> bool:
        if self._twice or len(expected) != len(self._rows):
            return True
        return any(
            (row := self._rows.get(self._at(want))) is None or difference(_strip(want), _strip(row)) is not None
            for want in expected
        )

    def report(self, check: Check, topic: str, expected: list[dict[str, Any]]) -> None:
        for row in self._twice:
            check.offend(
                coordinates(topic, row["_kafka_partition"], row["_offset"]), f"key {self._at(row)} is there twice"
            )
        left = dict(self._rows)
        for want in expected:
            at = self._at(want)
            if at not in left:
                check.offend(topic, f"key {at} is in the database, not in the table")
                continue
            row = left.pop(at)
            if (wrong := difference(_strip(want), _strip(row))) is not None:
                check.offend(coordinates(topic, row["_kafka_partition"], row["_offset"]), f"key {at}: {wrong}")
        for at, row in left.items():
            where = coordinates(topic, row["_kafka_partition"], row["_offset"])
            check.offend(where, f"key {at} is in the table, not in the database")


class Keyless:
    """Rows as a multiset. A change takes away a row that equals its row before; one that is not there is owed."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._floor = NOWHERE
        self._rows: dict[Frozen, list[tuple[int, int]]] = {}
        self._owed: Counter[Frozen] = Counter()
        for row in rows:
            self._rows.setdefault(_freeze(row), []).append(_written(row))

    def raised(self, floor: tuple[int, int]) -> Self:
        """As of rows with a key."""
        self._floor = max(self._floor, floor)
        return self

    def recall(self, changes: Iterable[tuple[Record, dict[str, Any]]]) -> None:
        """There is no key to tell changes of a row by."""

    def stale(self, event: dict[str, Any]) -> bool:
        """Every row that was read is one more."""
        return False

    def fill(self, values: dict[str, Any]) -> None:
        """As of rows with a key; of owed ones too."""
        more = _freeze(values)
        self._rows = {tuple(sorted(row + more)): places for row, places in self._rows.items()}
        self._owed = Counter({tuple(sorted(row + more)): n for row, n in self._owed.items()})

    def apply(self, record: Record, event: dict[str, Any], place: tuple[int, int]) -> None:
        if NOWHERE < place < self._floor:
            return
        if event["op"] == "t":
            self.raised(place)
            self._rows = {row: [at for at in places if at > place] for row, places in self._rows.items()}
            self._owed.clear()
        before, after = event.get("before"), event.get("after")
        if before is not None:
            places = self._rows.get(_freeze(before))
            if places:
                places.pop()
            else:
                self._owed[_freeze(before)] += 1
        if after is not None:
            self._rows.setdefault(_freeze(after), []).append(place)

    def _unlike(self, expected: list[dict[str, Any]]) -> Counter[Frozen]:
        """How many more of a row the database has; fewer are below zero."""
        more = Counter(_freeze(row) for row in expected)
        more.subtract({row: len(places) for row, places in self._rows.items()})
        more.update(self._owed)
        return more

    def differs(self, expected: list[dict[str, Any]]) -> bool:
        return any(self._unlike(expected).values())

    def report(self, check: Check, topic: str, expected: list[dict[str, Any]]) -> None:
        for row, n in self._unlike(expected).items():
            if n > 0:
                check.offend(topic, f"{n} x in the database, not in the table: {row}")
            if n < 0:
                check.offend(topic, f"{-n} x in the table, not in the database: {row}")
