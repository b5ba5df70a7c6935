"""What may be put on a topic, and the one wrapper that makes it safe.

A `Processor` does the work on the chunks of one topic. A `Runner` makes a Faust agent of it that acknowledges a chunk
only after its effects are acknowledged, tries again in place while a server is away, and ends the process on an error
that trying again cannot help. Faust's own acknowledgement is not used: it lets a chunk pass whose agent has raised.
"""

from __future__ import annotations

import abc
import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from headrace import metrics
from headrace.errors import HeadraceError, TerminalError, TransientError, unforeseen
from headrace.kafka.columns import Chunk
from headrace.logs import get_logger
from streams.transport import ColumnarSchema, Delivery

log = get_logger("streams")

T = TypeVar("T")

# A server that is away this long ends the process; its supervisor starts it again.
RETRY_SECONDS = 600.0
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 5.0
LONGEST_PAUSE_NOT_YET = 0.5


class Committed(NamedTuple):
    """Where a processor's group stands in a partition, and the note that the processor gave with that offset."""

    offset: int
    note: str


class NotYet(TransientError):
    """Something awaited is not there yet; asked again soon, quietly. Whoever raises it bounds the wait."""


class FlowHaltedError(TerminalError):
    """This flow must not go on, others may: its processor is held until the process is restarted."""


class Processor(abc.ABC):
    """Work on the chunks of one source topic, partition by partition, each in offset order.

    All methods but `note` run in the worker's event loop: `process` with one chunk of a partition at a time,
    `assigned` of several partitions at once and never during `process`. Between `assigned` and `revoked` of a
    partition `process` sees every record from the offset that `assigned` gave on, once. An instance sees partitions
    come and go as the group is balanced; other instances have the other partitions.
    """

    name: str
    source: str
    at_once: int = 1
    """Partitions of which `process` may have a chunk in work at the same time."""

    @property
    def flow(self) -> str:
        """Label of this processor's metrics."""
        return f"agent:{self.name}"

    async def start(self) -> None:
        """Called once before anything is read."""
        return None

    async def stop(self) -> None:
        """Called once after the last chunk; also when `start` of another processor failed."""
        return None

    @abc.abstractmethod
    async def assigned(self, partition: int, committed: Committed | None) -> int | None:
        """Load what is needed for a partition and say at which offset to begin; None for the start of the log.

        `committed` is None when this processor has never finished a chunk up to a committed offset: the group may
        still have an offset, of other processors on the same topic. A `TransientError` is tried again.
        """

    def revoked(self, partition: int) -> None:
        """Forget a partition; another instance may have it by now."""
        return None

    def note(self, partition: int, offset: int) -> str:
        """A short text to keep with a commit up to `offset`; comes back in `assigned`. May be called in any thread."""
        return ""

    @abc.abstractmethod
    async def process(self, chunk: Chunk) -> None:
        """Do the work of one chunk (never empty) and return when all its effects are acknowledged by the broker.

        After a `TransientError` it is called again with the same chunk object, after a `FlowHaltedError` never again.
        Any other exception ends the process; the chunk is then read again by whoever takes over.
        """


class Retry:
    """Calls again what raised a `TransientError`, with growing pauses, until it works or `seconds` are over."""

    def __init__(self, seconds: float = RETRY_SECONDS) -> None:
        self.seconds = seconds
        self.waiting: dict[str, str] = {}

    async def __call__(self, where: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Raises `TerminalError` when the time is over; `waiting` shows what is being waited for meanwhile."""
        started = time.monotonic()
        pause = FIRST_PAUSE
        warned = started
        try:
            while True:
                try:
                    return await attempt()
                except TransientError as e:
                    now = time.monotonic()
                    if now - started > self.seconds:
                        raise TerminalError(f"gave up after {now - started:.0f} s: {e}", where=where) from e
                    quiet = isinstance(e, NotYet)
                    if not quiet:
                        self.waiting[where] = str(e)
                        if warned == started or now - warned > 30:
                            log.warning("will try again", **e.as_dict() | {"where": where})
                            warned = now
                    # Jitter: workers that lost the same server must not come back in step.
                    await asyncio.sleep(pause * random.uniform(0.5, 1))
                    pause = min(pause * 2, LONGEST_PAUSE_NOT_YET if quiet else LONGEST_PAUSE)
        finally:
            self.waiting.pop(where, None)


class Runner:
    """The wrapper: runs one processor as a Faust agent on the columnar transport."""

    def __init__(self, processor: Processor, retry: Retry) -> None:
        self.processor = processor
        self._retry = retry
        self._next: dict[int, int] = {}
        self.halted: str | None = None
        """Why the flow is held, for the health page."""
        self._failed = False
        self._working: dict[int, asyncio.Task[None]] = {}

    def attach(self, app: Any) -> None:
        """Declare the agent. A chunk is acknowledged when its effects are; an error ends the app with its reason."""

        async def agent(stream: Any) -> None:
            try:
                async for event in stream.noack().events():
                    partition = event.value.chunk.partition
                    while partition in self._working or len(self._working) >= self.processor.at_once:
                        await asyncio.wait(self._working.values(), return_when=asyncio.FIRST_COMPLETED)
                    if self.halted is not None or self._failed:
                        # Nothing may pass what has failed.
                        await asyncio.Event().wait()
                    if event.value.live:
                        self._working[partition] = task = asyncio.create_task(self._work(app, event))
                        task.add_done_callback(partial(self._worked, partition))
            finally:
                for task in self._working.values():
                    task.cancel()

        name = f"headrace.{self.processor.name}"
        channel = app.topic(self.processor.source, schema=ColumnarSchema())
        # Not by `app.agent`: that also looks for the file of every imported module, for others to discover the agent.
        app.agents[name] = app.conf.Agent(agent, name=name, app=app, channel=channel)

    def _worked(self, partition: int, _: asyncio.Task[None]) -> None:
        del self._working[partition]

    async def _work(self, app: Any, event: Any) -> None:
        delivery: Delivery = event.value
        try:
            await self._handle(delivery.chunk)
        except FlowHaltedError as e:
            self.halted = str(e)
            log.error("flow halted", **e.as_dict())
            # Nobody need wait for this chunk: it stays unacknowledged.
            delivery.live = False
        except Exception as e:
            self._failed = True
            await app.crash(terminal(e, self.processor, delivery.chunk))
        else:
            self._report(delivery.chunk)
            event.ack()

    async def _handle(self, chunk: Chunk) -> None:
        flow = (self.processor.flow, chunk.topic)
        # Several processors share a topic's reading, which begins where the first of them wants it.
        todo = chunk.slice(int(np.searchsorted(chunk.offsets, self._next[chunk.partition])))
        if len(todo):
            metrics.ROWS_IN.labels(*flow).inc(len(todo))
            metrics.BATCH_ROWS.labels(*flow).observe(len(todo))
            await self._retry(place(self.processor, todo), lambda: self.processor.process(todo))
        self._next[chunk.partition] = max(self._next[chunk.partition], chunk.next_offset)

    def _report(self, chunk: Chunk) -> None:
        flow = (self.processor.flow, chunk.topic)
        newest = int(chunk.timestamps[-1]) / 1000
        metrics.LAST_RECORD.labels(*flow).set(newest)
        metrics.FRESHNESS.labels(*flow).observe(max(0.0, time.time() - newest))

    @property
    def partitions(self) -> list[int]:
        return list(self._next)

    def measure(self, ends: Mapping[int, int]) -> None:
        """Show how many records are not processed, given where each partition ends."""
        behind = sum(max(0, end - self._next[partition]) for partition, end in ends.items() if partition in self._next)
        metrics.LAG.labels(self.processor.flow, self.processor.source).set(behind)

    async def assigned(self, partition: int, committed: Committed | None) -> int | None:
        """Where the processor begins. Waits until it is no longer at work on what was taken from it."""
        if self._working:
            await asyncio.wait(self._working.values())
        where = f"{self.processor.flow} {self.processor.source}-{partition}"
        start = await self._retry(where, lambda: self.processor.assigned(partition, committed))
        self._next[partition] = start or 0
        return start

    def forget(self, partition: int) -> None:
        """Drop a partition, and the chunk of it that is being worked on."""
        if partition in self._working:
            self._working[partition].cancel()
        if self._next.pop(partition, None) is not None:
            self.processor.revoked(partition)


def place(processor: Processor, chunk: Chunk) -> str:
    """Where an error happened: processor and coordinates."""
    span = f"@{chunk.offsets[0]}..{chunk.offsets[-1]}" if len(chunk) else ""
    return f"{processor.flow} {chunk.topic}-{chunk.partition}{span}"


def terminal(error: Exception, processor: Processor, chunk: Chunk) -> HeadraceError:
    """The error to end the process with. Of an unknown error only type and place are told: its text may hold data."""
    if isinstance(error, HeadraceError):
        error.where = error.where or place(processor, chunk)
        return error
    hint = "the chunk is not lost: it is read again when the worker starts"
    return unforeseen(error, where=place(processor, chunk), hint=hint)
