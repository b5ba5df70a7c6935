"""A database through the real Debezium into bronze and current state: snapshot, a burst, then a steady stream."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from benchmarks import ours, tables
from benchmarks.cdc.figures import Paced, Phase, Stream
from benchmarks.cdc.workloads import Workload
from benchmarks.system import PATIENCE, Run
from benchmarks.tree import Tree
from connectors.connect import Connect, load_connector
from headrace.config import LakeSettings, Settings, SinkSettings
from headrace.errors import TerminalError
from headrace.lake import open_duckdb, table_locations
from schemas.names import table_name
from sinks.iceberg.progress import stored_offsets
from stack.state import read_children

SHIPPED = Path(__file__).parents[2] / "connectors" / "debezium" / "shop.json"
# Rows of one transaction of a burst, and transactions a second of a steady stream.
TRANSACTION, PER_SECOND = 10_000, 20
# At the limit itself a queue would only grow.
PACE = 0.8
LOOK_SECONDS = 0.05
# How long a connector may take to run, and to let go of its slot.
SERVER_SECONDS = 180.0
COUNT = "SELECT count(*) FROM {}"

Int64 = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """How much: `burst` changes at once, then a stream of `seconds` for each of the sink's freshness `targets`."""

    burst: int
    seconds: float
    targets: tuple[float, ...] = (SinkSettings().freshness_seconds, 1.0)


@dataclass
class Watch:
    """When each offset of each table's topic was first to be read: (time, next offset by partition)."""

    seen: dict[str, list[tuple[float, dict[int, int]]]] = field(default_factory=dict)

    def look(self, lake: LakeSettings, topics: dict[str, str]) -> int:
        """Records that are in the current-state tables now."""
        locations = table_locations(lake) if lake.uri else {}
        for table, topic in topics.items():
            offsets = stored_offsets(tables.properties(locations.get(table)), topic)
            past = self.seen.setdefault(topic, [])
            if offsets and (not past or past[-1][1] != offsets):
                past.append((time.time(), offsets))
        return sum(sum(past[-1][1].values()) for past in self.seen.values() if past)

    def delays(self, topic: str, partitions: Int64, offsets: Int64, committed: Floats) -> Floats:
        """Seconds from the source's commit until each record was to be read. Raises `ValueError` when one never was."""
        out = np.full(len(offsets), np.nan)
        at = np.array([when for when, _ in self.seen[topic]])
        for partition in np.unique(partitions):
            ends = np.array([by.get(int(partition), 0) for _, by in self.seen[topic]])
            mine = partitions == partition
            first = np.searchsorted(ends, offsets[mine], side="right")
            if (first == len(ends)).any():
                raise ValueError(f"a record of {topic}-{partition} never came")
            out[mine] = at[first] - committed[mine]
        return out


class Pipeline:
    """A source database, its connector and a sink of its own."""

    def __init__(self, settings: Settings, home: Path, folder: Path, workload: Workload, number: int) -> None:
        self.workload = workload
        self.prefix = f"cdc{number}"
        self.topics = {
            table_name("silver", f"{self.prefix}.public.{name}"): f"{self.prefix}.public.{name}"
            for name in workload.tables
        }
        self.run = Run(settings, self.prefix, 0, 4, folder, {}, number=number)
        self.lake = ours.lake(self.run)
        self.watch = Watch()
        self.url = make_conninfo(settings.postgres.url, dbname=self.prefix)
        self._admin = settings.postgres.url
        self._connect = Connect(settings.connect.url)
        self._home = home

    @contextmanager
    def database(self) -> Iterator[psycopg.Connection]:
        """The source, filled."""
        with psycopg.connect(self._admin, autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {self.prefix}")
            with psycopg.connect(self.url, autocommit=True) as connection:
                self.workload.create(self.url, connection)
                connection.execute("VACUUM ANALYZE")
                try:
                    yield connection
                finally:
                    self._forget(admin)

    def _forget(self, admin: psycopg.Connection) -> None:
        """The connector and its slot, which would keep the log of all databases."""
        if any(status.name == self.prefix for status in self._connect.statuses()):
            self._connect.remove(self.prefix)
        self._connect.close()
        deadline = time.monotonic() + SERVER_SECONDS
        slots = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"
        while (found := admin.execute(slots, (self.prefix,)).fetchone()) is not None:
            if not found[0]:
                admin.execute("SELECT pg_drop_replication_slot(%s)", (self.prefix,))
            elif time.monotonic() > deadline:
                raise TerminalError("its connector is gone, but it is still in use", where=f"slot {self.prefix}")
            else:
                time.sleep(0.1)

    def sink(self, freshness: float) -> Tree:
        self._write_connector()
        environment = ours.environment(self.run) | {
            "HEADRACE_SINK__EXCLUDE": json.dumps([f"(?!{re.escape(self.prefix)}[.]).*"]),
            "HEADRACE_SINK__FRESHNESS_SECONDS": str(freshness),
        }
        return Tree(ours.process("sink", lambda _: None)(self.run), environment)

    @property
    def _file(self) -> Path:
        return self.run.folder / "connectors" / "debezium" / "bench.json"

    def _write_connector(self) -> None:
        config = json.loads(SHIPPED.read_text())["config"] | {
            "database.dbname": self.prefix,
            "topic.prefix": self.prefix,
            "table.include.list": ",".join(f"public.{name}" for name in self.workload.tables),
            "slot.name": self.prefix,
            "publication.name": self.prefix,
            "topic.creation.default.partitions": str(self.run.partitions),
        }
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps({"name": self.prefix, "config": config}))

    def connect(self) -> None:
        self._connect.apply(load_connector(self._file), timeout=SERVER_SECONDS)

    def landed(self) -> int:
        return self.watch.look(self.lake, self.topics)

    def mark(self, sink: Tree, records: int) -> Phase:
        """Where the pipeline is: records in the current state, the time, and CPU used until now."""
        connect = read_children(self._home)["connect"].process()
        if connect is None:
            raise TerminalError("is not running", where="Kafka Connect")
        used = [process.cpu_times() for process in (connect, psutil.Process(sink.pid))]
        return Phase(records, time.monotonic(), *(times.user + times.system for times in used))

    def wait(self, sink: Tree, records: int) -> None:
        """Until so many records are in the current state, looking often."""
        deadline = time.monotonic() + PATIENCE
        while self.landed() < records:
            if not sink.running() or time.monotonic() > deadline:
                raise TerminalError(f"not all of {records:,} records came: {sink.tail()}", where=self.prefix)
            time.sleep(LOOK_SECONDS)

    def pace(self, connection: psycopg.Connection, rate: float, seconds: float) -> int:
        """Transactions at a steady rate; returns their records. A step that comes late is not made up for."""
        records, start = 0, time.monotonic()
        for i in range(int(seconds * PER_SECOND)):
            time.sleep(max(0.0, start + i / PER_SECOND - time.monotonic()))
            records += self.workload.step(connection, max(1, int(rate / PER_SECOND)))
        return records

    def delays(self, since: float) -> Floats:
        """Of every change committed since, by the source's own clock."""
        duck, found = open_duckdb(self.lake), []
        locations = table_locations(self.lake)
        try:
            for topic in self.topics.values():
                files = tables.data_files(locations[table_name("bronze", topic)])
                rows = duck.execute(
                    "SELECT _kafka_partition, _offset, source.ts_us / 1e6 AS at FROM read_parquet($files) "
                    "WHERE op <> 'r' AND source.ts_us >= $since",
                    {"files": files, "since": int(since * 1e6)},
                ).fetchnumpy()
                columns = rows["_kafka_partition"].astype(np.int64), rows["_offset"].astype(np.int64), rows["at"]
                found.append(self.watch.delays(topic, *columns))
        finally:
            duck.close()
        return np.concatenate(found)

    def equal(self, connection: psycopg.Connection) -> bool:
        """Whether every current-state table says what its source does."""
        return all(
            connection.execute(sql.SQL(check).format(sql.Identifier(name))).fetchone()
            == tables.one_row(self.lake, check.format(table_name("silver", f"{self.prefix}.public.{name}")))
            for name, check in self.workload.tables.items()
        )


def measure_stream(settings: Settings, home: Path, folder: Path, workload: Workload, plan: Plan, number: int) -> Stream:
    """One workload. Raises `TerminalError` when something does not come."""
    pipe = Pipeline(settings, home, folder, workload, number)
    first, *others = plan.targets
    with pipe.database() as connection:
        counts = [connection.execute(sql.SQL(COUNT).format(sql.Identifier(name))) for name in workload.tables]
        records = sum(row[0] for cursor in counts for row in cursor)
        with pipe.sink(first) as sink:
            marks = [pipe.mark(sink, 0)]
            pipe.connect()
            pipe.wait(sink, records)
            marks.append(pipe.mark(sink, records))

            burst = 0
            while burst < plan.burst:
                burst += workload.step(connection, min(TRANSACTION, plan.burst - burst))
            pipe.wait(sink, records + burst)
            marks.append(pipe.mark(sink, records + burst))
            snapshot, bursting = (after - before for before, after in pairwise(marks))
            rate = bursting.rate * PACE
            paced = [_paced(pipe, sink, first, rate, plan.seconds)]
        for target in others:
            with pipe.sink(target) as sink:
                sink.wait(lambda: sink.said().count('"event": "landing"') == len(workload.tables), PATIENCE)
                paced.append(_paced(pipe, sink, target, rate, plan.seconds))
        equal = pipe.equal(connection)
    return Stream(workload.name, snapshot, bursting, tuple(paced), equal)


def _paced(pipe: Pipeline, sink: Tree, target: float, rate: float, seconds: float) -> Paced:
    since, before = time.time(), pipe.landed()
    start = pipe.mark(sink, before)
    records = before + _written(pipe, sink, rate, seconds)
    pipe.wait(sink, records)
    phase = pipe.mark(sink, records) - start
    p50, p99 = np.percentile(pipe.delays(since), [50, 99])
    return Paced(target, phase, float(p50), float(p99))


def _written(pipe: Pipeline, sink: Tree, rate: float, seconds: float) -> int:
    """A steady stream from a thread of its own, while this one looks at the tables."""
    done: list[Any] = []

    def write() -> None:
        try:
            with psycopg.connect(pipe.url, autocommit=True) as connection:
                done.append(pipe.pace(connection, rate, seconds))
        except Exception as e:
            done.append(e)

    writer = threading.Thread(target=write, name="writer")
    writer.start()
    while writer.is_alive() and sink.running():
        pipe.landed()
        time.sleep(LOOK_SECONDS)
    writer.join()
    (result,) = done
    if isinstance(result, Exception):
        raise result
    return int(result)
