"""`python -m benchmarks.pace ASKED`: readings at a steady rate, each with the time at which it is sent, for so long.

Rows go in small batches, partition by partition. Behind its time, it sends at once: the times that rows carry are true.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.data import readings
from benchmarks.shapes import READING
from headrace.config import Settings
from headrace.kafka.client import producer_options
from headrace.kafka.producer import ColumnarProducer
from schemas.codec import Encoder, warm
from schemas.names import subject
from schemas.registry import Registry

BATCH_SECONDS = 0.01


def stamped(rows: pa.RecordBatch, micros: int) -> pa.RecordBatch:
    """The rows as measured at this time, each a microsecond after the one before, so that no two are alike."""
    at = rows.schema.get_field_index("measured_at")
    times = pa.array(micros + np.arange(len(rows))).cast(rows.schema.field(at).type)
    return rows.set_column(at, rows.schema.field(at), times)


async def work(asked: dict[str, Any]) -> None:
    settings = Settings.model_validate_json(asked["settings"])
    registry = Registry(settings.registry.url)
    topic, partitions = asked["topic"], asked["partitions"]
    encoder = Encoder(READING, registry.register(subject(topic, "value"), READING))
    size = int(asked["rate"] * BATCH_SECONDS)
    (pattern,) = readings(size, 0, 1)
    producer = ColumnarProducer(**producer_options(settings.kafka))
    await producer.start()
    try:
        start, last = time.time(), 0
        for i in range(asked["events"] // size):
            await asyncio.sleep(max(0.0, start + i * BATCH_SECONDS - time.time()))
            last = max(int(time.time() * 1e6), last + size)
            await producer.send_columns(topic, i % partitions, None, encoder.encode(stamped(pattern, last)))
        await producer.flush()
    finally:
        await producer.stop()
        registry.close()


if __name__ == "__main__":
    warm()
    asyncio.run(work(json.loads(sys.argv[1])))
