"""One measured line: what moved through which hop by which system, and what it cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """Times in seconds, CPU in microseconds of user and system time of the whole process tree, start-up included.

    `next_cpu_us` is the cost of one more event: a long run less a short one, so start-up is taken out. `freshness_*`
    are seconds from an event's production until a reader finds it in the table. `stages_ns` says where a hop's
    nanoseconds go. A row with an `error` has no figures: that system could not be measured, and the error says why.
    """

    hop: str
    system: str
    events: int = 0
    seconds: float = 0.0
    cpu_us_per_event: float = 0.0
    peak_rss_mb: float = 0.0
    rows_ok: bool = False
    next_cpu_us: float | None = None
    short_events: int | None = None
    freshness_p50: float | None = None
    freshness_p99: float | None = None
    stages_ns: dict[str, float] = field(default_factory=dict)
    note: str = ""
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As plain data, without what was not measured."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "", {})}

    @property
    def per_core(self) -> float:
        """Events for each second of CPU time."""
        return 1e6 / self.cpu_us_per_event if self.cpu_us_per_event else 0.0

    @property
    def per_second(self) -> float:
        """Events for each second of wall time."""
        return self.events / self.seconds if self.seconds else 0.0


def next_event(long: Row, short: Row) -> float | None:
    """CPU microseconds of one more event; None where the runs are too alike, or too noisy, to tell."""
    events = long.events - short.events
    cpu = long.cpu_us_per_event * long.events - short.cpu_us_per_event * short.events
    return cpu / events if events > 0 and cpu > 0 else None
