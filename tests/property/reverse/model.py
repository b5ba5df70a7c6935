"""A sync over servers made of lists, which may die at any call: what is durable stays, the process is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import orjson

from headrace.config import Settings
from sinks.reverse import intake, runner
from sinks.reverse.declaration import Sync
from sinks.reverse.fold import Change, Event
from sinks.reverse.runner import Runner
from sinks.reverse.sources import Read, Watermark
from sinks.reverse.state import Partition, State
from sinks.reverse.targets import Done, Failed, Outcome, Refused

UPSERTS = Sync.model_validate(
    {
        "name": "model",
        "target": "t",
        "type": "http",
        "mode": "mirror",
        "key": ["id"],
        "rate": 1e9,
        "batch_size": 2,
        "retries": 1,
        "http": {"path": "/{id}"},
        "sources": [
            {"topic": "a", "key": {"id": "id"}, "columns": {"x": "x"}, "required": True},
            {"topic": "b", "key": {"id": "id"}, "columns": {"y": "y"}},
        ],
    }
)
EVENTS = Sync.model_validate(
    UPSERTS.model_dump() | {"mode": "events", "sources": [UPSERTS.sources[0].model_dump() | {"required": False}]}
)


class Crash(BaseException):
    """SIGKILL."""


@dataclass
class Fuse:
    """Burns at the n-th call from now."""

    left: int = 1 << 60
    calls: int = 0

    def burn(self) -> None:
        self.calls += 1
        self.left -= 1
        if self.left < 0:
            raise Crash


@dataclass
class World:
    """Everything that survives a crash. `held` are the keys that the target refuses, `shaky` the calls that fail.

    Not all that crash are dead: what such a process was sending arrives after `wake_at` more changes.
    """

    sync: Sync
    logs: dict[Partition, list[Event | None]]
    chunk: int = 3
    log: list[tuple[str, bytes | None]] = field(default_factory=list)
    applied: dict[str, str] = field(default_factory=dict)
    rows: dict[str, Any] = field(default_factory=dict)
    history: dict[str, list[Any]] = field(default_factory=dict)
    held: frozenset[str] = frozenset()
    shaky: set[int] = field(default_factory=set)
    quarantined: list[int] = field(default_factory=list)
    asked: list[str | None] = field(default_factory=list)
    fuse: Fuse = field(default_factory=Fuse)
    ghosts: list[Change] = field(default_factory=list)
    wake_at: int = 0

    def append(self, source: int, partition: int, key: int, values: dict[str, Any] | None) -> None:
        topic = "ab"[source]
        log = self.logs[topic, partition]
        log.append(Event(source, (key,), values, f"{topic}-{partition}-{len(log)}", op="d" if values is None else "u"))


class FakeLog:
    def __init__(self, world: World) -> None:
        self.world = world

    async def open(self) -> State:
        state = State()
        for key, value in self.world.log:
            state.take(key, value)
        return state

    async def write(self, records: dict[str, Any]) -> None:
        self.world.fuse.burn()
        self.world.log += [(key, None if value is None else orjson.dumps(value)) for key, value in records.items()]
        self.world.fuse.burn()

    async def close(self) -> None: ...


@dataclass
class FakeChunk:
    topic: str
    partition: int
    start: int
    events: list[Event | None]

    @property
    def next_offset(self) -> int:
        return self.start + len(self.events)

    def __len__(self) -> int:
        return len(self.events)

    def slice(self, start: int, length: int) -> FakeChunk:
        return FakeChunk(self.topic, self.partition, self.start + start, self.events[start : start + length])


class FakeConsumer:
    def __init__(self, world: World) -> None:
        self.world = world
        self.at: dict[Partition, int] = {}

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def commit(self, offsets: Any) -> None: ...
    def assign(self, partitions: Any) -> None: ...

    def seek(self, partition: Any, offset: int) -> None:
        self.at[tuple(partition)] = offset

    async def position(self, partition: Any) -> int:
        return self.at[tuple(partition)]

    def highwater(self, partition: Any) -> int:
        return len(self.world.logs[tuple(partition)])

    async def getmany(self, timeout_ms: int) -> dict[Any, list[FakeChunk]]:
        await asyncio.sleep(0)
        out: dict[Any, list[FakeChunk]] = {}
        for partition, offset in self.at.items():
            some = self.world.logs[partition][offset : offset + self.world.chunk]
            if some:
                out[partition] = [FakeChunk(*partition, offset, some)]
                self.at[partition] += len(some)
        return out


class FakeReader:
    def __init__(self, *_: Any) -> None: ...

    def learn(self, ids: object) -> None: ...

    def read(self, chunk: FakeChunk, mark: Watermark) -> Read:
        mark.offset = max(mark.offset, chunk.next_offset)
        return Read([event for event in chunk.events if event is not None], {})


class FakeTarget:
    """As strict as an application can be: a key seen before has no effect at all, whatever comes with it."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def open(self) -> None: ...
    async def close(self) -> None: ...

    async def send(self, changes: Sequence[Change]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        failed: set[str] = set()
        for index, change in enumerate(changes):
            self.haunt()
            try:
                self.world.fuse.burn()
            except Crash:
                self.world.ghosts += changes[index:]
                raise
            if change.order in failed or self.world.fuse.calls in self.world.shaky:
                failed.add(change.order)
                outcomes.append(Failed("shaky", counts=self.world.fuse.calls % 2 == 0))
                continue
            outcomes.append(self.take(change))
            self.world.fuse.burn()
        return outcomes

    def haunt(self) -> None:
        self.world.wake_at -= 1
        if self.world.wake_at < 0:
            ghosts, self.world.ghosts = self.world.ghosts, []
            for ghost in ghosts:
                self.take(ghost)

    def take(self, change: Change) -> Outcome:
        world = self.world
        if change.order in world.held:
            return Refused("no")
        content = orjson.dumps([change.op, change.row]).decode()
        if change.id in world.applied:
            assert world.applied[change.id] == content, "one idempotency key for two contents"
            return Done()
        world.applied[change.id] = content
        world.history.setdefault(change.order, []).append((change.op, change.row))
        if change.op == "delete":
            world.rows.pop(change.order, None)
        else:
            world.rows[change.order] = change.row
        return Done()


class FakeQuarantine:
    def __init__(self, world: World) -> None:
        self.world = world

    async def send(self, refusals: Iterable[tuple[str, Any]]) -> None:
        self.world.fuse.burn()
        self.world.quarantined += sorted(refusal.number for _, refusal in refusals)

    async def close(self) -> None: ...


async def live(world: World, rounds: int = 100_000) -> None:
    """One life of the process: until everything is settled (or the fuse burns, which raises `Crash`)."""
    consumer = FakeConsumer(world)
    quiet = 0

    async def sleep(seconds: float) -> bool:
        nonlocal quiet
        if seconds == 0:
            at_end = all(consumer.at.get(p, -1) >= len(log) for p, log in world.logs.items())
            quiet = quiet + 1 if at_end and not world.asked else 0
        return quiet > 3

    async def requests() -> list[str | None]:
        asked, world.asked = world.asked, []
        return asked

    ends = {partition: len(log) for partition, log in world.logs.items()}
    fakes = SimpleNamespace(
        topic_ids=lambda _, topics: {topic: "1" for topic in topics},
        cluster_id=lambda _: "c",
        begin_offsets=lambda _, topics: {p: 0 for p in world.logs if p[0] in topics},
        end_offsets=lambda _, topics: {p: end for p, end in ends.items() if p[0] in topics},
        partitions=lambda _: {},
    )

    async def inline(call: Any, *arguments: Any) -> Any:
        return call(*arguments)

    with (
        mock.patch.object(intake, "admin", fakes),
        mock.patch.object(intake, "ColumnarConsumer", return_value=consumer),
        mock.patch.object(intake, "Reader", FakeReader),
        mock.patch.object(runner, "StateLog", return_value=FakeLog(world)),
        mock.patch.object(runner, "RefusalLog", return_value=FakeQuarantine(world)),
        mock.patch.object(asyncio, "to_thread", inline),
    ):
        registry: Any = SimpleNamespace(schema=None)
        sync = Runner(world.sync, Settings(), registry, (), FakeTarget(world), sleep, lambda _: None, requests)
        await sync.run()
