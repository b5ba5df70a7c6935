"""`python -m benchmarks.cdc.merge_job ASKED`: micro-batches of changes merged by a library that rewrites or deletes.

Records are fetched and decoded by Headrace's own columns, and folded to the last change of each key: cheaper than these
libraries' users would, so that what differs is the merge. Ends by itself after the last change.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pyarrow as pa
from aiokafka import TopicPartition

from headrace.config import LakeSettings, Settings
from headrace.kafka.client import consumer_options
from headrace.kafka.consumer import ColumnarConsumer
from headrace.keyindex import hash_keys, last_of_each
from headrace.lake import open_duckdb
from schemas.codec import ChunkDecoder
from schemas.envelope import row_batch
from schemas.registry import Registry
from sinks.iceberg.catalog import open_catalog

MERGE = """\
MERGE INTO lake.bench.accounts AS t USING changes AS c ON t.aid = c.aid
WHEN MATCHED THEN UPDATE SET bid = c.bid, abalance = c.abalance, filler = c.filler
WHEN NOT MATCHED THEN INSERT VALUES (c.aid, c.bid, c.abalance, c.filler)"""


def pyiceberg_merge(asked: dict[str, Any]) -> Callable[[pa.Table], None]:
    table = open_catalog(LakeSettings.model_validate(asked["lake"])).load_table("bench.accounts")

    def merge(rows: pa.Table) -> None:
        table.upsert(rows, join_cols=["aid"])

    return merge


def duckdb_merge(asked: dict[str, Any]) -> Callable[[pa.Table], None]:
    connection = open_duckdb(LakeSettings.model_validate(asked["lake"]))
    for statement in asked["attach"]:
        connection.execute(statement)

    def merge(rows: pa.Table) -> None:
        connection.register("changes", rows)
        connection.execute(MERGE)
        connection.unregister("changes")

    return merge


MERGES = {"pyiceberg": pyiceberg_merge, "DuckDB": duckdb_merge}


async def batches(asked: dict[str, Any]) -> AsyncIterator[pa.Table]:
    """Rows after the changes, so many changes at a time, each key once."""
    settings = Settings.model_validate_json(asked["settings"])
    registry = Registry(settings.registry.url)
    decoder = ChunkDecoder(registry.schema)
    consumer = ColumnarConsumer(headers=False, **consumer_options(settings.kafka))
    spans = {TopicPartition(asked["topic"], p): (first, end) for p, first, end in asked["spans"] if first < end}
    await consumer.start()
    try:
        consumer.assign(list(spans))
        for place, (first, _) in spans.items():
            consumer.seek(place, first)
        left = set(spans)
        waiting: list[pa.RecordBatch] = []
        while left:
            for place, chunks in (await consumer.getmany(timeout_ms=1000)).items():
                for chunk in chunks:
                    within = max(0, spans[place][1] - int(chunk.offsets[0]))
                    waiting.append(row_batch(decoder.decode(chunk.values).batch, "after").slice(0, within))
                    if chunk.next_offset >= spans[place][1]:
                        left.discard(place)
            rows = pa.Table.from_batches(waiting) if waiting else None
            while rows is not None and (rows.num_rows >= asked["batch"] or (not left and rows.num_rows)):
                yield folded(rows.slice(0, asked["batch"]))
                rows = rows.slice(asked["batch"])
            waiting = rows.to_batches() if rows is not None else []
    finally:
        await consumer.stop()
        registry.close()


def folded(rows: pa.Table) -> pa.Table:
    """The last row of each key."""
    return rows.filter(pa.array(last_of_each(hash_keys([rows.column("aid")]))))


async def work(asked: dict[str, Any]) -> None:
    merge = MERGES[asked["system"]](asked)
    async for rows in batches(asked):
        merge(rows)


if __name__ == "__main__":
    asyncio.run(work(json.loads(sys.argv[1])))
