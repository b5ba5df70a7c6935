"""The hops: what is moved from where to where, and which systems move it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import ours
from benchmarks.peers import connect, plain, quix, spark, stock_faust
from benchmarks.shapes import ORDER, READING, envelope
from benchmarks.system import System
from benchmarks.topics import Topics


@dataclass(frozen=True)
class Hop:
    """`topic` fills a topic with so many events and names it. `steady` hops run a second time with fewer events, so
    that the cost of one more event is known."""

    title: str
    topic: Callable[[Topics, int], str]
    systems: tuple[System, ...]
    schema: dict[str, object]
    steady: bool = False


def enriched_topic(topics: Topics, events: int) -> str:
    topics.devices()
    return topics.readings(events)


CLIENT_HOPS = {"produce": "columns -> Kafka", "decode": "Kafka -> Arrow, decoded"}
HOPS = {
    "append": Hop(
        "Kafka -> Iceberg, IoT",
        Topics.readings,
        (ours.APPEND, plain.APPEND, quix.APPEND, connect.APPEND, spark.APPEND),
        READING,
        steady=True,
    ),
    "changelog": Hop("Kafka -> Iceberg changelog", Topics.orders, (ours.CHANGELOG,), envelope("orders", ORDER), True),
    "current": Hop("bronze + current state", Topics.orders, (ours.CURRENT,), envelope("orders", ORDER)),
    "agent": Hop(
        "Kafka -> clean + enrich -> Kafka", enriched_topic, (ours.AGENT, stock_faust.AGENT), READING, steady=True
    ),
}
FRESHNESS, START = "freshness", "start"
TITLES = (
    CLIENT_HOPS
    | {name: hop.title for name, hop in HOPS.items()}
    | {FRESHNESS: "Produced -> queryable in Iceberg", START: "Warm start of a worker"}
)
