"""Whatever happens to a sync, its target ends as the fold of its sources, and no idempotency key works twice.

Processes die at any call, or only seem to, and send what they had in hand when others have long gone on.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sinks.reverse.fold import key_text
from tests.property.reverse.model import EVENTS, UPSERTS, Crash, FakeTarget, World, live

KEYS = st.integers(0, 3)
VALUES = st.none() | st.integers(0, 2)
CHANGES = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), KEYS, VALUES), max_size=14)
LIVES = st.lists(st.tuples(st.integers(0, 25), CHANGES, st.integers(0, 12)), max_size=5)
RELAXED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def partition_of(key: int) -> int:
    return key % 2


def fold(world: World) -> dict[str, Any]:
    """The batch answer: last value of each source, joined."""
    last: list[dict[int, Any]] = [{}, {}]
    for (topic, _), log in world.logs.items():
        for event in log:
            assert event is not None
            last["ab".index(topic)][event.key[0]] = event.values
    return {
        key_text((key,)): {"id": key, "x": row["x"], "y": (last[1].get(key) or {}).get("y")}
        for key, row in last[0].items()
        if row is not None
    }


def append(world: World, changes: list[tuple[int, int, int, int | None]], serial: list[int]) -> None:
    for source, _, key, value in changes:
        serial[0] += 1
        if world.sync is EVENTS:
            source = 0
        column = "xy"[source]
        # Mostly unlike what was before, now and then the same again.
        content = None if value is None else {column: value if value < 2 else 10 + serial[0]}
        world.append(source, partition_of(key), key, content)


def survive(world: World, lives: list[tuple[int, Any]], serial: list[int]) -> None:
    """Lives that end in a crash after so many calls, more changes coming in before each; then one to the end."""
    for calls, changes, wake_at in lives:
        append(world, changes, serial)
        world.fuse.left, world.wake_at = calls, wake_at
        with suppress(Crash):
            asyncio.run(live(world))
    world.fuse.left = 1 << 60
    asyncio.run(live(world))
    world.wake_at = 0
    FakeTarget(world).haunt()


def fresh(sync: Any, chunk: int) -> World:
    topics = "ab" if sync is UPSERTS else "a"
    return World(sync, {(topic, p): [] for topic in topics for p in (0, 1)}, chunk)


@RELAXED
@given(LIVES, st.integers(1, 6), st.sets(st.integers(0, 200), max_size=20))
def test_the_target_becomes_the_fold(lives: list[Any], chunk: int, shaky: set[int]) -> None:
    world = fresh(UPSERTS, chunk)
    world.shaky = shaky
    survive(world, lives, [0])
    world.asked, world.shaky = [None], set()
    asyncio.run(live(world))
    assert world.rows == fold(world)


@RELAXED
@given(LIVES, st.integers(1, 6))
def test_no_row_goes_back_to_what_it_was(lives: list[Any], chunk: int) -> None:
    """Every value of a row differs from all before, so that its history tells the order."""
    world = fresh(UPSERTS, chunk)
    serial = [0]
    unlike = [
        (calls, [(0, p, key, None if v is None else 2) for _, p, key, v in changes], wake_at)
        for calls, changes, wake_at in lives
    ]
    survive(world, unlike, serial)
    assert world.rows == fold(world)
    for history in world.history.values():
        values = [row["x"] for op, row in history if op == "upsert"]
        assert values == sorted(values)
        assert len(set(values)) == len(values), "the same row under two idempotency keys"


@RELAXED
@given(LIVES, st.integers(1, 6), st.sets(KEYS, max_size=2))
def test_what_is_refused_is_quarantined_once_and_can_be_replayed(lives: list[Any], chunk: int, held: set[int]) -> None:
    world = fresh(UPSERTS, chunk)
    world.held = frozenset(key_text((key,)) for key in held)
    survive(world, lives, [0])
    expected = fold(world)
    assert {k: v for k, v in world.rows.items() if k not in world.held} == {
        k: v for k, v in expected.items() if k not in world.held
    }
    refused_rows = [key for key in world.held if key in expected]
    assert len(set(world.quarantined)) >= len(refused_rows)
    world.held, world.asked = frozenset(), [None]
    asyncio.run(live(world))
    assert world.rows == expected


@RELAXED
@given(LIVES, st.integers(1, 6), st.sets(KEYS, max_size=2))
def test_each_event_arrives_once_in_order(lives: list[Any], chunk: int, held: set[int]) -> None:
    world = fresh(EVENTS, chunk)
    world.held = frozenset(key_text((key,)) for key in held)
    survive(world, lives, [0])
    world.held, world.asked = frozenset(), [None]
    asyncio.run(live(world))
    sent = {f"{r['_topic']}-{r['_partition']}-{r['_offset']}" for h in world.history.values() for _, r in h}
    count = sum(len(history) for history in world.history.values())
    assert sent == {event.at for log in world.logs.values() for event in log if event}
    assert count == len(sent)
    for key, history in world.history.items():
        offsets = [row["_offset"] for _, row in history]
        assert key in {key_text((k,)) for k in held} or offsets == sorted(offsets)
