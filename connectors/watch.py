"""How connectors are: their tasks, the log kept for them, what they captured last, their snapshots.

Gathered from Connect, the source databases and Kafka. What one of them does not tell is missing and said in `problems`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlsplit

from connectors.connect import Connect, ConnectorStatus
from connectors.databases import SIGNAL_TABLE, open_source
from connectors.identity import NAMELESS, nameless
from connectors.lifecycle import source_offset
from connectors.limits import uncarried
from connectors.mysql import is_binlog
from connectors.notices import TOPIC, Notices, Scan, Snapshot
from connectors.source import LogState, Source
from connectors.workers import divided
from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.kafka import admin
from schemas.names import prefix_of
from schemas.registry import Registry

CHUNK_SIZE = "incremental.snapshot.chunk.size"
# Debezium's own.
DEFAULT_CHUNK_SIZE = "1024"
SHOW_FINISHED_SECONDS = 3600.0
# A look that is the only one, as that of `headrace connect status`, waits so long for what passes.
FIRST_SECONDS = 8.0
# Kafka tells of all groups at once, and there may be thousands.
WORKERS_SECONDS = 20.0
# Signals that ask for a part of a table begin so: how many rows that will be nobody knows.
PART = "headrace-part-"

T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """One table's part in a snapshot. `total` is the database's estimate, None where there is none; `seconds_left`
    follows from it. `rows` is exact once `state` is completed, and to a chunk before."""

    id: str
    kind: str
    table: str
    state: str
    rows: int
    total: int | None
    rows_per_second: float
    seconds_left: float | None
    updated: float


@dataclass(frozen=True)
class Capture:
    """One connector. Times are seconds since the epoch; `fault` says that changes are missing, `remedy` what to run,
    `flaw` that some will be and what mends it."""

    name: str
    state: str
    reason: str = ""
    tasks: int = 0
    fault: str = ""
    remedy: str = ""
    flaw: str = ""
    log: LogState | None = None
    heartbeat: float | None = None
    last_events: Mapping[str, float] = field(default_factory=dict)
    snapshots: tuple[Progress, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def last_event(self) -> float | None:
        return max(self.last_events.values(), default=None)

    @property
    def streamed(self) -> float | None:
        """The time of its newest event or heartbeat."""
        return max((at for at in (self.last_event, self.heartbeat) if at is not None), default=None)


class Watch:
    """Looks at connectors, again and again. Blocking; not thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # As of the last look, by name.
        self.configs: dict[str, dict[str, str]] = {}
        # Why Connect's workers are not one cluster; among the problems of each capture too.
        self.divided = ""
        self._divided_at = -WORKERS_SECONDS
        self._judged = False
        self.connect = Connect(settings.connect.url)
        self._registry = Registry(settings.registry.url, settings.state / "schemas")
        self.notices = Notices(settings.kafka, self._registry)

    def close(self) -> None:
        self.connect.close()
        self._registry.close()

    def look(self, names: Collection[str] | None = None) -> list[Capture]:
        """Every connector that Connect has (of `names`), by name. Raises `UnavailableError` when Connect is away."""
        self.configs = configs = self.connect.configs()
        statuses = [s for s in self.connect.statuses() if s.name in configs and (names is None or s.name in names)]
        problems: list[str] = []
        topics = _tried(lambda: admin.partitions(self._settings.kafka), problems) or {}
        if topics and time.monotonic() - self._divided_at >= WORKERS_SECONDS:
            workers = {urlsplit(self._settings.connect.url).netloc, *(t.worker for s in statuses for t in s.tasks)}
            patience = 0.0 if self._judged else FIRST_SECONDS
            found = _tried(lambda: divided(self._settings.kafka, workers, patience), problems)
            self._judged = True
            self.divided = self.divided if found is None else found
            self._divided_at = time.monotonic()
        if self.divided:
            problems.append(self.divided)
        return [self._capture(status, configs[status.name], topics, problems) for status in statuses]

    def _capture(
        self, status: ConnectorStatus, config: Mapping[str, str], topics: Collection[str], common: list[str]
    ) -> Capture:
        problems = list(common)
        prefix, source = config.get("topic.prefix", ""), open_source(self._settings, config)
        log = _tried(source.log, problems) if source else None
        fault = remedy = flaw = ""
        if source is not None and log is not None:
            # In this order: what Connect keeps is never behind what the database has been told.
            offset = _tried(lambda: source_offset(self.connect, status.name), problems)
            if offset is not None:
                # It may only have read what was written since: then the log reaches it when it is asked again.
                if source.missing(log, offset) and (again := _tried(source.log, problems)) is not None:
                    log, fault = again, source.missing(again, offset)
                    first = source.obstacle(log, offset)
                    remedy = "; then ".join(filter(None, (first, f"headrace connect resnapshot {status.name}")))
                log = source.behind(log, offset)
            wrong = {
                t: (NAMELESS, mend) for t, mend in (_tried(lambda: nameless(source, config), problems) or {}).items()
            }
            # A connector of a binary log stops at such a column, and to list them its server opens every table.
            if not is_binlog(config):
                wrong |= _tried(lambda: uncarried(source, config), problems) or {}
            for where, (what, mend) in wrong.items():
                flaw = f"{where}: {what}: {mend}; then headrace connect resnapshot {status.name}"
        heartbeat = f"{config.get('topic.heartbeat.prefix', '__debezium-heartbeat')}.{prefix}"
        signals = f"{prefix}.{config.get(SIGNAL_TABLE, '')}"
        prefixes = {one.get("topic.prefix", "") for one in self.configs.values()}
        tables = [t for t in topics if prefix_of(t, prefixes) == prefix]
        asked = [topic for topic in (*tables, heartbeat) if topic != signals]
        newest = _tried(lambda: admin.newest_timestamps(self._settings.kafka, asked), problems) or {}
        times = {topic: at / 1000 for topic, at in newest.items()}
        return Capture(
            status.name,
            status.state,
            status.reason,
            len(status.tasks),
            fault,
            remedy if fault else "",
            flaw,
            log,
            times.pop(heartbeat, None),
            {topic.removeprefix(f"{prefix}."): at for topic, at in sorted(times.items())},
            tuple(_tried(lambda: self._snapshots(config, source, topics), problems) or ()),
            tuple(problems),
        )

    def _snapshots(self, config: Mapping[str, str], source: Source | None, topics: Collection[str]) -> list[Progress]:
        topic = config.get(TOPIC, "")
        if topic not in topics:
            return []
        found, now = [], time.time()
        for snapshot in self.notices.snapshots(topic).values():
            if snapshot.over and now - snapshot.updated / 1000 > SHOW_FINISHED_SECONDS:
                continue
            for table, scan in snapshot.tables.items():
                estimate = None
                if source is not None and not snapshot.id.startswith(PART) and scan.rows is None:
                    estimate = source.estimated_rows(table)
                found.append(progress(snapshot, table, scan, self._rows(config, snapshot, table, scan), estimate, now))
        return found

    def _rows(self, config: Mapping[str, str], snapshot: Snapshot, table: str, scan: Scan) -> int:
        chunks = len(scan.chunks) * int(config.get(CHUNK_SIZE, DEFAULT_CHUNK_SIZE))
        if scan.rows is not None:
            # Debezium counts from its last start: chunks tell of what it had read before.
            return max(scan.rows, chunks) if len(scan.chunks) > 1 and scan.rows < chunks // 2 else scan.rows
        if snapshot.kind == "incremental":
            return chunks
        topic, kafka = f"{config['topic.prefix']}.{table}", self._settings.kafka
        if topic not in admin.partitions(kafka):
            return 0
        # Nothing else is written to the topic while an initial snapshot runs.
        begins = admin.offsets_at(kafka, [topic], snapshot.started)
        return sum(end - begins[place] for place, end in admin.end_offsets(kafka, [topic]).items())


def progress(snapshot: Snapshot, table: str, scan: Scan, rows: int, total: int | None, now: float) -> Progress:
    """What is known of a table's scan at time `now` (seconds). Pure."""
    state = "failed" if scan.failed else "completed" if scan.rows is not None else snapshot.state
    running = state == "running"
    # Chunks come one after the other: between two, nothing is known of the second.
    until = now if running and snapshot.kind == "initial" else scan.updated / 1000
    rate = rows / seconds if (seconds := until - scan.started / 1000) > 0 else 0.0
    left = max(0, total - rows) / rate if running and total is not None and rate > 0 else None
    return Progress(snapshot.id, snapshot.kind, table, state, rows, total, rate, left, scan.updated / 1000)


def _tried(ask: Callable[[], T], problems: list[str]) -> T | None:
    """The answer, or None and the reason among the problems."""
    try:
        return ask()
    except HeadraceError as e:
        if str(e) not in problems:
            problems.append(str(e))
        return None
