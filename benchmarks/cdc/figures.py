"""What a run finds, and the bars that it is held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

OURS = "headrace"


@dataclass(frozen=True)
class Merge:
    """Changes merged into a table of `rows` by one system: from the start of its process to its last change in the
    table. CPU of its whole process tree, microseconds a change, start-up included. `bytes_per_change`: files added to
    the table's folder. `start_*` is from the process's start until it takes changes. `load` is the snapshot's turn."""

    system: str
    rows: int
    changes: int = 0
    seconds: float = 0.0
    cpu_us: float = 0.0
    peak_mb: float = 0.0
    bytes_per_change: float | None = None
    rows_ok: bool = False
    start_seconds: float | None = None
    start_cpu_seconds: float | None = None
    index_seconds: float | None = None
    index_mb: float | None = None
    load: bool = False
    note: str = ""
    error: str = ""

    @property
    def per_core(self) -> float:
        """Changes for each second of CPU time."""
        return 1e6 / self.cpu_us if self.cpu_us else 0.0

    @property
    def per_second(self) -> float:
        return self.changes / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Read:
    """A table as DuckDB reads it: seconds of a count with a sum, and of a grouped aggregate (medians)."""

    system: str
    state: str
    count_seconds: float
    group_seconds: float
    data_files: int
    delete_files: int
    dead_rows: int
    mb: float


@dataclass(frozen=True)
class Phase:
    """Records of a database's topics on their way into the tables, and the CPU seconds of Connect and ours."""

    records: int = 0
    seconds: float = 0.0
    connect_cpu: float = 0.0
    our_cpu: float = 0.0

    def __sub__(self, other: Phase) -> Phase:
        return Phase(
            self.records - other.records,
            self.seconds - other.seconds,
            self.connect_cpu - other.connect_cpu,
            self.our_cpu - other.our_cpu,
        )

    def __add__(self, other: Phase) -> Phase:
        return Phase(
            self.records + other.records,
            self.seconds + other.seconds,
            self.connect_cpu + other.connect_cpu,
            self.our_cpu + other.our_cpu,
        )

    @property
    def rate(self) -> float:
        """Records a second."""
        return self.records / self.seconds if self.seconds else 0.0

    def micros(self, cpu_seconds: float) -> float:
        """CPU microseconds a record."""
        return cpu_seconds / self.records * 1e6 if self.records else 0.0

    @property
    def share(self) -> float:
        """Our CPU as a share of Connect's."""
        return self.our_cpu / self.connect_cpu if self.connect_cpu else float("inf")


@dataclass(frozen=True)
class Paced:
    """A steady stream at a share of Debezium's limit. `target` is the freshness that the sink was told, `p50` and `p99`
    what came of it: seconds from the source's commit until a reader finds the change in the current state."""

    target: float
    phase: Phase
    p50: float
    p99: float


@dataclass(frozen=True)
class Stream:
    """A database through Debezium into bronze and current state.

    `burst` is changes committed at once, so Debezium's own limit, with the sink of the first of `paced`.
    """

    workload: str
    snapshot: Phase = Phase()
    burst: Phase = Phase()
    paced: tuple[Paced, ...] = ()
    rows_ok: bool = False
    error: str = ""

    @property
    def cpu_share(self) -> float:
        """Our CPU while changes stream, as a share of Connect's, with the first freshness target."""
        return sum((paced.phase for paced in self.paced[:1]), self.burst).share


@dataclass
class Report:
    merges: list[Merge] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As plain data, without what was not measured."""
        return {
            name: [{k: v for k, v in row.items() if v not in (None, "")} for row in rows]
            for name, rows in asdict(self).items()
        }

    @property
    def right(self) -> bool:
        """Whether everything of ours was measured and has the right rows."""
        merges = all(row.rows_ok for row in self.merges if row.system == OURS)
        return merges and all(row.rows_ok for row in self.streams)


def merge_rate(report: Report) -> float | None:
    found = [m for m in report.merges if m.system == OURS and not m.load and m.rows_ok]
    return found[-1].per_core if found else None


def cpu_share(report: Report) -> float | None:
    found = [s.cpu_share for s in report.streams if s.rows_ok]
    return max(found) if found else None


@dataclass(frozen=True)
class Bar:
    """`most`: the figure must not be above the bar."""

    what: str
    bar: float
    unit: str
    found: Callable[[Report], float | None]
    most: bool = False

    def reached(self, report: Report) -> bool | None:
        """None when it was not measured."""
        value = self.found(report)
        if value is None:
            return None
        return value <= self.bar if self.most else value >= self.bar


# What the first bar is meant for: in a smaller table, with fewer changes, start-up is most of it.
ROWS, CHANGES = 10_000_000, 1_000_000
BARS = (
    Bar("backlog -> bronze and current state of the large table", 50_000, "changes/s a core", merge_rate),
    Bar("our CPU beside Connect's while Debezium streams (the worst workload)", 0.2, "of it", cpu_share, most=True),
)
