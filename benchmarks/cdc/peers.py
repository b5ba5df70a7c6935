"""Other ways of keeping a table current from the same topic: libraries that merge, and a sink that only appends."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

from benchmarks import tables
from benchmarks.cdc import reads, store
from benchmarks.cdc.accounts import PARTITIONS, AccountsTopic, base, expected
from benchmarks.cdc.figures import Merge, Read
from benchmarks.peers import connect
from benchmarks.system import PATIENCE, Run, finished
from benchmarks.topics import share
from benchmarks.tree import Tree
from headrace.config import LakeSettings
from headrace.kafka import admin
from headrace.kafka.client import confluent_options
from headrace.lake import open_duckdb
from sinks.iceberg.catalog import open_catalog

BATCH = 10_000
TABLE = "bench.accounts"
# Rows of the base table that are in memory at a time.
STEP = 1_000_000
Measured = tuple[Merge, list[Read]]


def job(run: Run, topic: AccountsTopic, system: str, lake: LakeSettings, attach: Sequence[str] = ()) -> list[str]:
    spans = [(p, topic.base(p), topic.base(p) + share(run.events, p, PARTITIONS)) for p in range(PARTITIONS)]
    asked: dict[str, Any] = {
        "settings": run.settings.model_dump_json(),
        "topic": topic.name,
        "system": system,
        "lake": lake.model_dump(),
        "attach": list(attach),
        "spans": spans,
        "batch": BATCH,
    }
    return [sys.executable, "-m", "benchmarks.cdc.merge_job", json.dumps(asked)]


def fill(topic: AccountsTopic, write: Callable[[pa.Table], object]) -> None:
    """The table before the changes, some million rows a time."""
    waiting: list[pa.RecordBatch] = []
    for batch in base(topic.rows):
        waiting.append(batch)
        if sum(map(len, waiting)) >= STEP:
            write(pa.Table.from_batches(waiting))
            waiting = []
    if waiting:
        write(pa.Table.from_batches(waiting))


def merged(
    run: Run, topic: AccountsTopic, system: str, command: list[str], size: Callable[[], int], holds: Callable[[], bool]
) -> Merge:
    before, clock = size(), time.perf_counter()
    with Tree(command, {}) as tree:
        tree.finish(PATIENCE)
        seconds = time.perf_counter() - clock
    cpu = tree.cpu_seconds / run.events * 1e6
    written = (size() - before) / run.events
    return Merge(system, topic.rows, run.events, seconds, cpu, tree.peak_mb, written, holds())


def pyiceberg_upsert(run: Run, topic: AccountsTopic) -> Measured:
    """`Table.upsert`, copy on write."""
    lake = LakeSettings(
        catalog="bench", uri=f"sqlite:///{run.folder}/catalog.db", warehouse=f"file://{run.folder}/lake"
    )
    catalog = open_catalog(lake)
    catalog.create_namespace("bench")
    table = catalog.create_table(TABLE, next(base(1)).schema)
    fill(topic, table.append)

    def now(state: str) -> Read:
        return reads.read(PYICEBERG, state, table.refresh().metadata_location)

    before = now("before")
    merge = merged(
        run,
        topic,
        PYICEBERG,
        job(run, topic, "pyiceberg", lake),
        lambda: reads.size(f"{run.folder}/lake"),
        lambda: reads.holds(table.refresh().metadata_location, expected(topic.rows, run.events)),
    )
    note = f"batches of {BATCH:,}, copy on write; its cost is by batch and table"
    return replace(merge, note=note), [before, now("after")]


def duckdb_merge(run: Run, topic: AccountsTopic) -> Measured:
    """`MERGE INTO` an Iceberg table behind a REST catalog, by position deletes."""
    with store.running(run.folder) as place:
        connection = open_duckdb(place.lake)
        try:
            for statement in [*place.attach, "CREATE SCHEMA lake.bench"]:
                connection.execute(statement)
            connection.execute(f"CREATE TABLE lake.{TABLE} (aid BIGINT, bid INTEGER, abalance INTEGER, filler VARCHAR)")

            def append(rows: pa.Table) -> None:
                connection.execute(f"INSERT INTO lake.{TABLE} FROM rows")

            fill(topic, append)
            merge = merged(
                run,
                topic,
                DUCKDB,
                job(run, topic, "DuckDB", place.lake, place.attach),
                place.size,
                lambda: reads.totals(connection, f"lake.{TABLE}") == expected(topic.rows, run.events).values,
            )
        finally:
            connection.close()
    note = f"batches of {BATCH:,}, position deletes by scanning; the store's CPU (SeaweedFS) is not counted"
    return replace(merge, note=note), []


def connect_append(run: Run, topic: AccountsTopic) -> Measured:
    """The sink of Kafka Connect, from the first change on: the log of changes, which readers have to fold."""
    # It reads to the topic's end.
    run = replace(run, events=topic.changes)
    connect.prepare()
    _begin_at_changes(run, topic)
    system = connect.APPEND
    clock = time.perf_counter()
    with Tree(system.command(run), system.environment(run)) as tree:
        tree.wait(lambda: finished(system, run), PATIENCE)
        seconds = time.perf_counter() - clock
        tree.end()
    ok = tables.holds_each_once(connect.location(run), run.events, "source.lsn")
    cpu = tree.cpu_seconds / run.events * 1e6
    written = reads.size(f"{run.folder}/lake") / run.events
    note = "appends change events, no table of current rows; a task a partition, commits every 10 s"
    return Merge(CONNECT, topic.rows, run.events, seconds, cpu, tree.peak_mb, written, ok, note=note), []


def _begin_at_changes(run: Run, topic: AccountsTopic) -> None:
    """The sink's consumer group goes on behind the snapshot's rows."""
    places = [TopicPartition(topic.name, p, topic.base(p)) for p in range(PARTITIONS)]
    asked = [ConsumerGroupTopicPartitions(connect.group(run), places)]
    # Answers come only as long as the client is held.
    client = AdminClient(confluent_options(run.settings.kafka))
    for future in client.alter_consumer_group_offsets(asked).values():
        future.result(admin.TIMEOUT_SECONDS)


PYICEBERG, DUCKDB, CONNECT = "pyiceberg upsert", "DuckDB MERGE into Iceberg", connect.NAME
# By how much fewer changes those get whose cost is by batch and not by change.
SHARES = {PYICEBERG: 50, DUCKDB: 10, CONNECT: 1}
PEERS: dict[str, Callable[[Run, AccountsTopic], Measured]] = {
    PYICEBERG: pyiceberg_upsert,
    DUCKDB: duckdb_merge,
    CONNECT: connect_append,
}
