"""Snapshots of tables on demand, while changes stream: Debezium's incremental snapshots, asked for by signal.

A signal is a row of the signalling table, so it has its place in the database's log: it is neither lost nor taken up
twice over a crash of Connect, and it needs no client of Kafka's inside Connect. The same table carries Debezium's
watermarks, by which a row that was read gives way to a change that came meanwhile.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from connectors.databases import SIGNAL_TABLE, need_source, open_source
from connectors.lifecycle import source_offset
from connectors.mysql import is_binlog
from connectors.notices import TOPIC, Snapshot
from connectors.watch import PART, Progress, Watch
from headrace.config import Settings
from headrace.errors import ConfigError, TerminalError, UnavailableError
from headrace.kafka import admin

WHOLE = "headrace-all-"
POLL_SECONDS = 1.0
TAKEN_UP_SECONDS = 60.0
# Connect keeps a connector's place every few seconds; a snapshot that is in it will go on.
LOST_SECONDS = 60.0
# What Debezium says of a table of which it has met no change and which was not there at its start.
UNKNOWN = "UNKNOWN_SCHEMA"
# What it says of a table that the database would not let it read, or whose columns changed between two chunks.
REFUSED = "SQL_EXCEPTION"
NEEDS = "see docs/operations.md, Snapshots on demand"

Show = Callable[[list[Progress]], None]


@dataclass(frozen=True)
class Target:
    """A connector of Connect's and its configuration there."""

    name: str
    config: Mapping[str, str]

    @property
    def prefix(self) -> str:
        return self.config.get("topic.prefix", "")

    @property
    def notices(self) -> str:
        """The topic of its notifications. Raises `ConfigError` when it writes none."""
        return self._need(TOPIC)

    @property
    def signals(self) -> str:
        return self._need(SIGNAL_TABLE)

    @property
    def learn(self) -> str:
        """How Debezium gets to know a table that it is told to capture while it runs."""
        if is_binlog(self.config):
            return "see docs/mariadb.md, Capture another table"
        return f"headrace connect restart {self.name} --all, then ask again"

    def _need(self, setting: str) -> str:
        value = self.config.get(setting, "")
        if not value:
            raise ConfigError(f"its connector file lacks {setting}", where=f"connector {self.name}", hint=NEEDS)
        return value


def find(watch: Watch, settings: Settings, table: str, name: str = "") -> Target:
    """The connector that captures a table (`schema.table`), or the one of this name. Raises `ConfigError`."""
    configs = watch.connect.configs()
    if name:
        if name not in configs:
            raise ConfigError("no such connector", where=name, hint="headrace connect status")
        return Target(name, configs[name])
    topics = admin.partitions(settings.kafka)
    found = [one for one, config in configs.items() if f"{config.get('topic.prefix')}.{table}" in topics]
    if len(found) != 1:
        what = "captured by no connector" if not found else f"captured by {', '.join(found)}"
        raise ConfigError(what, where=table, hint="write SCHEMA.TABLE; --connector NAME says which")
    return Target(found[0], configs[found[0]])


def execute(watch: Watch, settings: Settings, target: Target, table: str, where: str = "") -> str:
    """Ask for a snapshot of a table, or of its rows for which `where` (SQL) holds; returns the signal's id.

    Raises `ConfigError` when the connector is not set up for it, `TerminalError` when it does not run or another such
    snapshot is under way.
    """
    state = watch.connect.status(target.name)
    if not state.running:
        raise TerminalError(
            f"is {state.state}: {state.reason}", where=f"connector {target.name}", hint="headrace connect status"
        )
    if busy := _under_way(watch, target):
        tables = ", ".join(busy.tables)
        raise TerminalError(
            f"a snapshot of {tables} is {busy.state}", where=f"connector {target.name}", hint="--stop ends it"
        )
    number = f"{PART if where else WHOLE}{uuid.uuid4().hex[:12]}"
    pattern = re.escape(table)
    data: dict[str, object] = {"type": "INCREMENTAL", "data-collections": [pattern]}
    if where:
        data["additional-conditions"] = [{"data-collection": pattern, "filter": where}]
    need_source(settings, target.name, target.config).signal(target.signals, number, "execute-snapshot", data)
    return number


def steer(watch: Watch, settings: Settings, target: Target, what: str) -> str:
    """`pause`, `resume` or `stop` the snapshot under way, whose id is returned. Raises `TerminalError` for none."""
    busy = _under_way(watch, target)
    if busy is None:
        raise TerminalError("no snapshot is under way", where=f"connector {target.name}")
    source = need_source(settings, target.name, target.config)
    source.signal(
        target.signals, f"headrace-{what}-{uuid.uuid4().hex[:12]}", f"{what}-snapshot", {"type": "INCREMENTAL"}
    )
    return busy.id


def follow(watch: Watch, target: Target, number: str, show: Show) -> Snapshot:
    """Show the progress of a snapshot until it is over, and return it.

    Raises `UnavailableError` when Debezium does not take the signal up in time, `TerminalError` when the connector
    fails meanwhile (the snapshot goes on when it runs again) or a table could not be read.
    """
    deadline = time.monotonic() + TAKEN_UP_SECONDS
    while True:
        found = watch.notices.snapshots(target.notices).get(number)
        if found is None and time.monotonic() > deadline:
            raise UnavailableError(
                "Debezium has not taken the signal up", where=f"connector {target.name}", hint="headrace logs connect"
            )
        capture = watch.look({target.name})[0]
        show([part for part in capture.snapshots if part.id == number])
        if found is not None and found.over:
            if failed := {table: scan.failed for table, scan in found.tables.items() if scan.failed}:
                said = "; ".join(f"{table}: {why}" for table, why in failed.items())
                raise TerminalError(said, where=f"connector {target.name}", hint=_way_out(target, failed.values()))
            return found
        if capture.fault or capture.state == "FAILED":
            raise TerminalError(
                capture.fault or capture.reason, where=f"connector {target.name}", hint="headrace connect status"
            )
        time.sleep(POLL_SECONDS)


def _way_out(target: Target, failures: Collection[str]) -> str:
    if UNKNOWN in failures:
        return target.learn
    if REFUSED in failures:
        return "ask again if the table was altered meanwhile; else headrace logs connect"
    return "headrace logs connect"


def lost(snapshot: Snapshot, offset: Mapping[str, object], now: float, patience: float) -> bool:
    """Whether Debezium has dropped a snapshot without a word that arrived: nothing was heard of it for `patience`
    seconds, and nothing is in the place that Connect keeps of the connector, which runs. `now` in seconds. Pure.

    Debezium 3.6 skips the table when the database goes away between two chunks, and goes on as if it were read; what
    it says of that is lost when its task fails in the same outage.
    """
    return _silent(snapshot, now, patience) and not _kept(offset)


def stuck(
    snapshot: Snapshot, offset: Mapping[str, object], streamed: float | None, now: float, patience: float
) -> bool:
    """Whether Debezium reads no further, though the connector has streamed for `patience` seconds since it said
    anything of the snapshot (its newest event or heartbeat is of the time `streamed`). Times in seconds. Pure.

    Debezium waits for ever (that for MariaDB always, that for PostgreSQL at times) where a chunk could not be read, as
    of a table that was altered meanwhile; it goes on with that chunk when its task is restarted. A connector that is
    far behind in the log looks the same: its next chunk comes once it has read what itself wrote.
    """
    moves = streamed is not None and streamed - snapshot.updated / 1000 > patience
    return _silent(snapshot, now, patience) and _kept(offset) and moves


def _silent(snapshot: Snapshot, now: float, patience: float) -> bool:
    running = snapshot.kind == "incremental" and snapshot.state == "running"
    return running and now - snapshot.updated / 1000 > patience


def _kept(offset: Mapping[str, object]) -> bool:
    """Whether there is an incremental snapshot in the place that Connect keeps of a connector."""
    return any(name.startswith("incremental_snapshot") and value for name, value in offset.items())


def ask_again(settings: Settings, target: Target, number: str) -> bool:
    """Signal a snapshot once more, under its own id; it reads its tables from the start.

    False when its signal is not there any more, as another took its place, or the database is not known here: then
    somebody has to ask.
    """
    source = open_source(settings, target.config)
    data = source.signalled(target.signals, number) if source else None
    if source is None or data is None:
        return False
    source.signal(target.signals, number, "execute-snapshot", data)
    return True


def _under_way(watch: Watch, target: Target) -> Snapshot | None:
    """The snapshot that nobody may start another beside; not one that Debezium has dropped."""
    offset, now = source_offset(watch.connect, target.name), time.time()
    found = watch.notices.snapshots(target.notices).values()
    running = (s for s in found if s.kind == "incremental" and not s.over)
    return next((s for s in running if not lost(s, offset, now, LOST_SECONDS)), None)
