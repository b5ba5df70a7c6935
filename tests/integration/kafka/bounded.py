"""A process that reads topics within a size that the kernel bounds, and tells what it took.

`python -m tests.integration.kafka.bounded BOOTSTRAP_SERVERS MEGABYTES TOPIC...` prints JSON: a row count and the error
that ended the reading of each topic (empty for none), and the megabytes by which resident memory grew at most.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import sys
from pathlib import Path

import psutil
from aiokafka import TopicPartition

from headrace.config import KafkaSettings
from headrace.errors import HeadraceError
from headrace.kafka import ColumnarConsumer
from headrace.kafka.client import consumer_options


async def read(kafka: KafkaSettings, topic: str) -> tuple[int, str]:
    consumer = ColumnarConsumer(**consumer_options(kafka))
    await consumer.start()
    tp = TopicPartition(topic, 0)
    consumer.assign([tp])
    consumer.seek(tp, 0)
    end = (await consumer.end_offsets([tp]))[tp]
    rows = 0
    try:
        while await consumer.position(tp) < end:
            for chunks in (await consumer.getmany(timeout_ms=1000)).values():
                rows += sum(map(len, chunks))
    except HeadraceError as e:
        return rows, type(e).__name__
    finally:
        await consumer.stop()
        del consumer
        gc.collect()
    return rows, ""


def peak_megabytes() -> int:
    """Of this program alone: what getrusage tells begins at the size of the process that started it."""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].removesuffix("kB")) >> 10


async def main(servers: str, megabytes: int, topics: list[str]) -> None:
    kafka = KafkaSettings(bootstrap_servers=servers)
    before = peak_megabytes()
    # What may be written to: libraries reserve a gigabyte of addresses that they never use.
    limit = psutil.Process().memory_info().data + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    found = {topic: await read(kafka, topic) for topic in topics}
    print(json.dumps({"topics": found, "megabytes": peak_megabytes() - before}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
