"""`python -m benchmarks`: events a second and CPU per event of each hop, with the ordinary Python way beside it.

Starts Kafka and a registry of its own, produces both streams, runs every hop in a process of its own, one by one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.clients import CLIENTS
from benchmarks.data import ENVELOPE, KEY, changes, envelope_batch
from benchmarks.page import write_page
from benchmarks.processes import PROCESSES
from headrace.config import Settings
from headrace.kafka import admin
from headrace.kafka.client import producer_options
from headrace.kafka.producer import ColumnarProducer
from schemas.codec import Encoder
from schemas.registry import Registry
from stack.testing import SessionStack

PARTITIONS = 2
HOPS = list(dict.fromkeys([hop for hop, _ in CLIENTS] + list(PROCESSES)))
# The ordinary way is 10-50 times slower: a share of the events is enough to know its cost.
PLAIN_SHARE = 10


def client(settings: Settings, hop: str, system: str, topic: str, events: int) -> dict[str, Any]:
    asked = {
        "settings": settings.model_dump_json(),
        "hop": hop,
        "system": system,
        "topic": topic,
        "events": events,
        "partitions": PARTITIONS,
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.clients", json.dumps(asked)], stdout=subprocess.PIPE, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def produce_changes(settings: Settings, events: int) -> None:
    topic, registry = "bench.public.orders", Registry(settings.registry.url)
    values = Encoder(ENVELOPE, registry.register(f"{topic}-value", ENVELOPE))
    keys = Encoder(KEY, registry.register(f"{topic}-key", KEY))

    async def work() -> None:
        producer = ColumnarProducer(**producer_options(settings.kafka))
        await producer.start()
        try:
            for partition in range(PARTITIONS):
                for parts in changes(events // PARTITIONS, partition, PARTITIONS):
                    key = keys.encode(pa.RecordBatch.from_pydict({"id": parts["ids"]}))
                    sent = await producer.send_columns(topic, partition, key, values.encode(envelope_batch(parts)))
                    await asyncio.gather(*sent)
        finally:
            await producer.stop()

    asyncio.run(work())


def run(settings: Settings, hops: list[str], systems: list[str], events: int) -> list[dict[str, Any]]:
    topics = ["bench.readings", "bench.plain", "bench.public.orders"]
    admin.ensure_topics(settings.kafka, {topic: admin.TopicSpec(PARTITIONS) for topic in topics})
    results: list[dict[str, Any]] = []

    def add(hop: str, system: str, found: dict[str, Any]) -> None:
        results.append({"hop": hop, "system": system, **found})
        rate = 1e6 / found["cpu_us_per_event"]
        print(f"{hop:<24} {system:<28} {rate:>12,.0f} ev/s a core   rows ok: {found['rows_ok']}", file=sys.stderr)

    # Producing fills the topic that the later hops read, so it always runs.
    produced = client(settings, "produce", "headrace", "bench.readings", events)
    for hop, system in CLIENTS:
        if hop not in hops or (system not in systems and systems):
            continue
        if (hop, system) == ("produce", "headrace"):
            add(hop, system, produced)
            continue
        plain = system != "headrace"
        topic = "bench.plain" if hop == "produce" else "bench.readings"
        add(
            hop,
            system,
            client(settings, hop, system, topic, events // (PLAIN_SHARE if plain and hop == "produce" else 1)),
        )
    if "bronze + current state" in hops:
        produce_changes(settings, events)
    for hop, measure in PROCESSES.items():
        if hop in hops and (not systems or "headrace" in systems):
            with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
                add(hop, "headrace", measure(settings, events, PARTITIONS, Path(folder)))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true", help="a tenth of the events: is everything right, not how fast")
    parser.add_argument("--hops", nargs="*", choices=HOPS, default=HOPS, metavar="HOP", help=", ".join(HOPS))
    parser.add_argument("--systems", nargs="*", default=[], metavar="SYSTEM")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks")
    asked = parser.parse_args()
    events = asked.events // 10 if asked.quick else asked.events
    stack = SessionStack()
    try:
        results = run(stack.need("kafka", "registry"), asked.hops, asked.systems, events)
    finally:
        stack.close()
    if asked.json:
        print(json.dumps(results, indent=1))
    if asked.write:
        write_page(results)
    if not all(result["rows_ok"] for result in results):
        sys.exit("some rows are wrong")


if __name__ == "__main__":
    main()
