"""The process `sync`: every declared sync, each with its own consumer, state, target and pace.

A sync runs in one process at a time: whichever has its lock, which is the one partition of its replay topic in a
consumer group. A process that loses it stops sending before the next one starts; one that does not notice in time is
fenced by the sync's state. What goes wrong in a sync stops that sync alone, which is tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import orjson
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError
from prometheus_client import Gauge

from headrace.config import Settings
from headrace.errors import FencedError, HeadraceError, TransientError, unforeseen
from headrace.kafka.client import client_options
from headrace.kafka.errors import from_client
from headrace.logs import get_logger
from headrace.process import Lifecycle
from schemas.captured import Captured
from schemas.registry import Registry
from sinks.reverse.declaration import Sync, load_syncs
from sinks.reverse.pace import Backoff
from sinks.reverse.runner import Runner
from sinks.reverse.state import create_topics, replay_topic
from sinks.reverse.targets import make_target

UP = Gauge("headrace_sync_up", "1 while the sync works, 0 while something keeps it from it", ("sync",))

TERMINAL_SECONDS = 30.0
DRAIN_SECONDS = 30.0
SESSION_MS = 6_000
HEARTBEAT_MS = 1_500
FOREVER_MS = 2**31 - 1


class Lock(ConsumerRebalanceListener):
    """The right to run a sync, and the requests for replays that come with it."""

    def __init__(self, sync: str, settings: Settings) -> None:
        self._partition = TopicPartition(replay_topic(sync), 0)
        self._group = f"headrace-sync-{sync}-owner"
        self._settings = settings
        self._consumer: AIOKafkaConsumer | None = None
        self._unconfirmed: dict[TopicPartition, int] = {}
        self.held = asyncio.Event()
        self.lost = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()

    async def start(self) -> None:
        self._consumer = AIOKafkaConsumer(
            **client_options(self._settings.kafka),
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
            max_poll_interval_ms=FOREVER_MS,
        )
        await self._consumer.start()
        self._consumer.subscribe([self._partition.topic], listener=self)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        if self._partition in assigned:
            self.lost.clear()
            self.held.set()

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        if self._partition in revoked:
            self.held.clear()
            self.lost.set()
            try:
                await asyncio.wait_for(self.idle.wait(), DRAIN_SECONDS)
            except TimeoutError:
                get_logger("sync").warning("still sending while the lock goes: the state will be fenced")

    async def requests(self) -> list[str | None]:
        """Keys to try again, None for all; those given by the call before are confirmed as dealt with."""
        assert self._consumer is not None
        if self._unconfirmed:
            await self._consumer.commit(self._unconfirmed)
            self._unconfirmed = {}
        fetched = await self._consumer.getmany(timeout_ms=0)
        asked: list[str | None] = []
        for partition, records in fetched.items():
            asked += [parse_request(record.value) for record in records]
            self._unconfirmed[partition] = records[-1].offset + 1
        return asked

    async def stop(self) -> None:
        if self._consumer is not None:
            await self._consumer.stop()


def parse_request(value: bytes | None) -> str | None:
    """The key to try again, None for all. What is no request asks for nothing: the key of no row."""
    try:
        data = orjson.loads(value or b"")
        return None if data.get("all") else str(data["key"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""


def request(key: str | None) -> bytes:
    """What `parse_request` reads."""
    return orjson.dumps({"all": True} if key is None else {"key": key})


class Supervisor:
    """Keeps one sync running."""

    def __init__(
        self, sync: Sync, settings: Settings, registry: Registry, captured: Captured, lifecycle: Lifecycle
    ) -> None:
        self.sync = sync
        self._settings = settings
        self._registry = registry
        self._captured = captured
        self._lifecycle = lifecycle
        self._log = get_logger("sync").bind(sync=sync.name)
        self._problem: str | None = None
        lifecycle.checks[f"sync {sync.name}"] = lambda: self._problem

    def _note(self, problem: str | None) -> None:
        if problem != self._problem:
            if problem:
                self._log.warning("waiting", reason=problem)
            else:
                self._log.info("works")
        self._problem = problem
        UP.labels(self.sync.name).set(problem is None)

    async def run(self) -> None:
        """Until the process stops."""
        backoff = Backoff(0.5, 5.0)
        while not self._lifecycle.stopping.is_set():
            lock = Lock(self.sync.name, self._settings)
            try:
                await asyncio.to_thread(create_topics, self._settings.kafka, self.sync.name)
                await lock.start()
                await self._hold(lock, backoff)
            except (HeadraceError, KafkaError, OSError) as e:
                await self._rest(e if isinstance(e, HeadraceError) else from_client(e), backoff)
            except Exception as e:
                await self._rest(unforeseen(e), backoff)
            finally:
                await lock.stop()

    async def _rest(self, error: HeadraceError, backoff: Backoff) -> None:
        """What may pass is tried again soon; what needs somebody to mend it, now and then."""
        self._note(str(error))
        soon = isinstance(error, TransientError | FencedError)
        await self._lifecycle.sleep(backoff.next(0.0 if soon else TERMINAL_SECONDS))

    async def _hold(self, lock: Lock, backoff: Backoff) -> None:
        """Run the sync whenever this process has the lock."""
        stopping = self._lifecycle.stopping
        while not stopping.is_set():
            if not await self._wait(lock.held, stopping):
                return
            self._log.info("has the lock")
            halt = asyncio.Event()
            watch = asyncio.ensure_future(self._halt(halt, lock))
            lock.idle.clear()
            try:
                await self._run_once(lock, halt, backoff)
            finally:
                lock.idle.set()
                watch.cancel()

    async def _run_once(self, lock: Lock, halt: asyncio.Event, backoff: Backoff) -> None:
        async def sleep(seconds: float) -> bool:
            if seconds > 0 and not halt.is_set():
                try:
                    await asyncio.wait_for(halt.wait(), seconds)
                except TimeoutError:
                    return False
            return halt.is_set()

        def note(problem: str | None) -> None:
            self._note(problem)
            if problem is None:
                backoff.reset()

        target = make_target(self.sync, self._settings)
        runner = Runner(self.sync, self._settings, self._registry, self._captured, target, sleep, note, lock.requests)
        await runner.run()

    async def _halt(self, halt: asyncio.Event, lock: Lock) -> None:
        await self._wait(lock.lost, self._lifecycle.stopping)
        halt.set()

    @staticmethod
    async def _wait(wanted: asyncio.Event, stopping: asyncio.Event) -> bool:
        """True when the wanted thing happened, false when the process stops first."""
        waits = [asyncio.ensure_future(event.wait()) for event in (wanted, stopping)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return not stopping.is_set()


async def run(settings: Settings, lifecycle: Lifecycle) -> None:
    """The process `sync`. Raises `ContractError` for a malformed declaration or contract."""
    syncs = load_syncs(settings.content)
    if not syncs:
        get_logger("sync").warning("no syncs are declared: nothing to do")
    registry = Registry(settings.registry.url, settings.state / "schemas")
    captured = Captured.load(settings.content)
    supervisors = [Supervisor(sync, settings, registry, captured, lifecycle) for sync in syncs.values()]
    lifecycle.ready()
    await asyncio.gather(*(supervisor.run() for supervisor in supervisors), lifecycle.stopping.wait())
