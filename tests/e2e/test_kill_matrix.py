"""Everything is killed, anywhere: each victim in each phase of a capture, under load, and nobody helps.

A course is one capture that goes through all phases. HEADRACE_KILL_COURSES=16 is the whole matrix, first of PostgreSQL,
then of MariaDB: each victim in each phase once, in an order drawn by the seed. HEADRACE_KILL_FIRST says with which
course fewer of them begin. The short form is one course of MariaDB with kills in some phases, by a fixed seed.
All the while the demo streams, whose flows, with a capture of PostgreSQL, must come through as well.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psutil
import psycopg
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition

from connectors import snapshots
from connectors.connect import Connect, load_connector
from connectors.databases import prepare_source
from connectors.lifecycle import source_offset
from connectors.notices import Snapshot
from connectors.watch import Watch
from headrace.config import Settings, load_settings
from headrace.errors import HeadraceError, TerminalError
from headrace.lake import query, table_locations
from tests.e2e.conftest import Headrace, eventually, revisions
from tests.e2e.engines import MARIADB, POSTGRESQL, Engine
from tests.e2e.kills import Back, kill, victims
from tests.e2e.load import ROWS, Load

COURSES = int(os.environ.get("HEADRACE_KILL_COURSES", "0"))
# Kafka dies in the first snapshot, the server while changes stream, the worker in a compaction, the sink at a column.
SHORT_SEED = 15728
SEED = int(os.environ.get("HEADRACE_KILL_SEED", time.time_ns() % 1_000_000 if COURSES else SHORT_SEED))
FIRST = int(os.environ.get("HEADRACE_KILL_FIRST", "1"))
PHASES = ("initial snapshot", "streaming", "compaction", "evolution", "incremental snapshot")
SHORT = 4
LEAST_COMMITS = 100

# The first test waits for the whole stack to start.
pytestmark = pytest.mark.timeout(1500 + 900 * COURSES)

Strike = Callable[[], Back]


class Plan(NamedTuple):
    course: str
    engine: Engine
    kills: dict[str, str]
    """Phase -> victim."""


def plans(rng: Random) -> list[Plan]:
    """The courses to go through. Of an engine they are a Latin rectangle: each pair of phase and victim once."""
    whole: list[Plan] = []
    for engine in (POSTGRESQL, MARIADB):
        drawn = victims(engine.server)
        rng.shuffle(drawn)
        for course in range(len(drawn)):
            kills = {phase: drawn[(course + at) % len(drawn)] for at, phase in enumerate(PHASES)}
            whole.append(Plan(f"course{len(whole) + 1}", engine, kills))
    struck = sorted(rng.sample(PHASES, SHORT), key=PHASES.index)
    short = [whole[-1]._replace(kills={phase: whole[-1].kills[phase] for phase in struck})]
    return whole[FIRST - 1 : FIRST - 1 + COURSES] if COURSES else short


class Course:
    """One capture, its phases in order; each phase waits until it is truly in it, strikes, and says what it saw."""

    def __init__(self, settings: Settings, load: Load, rng: Random, folder: Path) -> None:
        self.settings, self.load, self.rng = settings, load, rng
        self.name = load.schema
        self.connect = Connect(settings.connect.url)
        self.connector = load_connector(folder / f"{self.name}.json")
        self.topic = f"{self.name}.{self.name}.goods"
        self.table = f"silver.{self.name}_{self.name}_goods"
        self._asker = Consumer(
            {"bootstrap.servers": settings.kafka.bootstrap_servers, "group.id": "kills", "log_level": 0}
        )

    def records(self) -> int:
        """Records in the large table's topic; 0 while it is not there."""
        places = [TopicPartition(self.topic, partition) for partition in (0, 1)]
        try:
            return sum(self._asker.get_watermark_offsets(place, timeout=5)[1] for place in places)
        except KafkaException:
            return 0

    def streams(self) -> bool:
        with suppress(HeadraceError):
            offset = source_offset(self.connect, self.name)
            return self.load.engine.streams(offset) and self.connect.status(self.name).running
        return False

    def metadata(self) -> dict[str, Any]:
        """Of the current state, with the file's own path; without columns while there is no table."""
        location = table_locations(self.settings.lake).get(self.table)
        if location is None:
            return {"path": None, "columns": ()}
        path = Path(urlsplit(location).path)
        found: dict[str, Any] = json.loads(path.read_text())
        schema = next(s for s in found["schemas"] if s["schema-id"] == found["current-schema-id"])
        return {**found, "path": path, "columns": [field["name"] for field in schema["fields"]]}

    def initial_snapshot(self, strike: Strike) -> tuple[str, Back]:
        enough = self.rng.uniform(0.02, 0.6) * ROWS
        self.begin()
        eventually(120, "rows are being read", lambda: self.records() > enough, every=0.02)
        read = self.records()
        assert read < ROWS, "the snapshot was over before the kill"
        return f"{read} of {ROWS} rows read", strike()

    def begin(self) -> None:
        prepare_source(self.settings, self.connector)
        self.connect.call("PUT", f"/connectors/{self.name}/config", body=dict(self.connector.config))

    def streaming(self, strike: Strike) -> tuple[str, Back]:
        eventually(240, "changes stream", self.streams)
        before, committed = self.records(), self.load.commits
        time.sleep(self.rng.uniform(1, 5))
        eventually(60, "changes come", lambda: self.records() > before and self.load.commits > committed)
        return f"{self.records() - before} records from {self.load.commits - committed} commits", strike()

    def compaction(self, strike: Strike, process: psutil.Process) -> tuple[str, Back]:
        """The sink is halted whenever it has written a file: if that holds rows that the table has, it compacts."""
        eventually(240, "the table is there", lambda: self.metadata()["path"])
        folder = self.metadata()["path"].parents[1]
        known, deadline = set(folder.rglob("*.parquet")), time.monotonic() + 240
        while time.monotonic() < deadline:
            new = [p for p in set(folder.rglob("*.parquet")) - known if not p.name.endswith("-deletes.parquet")]
            if not new:
                time.sleep(0.01)
                continue
            process.suspend()
            try:
                for path in new:
                    seen = self.rewritten(path)
                    if seen:
                        return seen, strike()
                    if seen is not None:
                        known.add(path)
            finally:
                with suppress(psutil.NoSuchProcess):
                    process.resume()
            time.sleep(0.01)
        raise AssertionError("no compaction was met")

    def rewritten(self, path: Path) -> str | None:
        """What shows that the file is one of a compaction that is not committed yet; None while it is being written."""
        metadata = self.metadata()
        if path.stat().st_mtime_ns < metadata["path"].stat().st_mtime_ns:
            return ""
        try:
            rows = pq.ParquetFile(path).read(["_kafka_partition", "_offset"]).to_pylist()
        except FileNotFoundError:
            return ""
        except (OSError, ValueError):  # pyarrow's words for a file without its end
            return None
        landed = {p: int(metadata["properties"].get(f"headrace.offset.{self.topic}.{p}", 0)) for p in (0, 1)}
        held = sum(row["_offset"] < landed[row["_kafka_partition"]] for row in rows)
        return f"{held} rows of the table in a new file of {len(rows)}" if rows and held == len(rows) else ""

    def evolution(self, strike: Strike) -> tuple[str, Back]:
        if self.load.engine is MARIADB:
            # It breaks off a snapshot of a table that is altered.
            eventually(240, "changes stream", self.streams)
        eventually(240, "the table is there", lambda: self.metadata()["path"])
        self.load.change_key()
        for _ in range(8):
            column = self.load.add_column()
            time.sleep(self.rng.uniform(0, 3))
            if column not in self.metadata()["columns"]:
                return f"{column} in the source, not in the table; another key", strike()
        raise AssertionError("every column was in the table before the kill")

    def incremental_snapshot(self, strike: Strike) -> tuple[str, Back]:
        eventually(240, "changes stream", self.streams)
        goods = f"{self.name}.goods"
        with closing(Watch(self.settings)) as watch:
            target = snapshots.find(watch, self.settings, goods, self.name)
            number = snapshots.execute(watch, self.settings, target, goods)
            enough = self.rng.randint(1, 20)

            def chunks() -> int:
                found = watch.notices.snapshots(target.notices).get(number)
                return sum(len(scan.chunks) for scan in found.tables.values()) if found else 0

            eventually(120, "chunks are being read", lambda: chunks() >= enough, every=0.05)
            read = chunks()
            assert not watch.notices.known(target.notices)[number].over, "the snapshot was over before the kill"
            back = strike()

        def over() -> str:
            told = back()
            with closing(Watch(self.settings)) as watch:

                def ended() -> Snapshot | None:
                    with suppress(HeadraceError):
                        found = watch.notices.snapshots(target.notices)[number]
                        return found if found.over else None
                    return None

                end: Snapshot = eventually(300, "the snapshot goes on", ended)
            assert end.state == "completed"
            failed = "".join(f", where it says: {scan.failed}" for scan in end.tables.values() if scan.failed)
            return f"{told}; the snapshot has gone on to its end{failed}"

        return f"{read} chunks read", over

    def difference(self, table: str) -> dict[str, Any]:
        """Empty when source and current state hold the same multiset of rows."""
        names, rows = self.load.read(table)
        wanted = Counter(rows)
        try:
            columns = ", ".join(f'"{name}"' for name in names)
            held = Counter(
                query(self.settings.lake, f"SELECT {columns} FROM silver.{self.name}_{self.name}_{table}").fetchall()
            )
        except TerminalError as e:
            return {"not readable yet": str(e)}
        if wanted == held:
            return {}
        missing, extra = wanted - held, held - wanted
        return {
            "missing": (missing.total(), missing.most_common(2)),
            "extra": (extra.total(), extra.most_common(2)),
            "rows": (wanted.total(), held.total()),
        }

    def close(self) -> None:
        """Its rows stay to be verified; the connector and its slot make room for the next."""
        self.connect.remove(self.name)
        self.connect.close()
        self._asker.close()


def run(demo: Headrace, settings: Settings, plan: Plan, rng: Random) -> list[dict[str, str]]:
    """One course; what was killed and what was seen."""
    seen, name, folder = [], plan.course, demo.home.parent / "content" / "connectors" / "debezium"
    (folder / f"{name}.json").write_text(plan.engine.connector_file(name))
    with Load(plan.engine, settings.databases[name], name, rng) as load:
        course = Course(settings, load, rng, folder)
        if PHASES[0] not in plan.kills:
            course.begin()
        for phase, victim in plan.kills.items():
            step: Any = getattr(course, phase.replace(" ", "_"))
            more: tuple[psutil.Process, ...] = ()
            if phase == "compaction":
                more = (psutil.Process(eventually(120, "the sink runs", lambda: demo.status()["sink"]["pid"])),)
            commits, begun = load.commits, time.monotonic()
            met, back = step(lambda v=victim: kill(demo, v, rng), *more)
            seen.append({"phase": phase, "victim": victim, "met": met, "seen": back()})
            eventually(60, "the load goes on", lambda c=commits: load.commits > c + 10)
            print(f"{name}: {seen[-1]}, {time.monotonic() - begun:.0f} s", flush=True)
        eventually(240, "changes stream", course.streams)
        eventually(60, "enough has changed", lambda: load.commits > LEAST_COMMITS)
        load.finish()
        begun = time.monotonic()
        for table in ("goods", "moved"):
            last: dict[str, Any] = {}

            def equal(table: str = table, last: dict[str, Any] = last) -> bool:
                last.clear()
                last.update(course.difference(table))
                return not last

            try:
                eventually(240, f"{table} equals the source", equal)
            except AssertionError as e:
                raise AssertionError(f"{e}: {last}; after {seen}") from None
        records = course.records()
        assert records > ROWS + LEAST_COMMITS, "too little came through"
        print(f"{name}: equal after {time.monotonic() - begun:.0f} s; {load.commits} commits, {records} records")
        course.close()
    return seen


def test_anything_may_be_killed_anywhere(demo: Headrace) -> None:
    rng = Random(SEED)
    print(f"HEADRACE_KILL_SEED={SEED} HEADRACE_KILL_COURSES={COURSES} HEADRACE_KILL_FIRST={FIRST}", flush=True)
    demo("up", "--mariadb", "--servers-only")
    admin = demo.get("postgres.url")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute("CREATE DATABASE kill")
    urls = {POSTGRESQL.server: admin.rsplit("/", 1)[0] + "/kill", MARIADB.server: demo.get("mariadb.url")}
    planned = plans(rng)
    # For every process that starts from now on, and `connectors` asks again for snapshots that Debezium has dropped.
    file = demo.home.parent / "headrace.toml"
    file.touch(mode=0o600)
    databases = [f"{plan.course} = {json.dumps(urls[plan.engine.server])}" for plan in planned]
    file.write_text("\n".join(["[databases]", *databases, ""]))
    kill(demo, "connectors", rng)()
    settings = load_settings(environ=demo.environ, folder=file.parent)
    seen = [one for plan in planned for one in run(demo, settings, plan, rng)]
    wanted = [pair for plan in planned for pair in plan.kills.items()]
    assert [(one["phase"], one["victim"]) for one in seen] == wanted
    eventually(180, "all run again", lambda: {row["state"] for row in demo.status().values()} == {"running"})
    before = revisions(demo)["orders_by_status"]
    eventually(120, "KPIs move again", lambda: revisions(demo)["orders_by_status"] > before)
    begun = time.monotonic()
    done = demo("verify", "--patience", "120", check=False, timeout=1200)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{seen}"
    assert "everything agrees" in done.stderr
    for plan in planned:
        name = plan.course
        assert f"silver.{name}_{name}_goods equals {name}.goods" in done.stdout
    print(f"everything agrees, verified in {time.monotonic() - begun:.0f} s")
