"""One sync at work: read, fold, tell the target what is due, remember.

Numbered order of a round: 1 fold what was read, 2 write down the changes that are about to be sent (`planned`), 3 send
them, 4 write the rows as the target has them, and when all are settled the offsets. A process that dies between 2 and 4
leaves a target that may have any of the planned changes, or get them yet, when it was not dead but asleep. So the next
one first sends just these again, under the same idempotency keys, which settles them for good; then it folds at least
as far as they went before it sends anything new. No row goes back to what it was, whoever wakes up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Container, Iterable, Sequence
from contextlib import suppress
from typing import Any

from prometheus_client import Gauge

from headrace.config import Settings
from headrace.errors import IdentityError, UnavailableError
from headrace.kafka import Chunk
from headrace.metrics import LAST_RECORD, ROWS_OUT, ROWS_QUARANTINED
from schemas.registry import Registry
from sinks.reverse.declaration import Sync
from sinks.reverse.deliver import Delivery
from sinks.reverse.fold import Change, Refusal, Table, change_id, event_change
from sinks.reverse.intake import Intake
from sinks.reverse.pace import TokenBucket
from sinks.reverse.quarantine import RefusalLog
from sinks.reverse.state import (
    OFFSETS,
    PLANNED,
    REFUSED,
    ROW,
    Planned,
    Settled,
    State,
    StateLog,
    planned_to_json,
    row_to_json,
    settled_to_json,
)
from sinks.reverse.targets import Done, Refused, Target

ROWS = Gauge("headrace_sync_rows", "Rows that the target has, by the sync's own account", ("sync",))
REFUSALS = Gauge("headrace_sync_refused", "Changes that the target refused and that wait for a replay", ("sync",))

PIECE = 500
EVENT_SLICE = 500
SAVE_SECONDS = 5.0
MEASURE_SECONDS = 2.0
PARTITIONS_SECONDS = 30.0
CLOSE_SECONDS = 5.0


class Runner:
    """Runs one sync while it is this process's. `sleep` is true when it is to stop; `note` hears why nothing moves;
    `requests` gives the replays asked for since the last call (None asks for all)."""

    def __init__(
        self,
        sync: Sync,
        settings: Settings,
        registry: Registry,
        captured: Container[str],
        target: Target,
        sleep: Callable[[float], Awaitable[bool]],
        note: Callable[[str | None], None],
        requests: Callable[[], Awaitable[list[str | None]]],
    ) -> None:
        self.sync = sync
        self._flow = f"sync:{sync.name}"
        self._target = target
        self._sleep = sleep
        self._note = note
        self._requests = requests
        self._intake = Intake(sync, settings.kafka, registry, captured)
        self._log = StateLog(settings.kafka, sync.name)
        self._quarantine = RefusalLog(sync.name, sync.target, settings.kafka, registry)
        self._delivery = Delivery(sync, target, sleep, note, TokenBucket(sync.rate))
        self._table = Table(sync)
        self._settled = Settled()
        self._refused: dict[int, tuple[str, Refusal]] = {}
        self._unreported: list[tuple[str, Refusal]] = []
        self._saved = self._measured = self._watched = 0.0

    async def run(self) -> None:
        """Until it is to stop. Raises `FencedError` when another process has the sync, other `HeadraceError`s as its
        servers, its topics or its declaration give reason to."""
        try:
            planned = await self._restore()
            with suppress(UnavailableError):  # sending waits for it
                await self._target.open()
            await self._work(planned)
        finally:
            for closing in (self._intake, self._target, self._quarantine, self._log):
                with suppress(TimeoutError):
                    await asyncio.wait_for(closing.close(), CLOSE_SECONDS)

    # Where the last process left off.

    async def _restore(self) -> Planned:
        """Bring state and sources to where they were. What is to be sent again, and how far to fold before more is."""
        cluster, topics = await self._intake.identities()
        state = await self._log.open()
        settled = self._settled = state.settled or Settled()
        self._check_identity(settled, cluster, topics)
        if settled.key not in ([], list(self.sync.key)):
            state.rows.clear()
            state.planned = None
        changed = settled.declaration != self.sync.fingerprint
        again = self.sync.mode != "events" and (changed or not settled.marks)
        self._table.rows = state.rows
        if again:
            settled.marks = {}
            self._table.forget(ranked=changed)
        self._restore_refusals(state)
        settled.declaration, settled.key = self.sync.fingerprint, list(self.sync.key)
        settled.cluster, settled.topics = cluster, topics
        await self._intake.start(settled.marks)
        planned = state.planned or Planned({}, 0, [])
        goal = await self._intake.ends() if again else planned.offsets
        if planned.version <= settled.version:
            return Planned(goal if again else {}, settled.version, [])
        settled.version = planned.version
        return Planned(goal, planned.version, planned.changes)

    def _restore_refusals(self, state: State) -> None:
        self._refused = state.refused
        rows = ((key, row.refused) for key, row in self._table.rows.items() if row.refused is not None)
        known = [*rows, *self._refused.values()]
        self._settled.refusals = max([self._settled.refusals, *(refusal.number for _, refusal in known)])
        self._unreported = [pair for pair in known if pair[1].number > self._settled.quarantined]

    def _check_identity(self, settled: Settled, cluster: str, topics: dict[str, str]) -> None:
        hint = f"if that is meant: headrace sync reset {self.sync.name}"
        where = f"sync {self.sync.name}"
        if settled.cluster not in ("", cluster):
            raise IdentityError("its offsets belong to another Kafka cluster", where=where, hint=hint)
        for topic, number in topics.items():
            if settled.topics.get(topic, number) != number:
                raise IdentityError(f"topic {topic} was created anew", where=where, hint=hint)

    # At work.

    async def _work(self, planned: Planned) -> None:
        self._note(None)
        await self._report_refusals()
        if not await self._send(planned):
            return
        while not await self._intake.is_past(planned.offsets):
            if await self._sleep(0):
                return
            self._fold(await self._intake.fetch())
        if not await self._settle(set(self._table.rows)):
            return
        while not await self._sleep(0):
            dirty = await self._take_requests()
            chunks = await self._intake.fetch()
            if self.sync.mode == "events":
                complete = await self._send_events(chunks)
            else:
                complete = await self._settle(dirty | self._fold(chunks))
            if not complete:
                return
            await self._keep_house()

    def _fold(self, chunks: Iterable[Chunk]) -> set[str]:
        touched: set[str] = set()
        for chunk in chunks:
            touched |= self._table.apply(self._intake.read(chunk))
        return touched

    async def _settle(self, dirty: set[str]) -> bool:
        """Tell the target what is due of these rows; false when the process is to stop before all of it is settled."""
        version = max(self._settled.version + 1, int(time.time() * 1000))
        changes = [change for identity in sorted(dirty) if (change := self._table.due(identity, version))]
        offsets = {partition: mark.offset for partition, mark in self._intake.marks.items()}
        for start in range(0, len(changes), PIECE):
            planned = Planned(offsets, version, changes[start : start + PIECE])
            await self._log.write({PLANNED: planned_to_json(planned)})
            if not await self._send(planned):
                return False
        if changes:
            self._settled.version = version
        if dirty:
            await self._save_all(dirty - {change.order for change in changes})
        return True

    async def _send(self, planned: Planned) -> bool:
        """Send what is planned and remember what came of it; false when the process is to stop before."""
        outcomes = await self._delivery.run(planned.changes)
        for change, outcome in outcomes:
            if isinstance(outcome, Refused):
                self._table.refuse(change, self._refusal(change, outcome))
            else:
                self._table.done(change)
        self._count(outcomes)
        if outcomes:
            told = {change.order for change, _ in outcomes}
            untold = [change for change in planned.changes if change.order not in told]
            rest = planned_to_json(Planned(planned.offsets, planned.version, untold))
            await self._save(told, {PLANNED: rest})
            await self._report_refusals()
        return len(outcomes) == len(planned.changes)

    async def _save(self, identities: Iterable[str], records: dict[str, Any]) -> None:
        for identity in identities:
            gone = identity not in self._table.rows or self._table.drop_empty(identity)
            records[ROW + identity] = None if gone else row_to_json(self._table.rows[identity])
        await self._log.write(records)

    async def _save_all(self, identities: Iterable[str], records: dict[str, Any] | None = None) -> None:
        """These rows, and that everything before the marks is settled."""
        await self._save(identities, (records or {}) | {OFFSETS: settled_to_json(self._settled)})
        self._saved = time.monotonic()
        await self._intake.commit()

    async def _keep_house(self) -> None:
        now = time.monotonic()
        if now - self._saved > SAVE_SECONDS:
            await self._save_all(())
        if now - self._measured > MEASURE_SECONDS:
            self._measured = now
            self._intake.measure()
            rows = self._table.rows.values()
            ROWS.labels(self.sync.name).set(sum(row.sent is not None for row in rows))
            REFUSALS.labels(self.sync.name).set(sum(row.refused is not None for row in rows) + len(self._refused))
        if now - self._watched > PARTITIONS_SECONDS:
            self._watched = now
            await self._intake.watch_partitions()

    def _count(self, outcomes: Iterable[tuple[Change, Done | Refused]]) -> None:
        for change, outcome in outcomes:
            topic = change.at.rsplit("-", 2)[0]
            if isinstance(outcome, Done):
                ROWS_OUT.labels(self._flow, topic).inc()
                LAST_RECORD.labels(self._flow, topic).set(change.timestamp / 1000)
            else:
                ROWS_QUARANTINED.labels(self._flow, topic, "refused").inc()

    # What the target refuses.

    def _refusal(self, change: Change, outcome: Refused, attempts: int = 1) -> Refusal:
        # Above the clock, so that numbers go on growing even when the state was lost.
        number = self._settled.refusals = max(self._settled.refusals + 1, int(time.time() * 1000))
        said = (change.at, outcome.response, change.timestamp, attempts)
        refusal = Refusal(number, change.fingerprint, change.op, change.row, *said)
        self._unreported.append((change.order, refusal))
        return refusal

    async def _report_refusals(self) -> None:
        """Every refusal to the quarantine once: again after a crash, under the same number, which readers drop."""
        if self._unreported:
            await self._quarantine.send(self._unreported)
            self._settled.quarantined = max(refusal.number for _, refusal in self._unreported)
            self._unreported = []

    async def _take_requests(self) -> set[str]:
        """Rows to try again. Refused events are tried here."""
        wanted: set[str] = set()
        for asked in await self._requests():
            keys = set(self._table.rows) | set(map(str, self._refused)) if asked is None else {asked}
            for key in sorted(keys):
                row = self._table.rows.get(key)
                if row is not None and row.refused is not None:
                    row.refused = None
                    wanted.add(key)
                elif key.isdigit() and int(key) in self._refused:
                    await self._retry_event(int(key))
        return wanted

    async def _retry_event(self, number: int) -> None:
        order, refusal = self._refused[number]
        key = {name: refusal.row[name] for name in self.sync.key}
        name = change_id(self.sync.name, "replay", number)
        change = Change(name, "event", key, refusal.row, 0, order, None, refusal.at, refusal.timestamp)
        outcomes = await self._delivery.run([change])
        if outcomes:
            del self._refused[number]
            await self._settle_events(outcomes, refusal.attempts + 1, {f"{REFUSED}{number}": None})

    # A sync of events.

    async def _send_events(self, chunks: Iterable[Chunk]) -> bool:
        """Each record as one change, in order; false when the process is to stop before all of them are settled."""
        for chunk in chunks:
            for start in range(0, len(chunk), EVENT_SLICE):
                part = chunk.slice(start, min(EVENT_SLICE, len(chunk) - start))
                changes = [event_change(self.sync, event) for event in self._intake.read(part)]
                outcomes = await self._delivery.run(changes)
                if len(outcomes) < len(changes):
                    return False
                await self._settle_events(outcomes, 1, {})
        return True

    async def _settle_events(
        self, outcomes: Sequence[tuple[Change, Done | Refused]], attempts: int, records: dict[str, Any]
    ) -> None:
        for change, outcome in outcomes:
            if isinstance(outcome, Refused):
                refusal = self._refusal(change, outcome, attempts)
                self._refused[refusal.number] = (change.order, refusal)
                records[f"{REFUSED}{refusal.number}"] = {"order": change.order, "refusal": refusal.__dict__}
        self._count(outcomes)
        await self._save_all((), records)
        await self._report_refusals()
