"""The process `connectors`: watches Connect and the source databases, and restarts what has failed.

It supervises the connectors that the content folders have files of; a Connect cluster may run others. Nothing depends
on it: without it connectors run as they do, and `headrace connect status` looks for itself.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter as Counts
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from prometheus_client import Counter, Gauge
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from connectors.connect import WORST_FIRST, connector_files, load_connector
from connectors.lifecycle import begin_anew, resume, source_offset
from connectors.mysql import is_binlog
from connectors.notices import TOPIC, Snapshot
from connectors.resnapshot import state_baselines
from connectors.restarts import MOST, History, decide
from connectors.snapshots import LOST_SECONDS, Target, ask_again, lost, stuck
from connectors.source import LogState
from connectors.watch import Capture, Watch
from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.logs import get_logger
from headrace.process import Lifecycle

LOOK_SECONDS = 2.0
ASK_AGAIN_SECONDS = 300.0
BY = ("connector",)

STATE = Gauge("headrace_cdc_connector_state", "1 for the worst state of a connector and its tasks", (*BY, "state"))
MISSING = Gauge("headrace_cdc_changes_missing", "1 when the source's log has lost changes that were not read", BY)
LAG = Gauge("headrace_cdc_log_lag_bytes", "Log written and not acknowledged by the connector", BY)
KEPT = Gauge("headrace_cdc_log_kept_bytes", "Log that the database keeps for the connector", BY)
SAFE = Gauge("headrace_cdc_log_safe_bytes", "Log that may be written before the database gives the connector up", BY)
EVENT = Gauge("headrace_cdc_last_event_timestamp_seconds", "Time of the newest event of a table", (*BY, "table"))
HEARTBEAT = Gauge("headrace_cdc_heartbeat_timestamp_seconds", "Time of the newest heartbeat", BY)
RESTARTS = Counter("headrace_cdc_restarts", "Restarts of failed connectors", BY)
GIVEN_UP = Gauge("headrace_cdc_restarts_given_up", "1 when a failed connector is not restarted any more", BY)
SNAPSHOT_ROWS = Gauge("headrace_cdc_snapshot_rows", "Rows read by the snapshot that is under way", (*BY, "table"))
PER_CONNECTOR = (MISSING, LAG, KEPT, SAFE, HEARTBEAT, GIVEN_UP)
PER_TABLE = (STATE, EVENT, SNAPSHOT_ROWS)

log = get_logger("connectors")


@dataclass
class Supervisor:
    """Looks, restarts, remembers. `clock` and `chance` are those of `decide`."""

    settings: Settings
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random
    captures: list[Capture] = field(default_factory=list)
    histories: dict[str, History] = field(default_factory=dict)
    patience: float = LOST_SECONDS
    problem: str | None = "has not looked yet"
    _told: dict[str, str] = field(default_factory=dict)
    _completed: dict[str, int] = field(default_factory=dict)
    _asked: dict[str, float] = field(default_factory=dict)
    # How often it was restarted for a snapshot that had come so far.
    _woken: Counts[tuple[str, int]] = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self.watch = Watch(self.settings)
        self.names: set[str] = set()
        self._read_files()

    def _read_files(self) -> None:
        """Files that have come are found; what one said counts until the process ends, as the connector may run on."""
        self.names |= {load_connector(path).name for path in connector_files(self.settings.content)}

    def step(self) -> None:
        """One look, and the restarts that are due. Blocks.

        Raises `UnavailableError` when Connect is away and, once all connectors have been seen to, what kept it from
        helping the first of them, and what `load_connector` says of a file that is wrong.
        """
        try:
            self._read_files()
        finally:
            self._look()

    def _look(self) -> None:
        self.captures = self.watch.look(self.names)
        failed: list[HeadraceError] = []
        for capture in self.captures:
            try:
                self._attend(capture)
            except HeadraceError as e:
                # The others are seen to all the same.
                failed.append(e)
        if failed:
            raise failed[0]

    def _attend(self, capture: Capture) -> None:
        history = self.histories.get(capture.name, History())
        action, after = decide(capture.state, bool(capture.fault), history, self.clock(), self.chance())
        # Before it is tried: a restart that fails counts too, or there would be no end to them.
        self.histories[capture.name] = after
        self._tell(capture, after)
        measure(capture, after)
        self._go_on(capture.name)
        if action == "restart":
            self._restart(capture.name)
            RESTARTS.labels(capture.name).inc()
            log.warning("restarted", connector=capture.name, attempt=after.restarts, reason=capture.reason)
        self._complete(capture.name)
        self._see_on(capture, after)

    def _restart(self, name: str) -> None:
        """Debezium for MariaDB tells that a snapshot begins together with a place in no file of the log, and refuses to
        start where Connect has kept that one: it has read nothing yet, so it begins without a place."""
        if self._placeless(name):
            begin_anew(self.watch.connect, name, self._mark(name))
        else:
            self.watch.connect.restart(name)

    def _placeless(self, name: str) -> bool:
        return is_binlog(self.watch.configs[name]) and "file" not in source_offset(self.watch.connect, name)

    def _mark(self, name: str) -> Path:
        return self.settings.state / "connectors" / f"{quote(name, safe='')}.anew"

    def _go_on(self, name: str) -> None:
        """A connector that a process before this one has stopped, to begin anew, would stay so."""
        mark = self._mark(name)
        if mark.exists():
            if self._placeless(name):
                begin_anew(self.watch.connect, name, mark)
            else:
                resume(self.watch.connect, name)
                mark.unlink()

    def _complete(self, name: str) -> None:
        """After an initial snapshot that Connect repeated, say where it began: a crash may have come between it and
        the one before, and what was deleted meanwhile has no event."""
        target = Target(name, self.watch.configs[name])
        if not target.config.get(TOPIC):
            return
        found = self.watch.notices.known(target.notices).get("initial")
        if found is not None and found.repeated and found.state == "completed":
            if self._completed.get(name) != found.started:
                state_baselines(self.settings, target, found)
                log.info("repeated snapshot is complete", connector=name, tables=len(found.tables))
            self._completed[name] = found.started

    def _see_on(self, capture: Capture, history: History) -> None:
        """See to snapshots that go on no more, once the connector has run for a while."""
        target, now = Target(capture.name, self.watch.configs[capture.name]), self.clock()
        if history.running_since is None or now - history.running_since < self.patience or not target.config.get(TOPIC):
            return
        for snapshot in self.watch.notices.known(target.notices).values():
            if snapshot.over:
                continue
            offset, so_far = source_offset(self.watch.connect, target.name), (snapshot.id, snapshot.updated)
            asked = now - self._asked.get(snapshot.id, -ASK_AGAIN_SECONDS) < ASK_AGAIN_SECONDS
            if not asked and lost(snapshot, offset, time.time(), self.patience):
                self._ask_again(target, snapshot)
                self._asked[snapshot.id] = now
            # Each time after twice as long, for it may be slow and nothing else.
            if stuck(snapshot, offset, capture.streamed, time.time(), self.patience * 2 ** self._woken[so_far]):
                self._woken[so_far] += 1
                self.watch.connect.restart(target.name, only_failed=False)
                log.warning("restarted: its snapshot does not go on", connector=target.name, id=snapshot.id)

    def _ask_again(self, target: Target, snapshot: Snapshot) -> None:
        if ask_again(self.settings, target, snapshot.id):
            log.warning("asked again for a snapshot that Debezium has dropped", connector=target.name, id=snapshot.id)
        else:
            reason = f"Debezium has dropped snapshot {snapshot.id}: headrace connect snapshot asks for it again"
            log.error("needs somebody", connector=target.name, reason=reason)

    def _tell(self, capture: Capture, history: History) -> None:
        """A line in the log for what somebody has to mend, once."""
        trouble = trouble_of(capture, history.given_up)
        if trouble != self._told.get(capture.name, ""):
            if trouble:
                log.error("needs somebody", connector=capture.name, reason=trouble)
            else:
                log.info("is well again", connector=capture.name)
            self._told[capture.name] = trouble

    def report(self) -> list[dict[str, Any]]:
        """Every connector as it was seen last, with its restarts."""
        histories = self.histories
        return [
            asdict(c)
            | {
                "last_event": c.last_event,
                "restarts": histories.get(c.name, History()).restarts,
                "given_up": histories.get(c.name, History()).given_up,
            }
            for c in self.captures
        ]

    def check(self) -> str | None:
        return self.problem


def trouble_of(capture: Capture, given_up: bool) -> str:
    """Why a person is needed, in one line; empty when none is."""
    if capture.fault:
        return f"{capture.fault}: {capture.remedy}"
    if given_up:
        return f"failed again after {MOST} restarts: {capture.reason}; mend it, then headrace connect restart"
    return capture.flaw


def measure(capture: Capture, history: History) -> None:
    """Set the metrics of one connector; what is not known has none."""
    name, kept = capture.name, capture.log or LogState()
    values = {
        MISSING: float(bool(capture.fault)),
        LAG: kept.lag_bytes,
        KEPT: kept.kept_bytes,
        SAFE: kept.safe_bytes,
        HEARTBEAT: capture.heartbeat,
        GIVEN_UP: float(history.given_up),
    }
    for gauge, value in values.items():
        if value is None:
            gauge.remove(name)
        else:
            gauge.labels(name).set(value)
    for state in WORST_FIRST:
        STATE.labels(name, state).set(float(state == capture.state))
    for table, at in capture.last_events.items():
        EVENT.labels(name, table).set(at)
    SNAPSHOT_ROWS.remove_by_labels({"connector": name})
    for part in capture.snapshots:
        if part.state in ("running", "paused"):
            SNAPSHOT_ROWS.labels(name, part.table).set(part.rows)


def service(settings: Settings) -> tuple[Starlette, Callable[[Lifecycle], Awaitable[None]]]:
    """The process's pages (`/connectors`: what it sees, as JSON) and its body."""
    supervisor = Supervisor(settings)

    async def connectors(_: Request) -> JSONResponse:
        return JSONResponse(supervisor.report())

    async def body(lifecycle: Lifecycle) -> None:
        lifecycle.checks["connect"] = supervisor.check
        lifecycle.ready()
        try:
            while not lifecycle.stopping.is_set():
                try:
                    await asyncio.to_thread(supervisor.step)
                    if (divided := supervisor.watch.divided) and supervisor.problem != divided:
                        log.error("needs somebody", reason=divided)
                    supervisor.problem = divided or None
                except HeadraceError as e:
                    # Whatever it is, it is shown, and looked at again: connectors run without this process.
                    if supervisor.problem != str(e):
                        log.warning("cannot look", **e.as_dict())
                    supervisor.problem = str(e)
                await lifecycle.sleep(LOOK_SECONDS)
        finally:
            supervisor.watch.close()

    return Starlette(routes=[Route("/connectors", connectors)]), body
