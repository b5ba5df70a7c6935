"""What a hop measures: a system that does the hop's work in a process of its own, and how its row is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.row import Row, next_event
from benchmarks.tree import Tree
from headrace.config import Settings
from headrace.errors import TransientError

PATIENCE = 1800.0
COMMIT_SECONDS = 10.0
# No system gets fewer events than this as its share: start-up would be all that is seen.
FEWEST = 20_000


@dataclass(frozen=True)
class Run:
    """One measurement: the topic that is read and the events in it, and a folder that lives as long as the run.

    `schema` is the Avro schema of the topic's values; `commit_seconds` is how often a system that can be told so
    commits; `number` is the run's own, for names that must not have been used before. With `stages`, a process of
    Headrace writes there where its time goes.
    """

    settings: Settings
    topic: str
    events: int
    partitions: int
    folder: Path
    schema: Mapping[str, Any]
    commit_seconds: float = COMMIT_SECONDS
    number: int = 0
    stages: Path | None = None


def nothing() -> None:
    """For systems that need no preparation."""


def no_environment(_: Run) -> dict[str, str | None]:
    return {}


@dataclass(frozen=True)
class System:
    """`prepare` installs what is missing and raises `HeadraceError` when that cannot be; `command` may write files into
    the run's folder. `done` says whether the last event is in the target, `check` whether all are there, once.
    `location` is the table's current Iceberg metadata, for those that write one. One of `share` events is enough to
    know what a slow system costs."""

    name: str
    command: Callable[[Run], list[str]]
    done: Callable[[Run], bool]
    check: Callable[[Run], bool]
    environment: Callable[[Run], dict[str, str | None]] = no_environment
    prepare: Callable[[], None] = nothing
    location: Callable[[Run], str | None] = lambda _: None
    share: int = 1
    note: str = ""

    def events(self, of: int) -> int:
        """How many of `of` events it is measured with."""
        return max(of // self.share, min(of, FEWEST))


def measure(hop: str, system: System, run: Run) -> Row:
    """One run from the start of the process to its last event in the target. Raises `TerminalError`."""
    with Tree(system.command(run), system.environment(run)) as tree:
        seconds = tree.wait(lambda: finished(system, run), PATIENCE)
        tree.end()
    return Row(
        hop,
        system.name,
        run.events,
        seconds,
        tree.cpu_seconds / run.events * 1e6,
        tree.peak_mb,
        system.check(run),
        note=system.note,
    )


def finished(system: System, run: Run) -> bool:
    """Whether the last event is there. Where that cannot be told now (a topic just made has no leader), not yet."""
    try:
        return system.done(run)
    except TransientError:
        return False


def with_next_event(long: Row, short: Row) -> Row:
    """The long run's row with what a short run adds to it."""
    return replace(
        long,
        next_cpu_us=next_event(long, short),
        short_events=short.events,
        rows_ok=long.rows_ok and short.rows_ok,
    )
