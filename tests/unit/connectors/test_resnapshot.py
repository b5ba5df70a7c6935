"""What a connector that began anew tells the partitions of its tables."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from connectors import resnapshot
from connectors.notices import Scan, Snapshot
from connectors.snapshots import Target
from headrace.config import Settings
from headrace.kafka import admin
from schemas import baseline

Partition = tuple[str, int]
READ, BROKEN_OFF = "shop.public.things", "shop.public.others"
TOPICS = {READ: 2, BROKEN_OFF: 1}
SNAPSHOT = Snapshot(
    "initial",
    "initial",
    "completed",
    started=50,
    updated=90,
    tables={
        "public.things": Scan(51, 60, rows=3),
        "public.others": Scan(61, 62),
        "public.empty": Scan(63, 64, rows=0),
    },
)


class Sent:
    """A producer that keeps what it is given."""

    def __init__(self) -> None:
        self.baselines: dict[Partition, int] = {}

    def produce(self, topic: str, *, key: bytes, value: bytes | None, partition: int, **_: Any) -> None:
        assert value is None
        self.baselines[topic, partition] = baseline.offset_of(key)

    def flush(self, _: float) -> int:
        return 0


class Registered:
    def register(self, *_: Any) -> int:
        return 7

    def close(self) -> None:
        pass


def stated(
    folder: Path, monkeypatch: pytest.MonkeyPatch, starts: dict[Partition, int], ends: dict[Partition, int] | None
) -> dict[Partition, int]:
    """Baselines of partitions that were at `starts` when the last attempt began, and at `ends` before the first."""
    sent = Sent()

    def offsets_at(_: Any, topics: Iterable[str], time: int) -> dict[Partition, int]:
        assert time == SNAPSHOT.started
        return {(topic, number): starts[topic, number] for topic in topics for number in range(TOPICS[topic])}

    monkeypatch.setattr(resnapshot, "Producer", lambda _: sent)
    monkeypatch.setattr(resnapshot, "Registry", lambda *_: Registered())
    monkeypatch.setattr(admin, "partitions", lambda _: TOPICS)
    monkeypatch.setattr(admin, "offsets_at", offsets_at)
    target = Target("shop", {"topic.prefix": "shop"})
    resnapshot.state_baselines(Settings(home=folder, content=[]), target, SNAPSHOT, ends)
    return sent.baselines


def test_only_a_table_that_was_read_to_its_end_has_baselines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of another would leave the tables for want of an event; one that was always empty has no topic."""
    starts = {(READ, 0): 4, (READ, 1): 5, (BROKEN_OFF, 0): 6}
    assert stated(tmp_path, monkeypatch, starts, None) == {(READ, 0): 4, (READ, 1): 5}


def test_a_baseline_is_before_neither_the_connectors_stop_nor_the_last_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, ends = {(READ, 0): 4, (READ, 1): 9}, {(READ, 0): 7, (READ, 1): 8}
    assert stated(tmp_path, monkeypatch, starts, ends) == {(READ, 0): 7, (READ, 1): 9}
