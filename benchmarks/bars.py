"""What each hop must reach (the bar) and is meant to reach (the goal), and what a run has found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.row import Row

OURS = "headrace"
STOCK_FAUST = "stock Faust"
MILLION = 1e6
# What the bars are meant for: with fewer events start-up is most of it.
EVENTS = 10_000_000
SINKS = ("append", "changelog", "current")
Rows = Sequence[Row]


@dataclass(frozen=True)
class Bar:
    """`found` reads the figure out of a run's rows; None when it was not measured. `least` is False for figures that
    must not be above the bar."""

    what: str
    bar: float
    goal: float
    unit: str
    found: Callable[[Rows], float | None]
    least: bool = True

    def verdict(self, rows: Rows) -> str:
        """`goal`, `bar`, `below` or `not measured`."""
        value = self.found(rows)
        if value is None:
            return "not measured"
        for name, limit in (("goal", self.goal), ("bar", self.bar)):
            if value >= limit if self.least else value <= limit:
                return name
        return "below"


def row(rows: Rows, hop: str, system: str = OURS) -> Row | None:
    return next((r for r in rows if r.hop == hop and r.system == system and not r.error), None)


def peers(rows: Rows, hop: str) -> list[Row]:
    return [r for r in rows if r.hop == hop and r.system != OURS and not r.error and r.rows_ok]


def rate(hop: str) -> Callable[[Rows], float | None]:
    """Million events for each second of CPU time."""

    def found(rows: Rows) -> float | None:
        ours = row(rows, hop)
        return ours.per_core / MILLION if ours else None

    return found


def against(system: str, hop: str) -> Callable[[Rows], float | None]:
    """How many times more an event costs there: one more event (its run is shorter) against ours with start-up."""

    def found(rows: Rows) -> float | None:
        ours, theirs = row(rows, hop), row(rows, hop, system)
        return theirs.next_cpu_us / ours.cpu_us_per_event if ours and theirs and theirs.next_cpu_us else None

    return found


def best_peer(rows: Rows) -> float | None:
    ours, theirs = row(rows, "append"), [r.cpu_us_per_event for r in peers(rows, "append")]
    return min(theirs) / ours.cpu_us_per_event if ours and theirs else None


def best_peer_next(rows: Rows) -> float | None:
    ours, theirs = row(rows, "append"), [r.next_cpu_us for r in peers(rows, "append") if r.next_cpu_us]
    return min(theirs) / ours.next_cpu_us if ours and ours.next_cpu_us and theirs else None


def sink_memory(rows: Rows) -> float | None:
    """Of the hop whose sink takes most."""
    ours = [found.peak_rss_mb for hop in SINKS if (found := row(rows, hop))]
    return max(ours) if ours else None


def slowest_fresh(rows: Rows) -> float | None:
    ours = row(rows, "freshness")
    return ours.freshness_p99 if ours else None


def warm_start(rows: Rows) -> float | None:
    ours = row(rows, "start")
    return ours.seconds if ours else None


RATE = "M ev/s a core"
BARS = (
    Bar("Kafka -> Arrow, decoded: IoT", 2.5, 4.0, RATE, rate("decode")),
    Bar("Kafka -> Iceberg, committed: IoT", 1.2, 1.8, RATE, rate("append")),
    Bar("Kafka -> Iceberg changelog, committed: Debezium envelopes", 0.5, 0.8, RATE, rate("changelog")),
    Bar("Kafka -> Faust, clean + enrich (100k devices) -> Kafka", 0.5, 1.0, RATE, rate("agent")),
    Bar(
        "the same, against stock Faust (its start-up left out, ours included)",
        150,
        400,
        "times cheaper",
        against(STOCK_FAUST, "agent"),
    ),
    Bar("Kafka -> Iceberg, against the best peer, start-up included", 5, 8, "times cheaper", best_peer),
    Bar("the same, one more event", 2.5, 4, "times cheaper", best_peer_next),
    Bar(
        "peak memory of a sink at full speed, of the hungriest hop",
        600,
        300,
        "MB",
        sink_memory,
        least=False,
    ),
    Bar("produced -> queryable in Iceberg at 20k ev/s, p99", 3.0, 1.5, "s", slowest_fresh, least=False),
    Bar("warm start of a worker, until it is ready", 2.0, 1.0, "s", warm_start, least=False),
)
