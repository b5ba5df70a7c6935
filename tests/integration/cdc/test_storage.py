"""The forms of storage, live: partitioned current states, histories with the times of every version, the past read
back, and every reader of the lake."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from pyiceberg.table import Table

from connectors.connect import Connect
from governance.verify import history
from governance.verify.kafka import KafkaReader
from governance.verify.lake import Lake
from headrace.config import Settings
from headrace.lake import answer, open_duckdb
from schemas.envelope import UNAVAILABLE
from sinks.iceberg.compact import FILES_TO_MERGE
from tests.integration.cdc.capture import Capture, captured
from tests.integration.cdc.readers import read_by_all
from tests.integration.sinks.iceberg.shop import running

Row = dict[str, Any]

EPOCH = datetime.fromtimestamp(0, UTC)

# Each goes through the same changes, and has a history. `plain` alone is one partition of its topic, so that both
# halves of a changed key are read together.
STORAGE: dict[str, Row] = {
    "plain": {},
    "moving": {"partition": ["region", "day(posted_at)"]},
    "spread": {"partition": ["bucket(2, n)", "truncate(20, lane)", "month(on_day)"], "sort": ["posted_at"]},
}
FIELDS: dict[str, Any] = {
    "id": "int",
    "region": "string",
    "posted_at": {"type": "long", "logicalType": "timestamp-micros"},
    "n": "int",
    "lane": "int",
    "on_day": {"type": "int", "logicalType": "date"},
}
COLUMNS = (
    "id int PRIMARY KEY, region text, posted_at timestamptz, n int, lane int NOT NULL, on_day date, weight real, "
    "fee numeric(8, 2), total numeric(38, 4), ok boolean, local_at timestamp, raw bytea, tags int[], note text, "
    "body text"
)
NAMES = [part.split()[0] for part in COLUMNS.replace("(8, 2)", "").replace("(38, 4)", "").split(", ")]
ROWS = (
    f"INSERT INTO {{t}} ({', '.join(NAMES)}) SELECT g, (ARRAY['north', 'sou/th', 'Übersee', '', NULL])[1 + g % 5], "
    "timestamptz '1969-12-25Z' + g % 15 * interval '1 day', nullif(g % 97, 5), g % 40 - 20, "
    "date '2023-11-30' + g % 60, g / 8.0, g / 4.0, -g * 1e30, g % 3 = 0, "
    "timestamp '0001-01-01' + g * interval '1 hour', decode(repeat('ab', g % 5), 'hex'), ARRAY[g, NULL], "
    "nullif('note ' || g % 7, 'note 3'), "
    "CASE WHEN g % 100 = 0 THEN repeat(md5(g::text), 200) ELSE 'short' END FROM generate_series({first}, {last}) g"
)
COUNT = 600
SETUP = [
    statement.format(t=table, first=1, last=COUNT)
    for table in STORAGE
    for statement in (f"CREATE TABLE {{t}} ({COLUMNS})", "ALTER TABLE {t} ALTER body SET STORAGE EXTERNAL", ROWS)
]
# Waves of transactions; the sink starts after the first one. {t} is the table.
WAVES: list[list[list[str]]] = [
    [
        [
            "UPDATE {t} SET region = 'moved', n = NULL WHERE id % 50 = 1",
            "UPDATE {t} SET posted_at = posted_at - interval '40 days', lane = -lane WHERE id % 50 = 2",
            "DELETE FROM {t} WHERE id % 50 = 3",
        ],
        [f"UPDATE {{t}} SET n = {n}, region = 'r{n}' WHERE id BETWEEN 5 AND 8" for n in range(3)],
        [
            "UPDATE {t} SET region = region WHERE id < 20",
            "INSERT INTO {t} (id, lane) VALUES (9000, 0)",
            # More days than a commit writes files for: some rows share a file without a partition.
            "INSERT INTO moving (id, lane, posted_at) "
            "SELECT 5000 + g, 0, timestamptz '1950-01-01Z' + g * interval '1 day' FROM generate_series(1, 300) g",
        ],
    ],
    [
        [
            "DELETE FROM {t} WHERE id IN (9000, 10)",
            "INSERT INTO {t} (id, lane, region) VALUES (3, 3, 'x'), (10, 1, 'r')",
        ],
        ["UPDATE {t} SET n = -id WHERE id % 50 = 0", "UPDATE {t} SET body = 'short now' WHERE id = 100"],
        ["UPDATE {t} SET region = 'once more', note = NULL WHERE id % 100 = 0"],
        [
            "UPDATE {t} SET id = id + 10000, region = 'keyed' WHERE id % 50 = 6",
            "UPDATE {t} SET id = id - 10000 WHERE id = 10056",
            "UPDATE {t} SET id = 10056 WHERE id = 57",
            # Values that were not sent follow a key that changes where both halves are read together.
            "UPDATE plain SET id = id + 20000, n = 1 WHERE id IN (500, 600)",
        ],
    ],
    [
        [
            "ALTER TABLE {t} ADD COLUMN added text",
            "ALTER TABLE {t} ADD COLUMN graded int NOT NULL DEFAULT 7",
            "UPDATE {t} SET added = 'x', graded = id WHERE id % 20 = 4",
        ],
        [
            "ALTER TABLE {t} ALTER n TYPE bigint, ALTER lane TYPE bigint, ALTER weight TYPE float8, "
            "ALTER fee TYPE numeric(14, 2)",
            "UPDATE {t} SET n = 5000000000 + id, lane = -5000000000, weight = 0.1, fee = 123456789012.34 "
            "WHERE id % 25 = 9",
            "UPDATE {t} SET lane = lane + 1 WHERE id % 25 = 10",
        ],
        ["DELETE FROM {t} WHERE id BETWEEN 200 AND 400"],
    ],
    [
        ["INSERT INTO {t} (id, lane) VALUES (9001, 1)", "TRUNCATE {t}", ROWS.format(t="{t}", first=1, last=400)],
        ["UPDATE {t} SET on_day = NULL, region = 'after' WHERE id % 30 = 2", "DELETE FROM {t} WHERE id % 30 = 3"],
        [
            "ALTER TABLE {t} RENAME COLUMN region TO zone",
            "ALTER TABLE {t} DROP COLUMN note",
            "UPDATE {t} SET zone = zone",
        ],
    ],
]
# Each of these is landed before the next comes. Rows of one partition, in a file each: enough to be merged.
ALIKE = [
    [
        "INSERT INTO {t} (id, lane, zone, posted_at, n, on_day) "
        f"VALUES ({id_}, 1, 'alike', '2026-01-01 12:00Z', 1, '2024-02-02')"
    ]
    for id_ in range(8000, 8000 + FILES_TO_MERGE)
]
LAST = [
    ALIKE[-1],
    ["UPDATE {t} SET zone = 'last', n = n + 1 WHERE id % 100 = 8"],
    ["DELETE FROM {t} WHERE id % 100 = 7", "UPDATE {t} SET zone = 'very last' WHERE id % 100 = 9"],
]
FILTERS = ("region = 'north'", "region IS NULL", "posted_at < '1970-01-01T00:00:00+00:00'", "lane < -10", "n = 50",
           "on_day = '2023-12-05'")  # fmt: skip


@dataclass
class Moment:
    """Copies of the source's tables at a time, by its clock; what was committed last was so after `since`."""

    since: datetime
    at: datetime
    columns: dict[str, list[str]] = field(default_factory=dict)
    rows: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)


def step(capture: Capture, statements: Iterable[str]) -> Moment:
    """A transaction of all tables; then what the source holds."""
    with psycopg.connect(capture.url, options="-c timezone=UTC") as db:
        for statement in statements:
            for table in STORAGE if "{t}" in statement else [""]:
                db.execute(statement.replace("{t}", table))
        since = clock(db)
        db.commit()
        moment = Moment(since, clock(db))
        for table in STORAGE:
            cursor = db.execute(f"SELECT * FROM {table} ORDER BY id")
            moment.columns[table] = [column.name for column in cursor.description or []]
            moment.rows[table] = cursor.fetchall()
    return moment


def clock(db: psycopg.Connection) -> datetime:
    found = db.execute("SELECT clock_timestamp()").fetchone()
    assert found is not None
    at: datetime = found[0]
    return at


async def test_every_form_of_storage(settings: Settings, connect_url: str, tmp_path: Path) -> None:
    one_partition = {
        "topic.creation.groups": "control,single",
        "topic.creation.single.include": ".*[.]plain",
        "topic.creation.single.partitions": "1",
        "topic.creation.single.replication.factor": "-1",
    }
    with captured(settings, connect_url, tmp_path, *SETUP, sink={"compact_every": 2}, **one_partition) as capture:
        declare(capture, tmp_path)
        await asyncio.to_thread(Connect(connect_url).apply, capture.connector)
        await capture.until(lambda: min(capture.sent(table) for table in STORAGE) < COUNT and "not read yet")
        moments = [step(capture, statements) for statements in ([], *WAVES[0])]
        past = [(moment.at, moment) for moment in moments]
        async with running(capture.settings):
            for wave in WAVES[1:]:
                await capture.equal(*STORAGE)
                past.append((datetime.now(UTC), moments[-1]))
                if wave is WAVES[3]:
                    check_partitions(capture)
                moments += [step(capture, statements) for statements in wave]
            await capture.equal(*STORAGE)
            for statements in ALIKE[:-1]:
                moments.append(step(capture, statements))
                await capture.equal(*STORAGE)
        # A process compacts after its first commit; the deletes of further ones are left to the readers.
        seldom = capture.settings.sink.model_copy(update={"compact_every": 1000})
        async with running(capture.settings.model_copy(update={"sink": seldom})) as lifecycle:
            for statements in LAST:
                moments.append(step(capture, statements))
                await capture.equal(*STORAGE)
            await capture.until(lambda: [said for table in STORAGE for said in offences(capture, table)])
            assert [row["reason"] for table in STORAGE for row in capture.quarantined(table)] == []
            assert lifecycle.problems() == {}
        check_past(capture, past)
        for table in STORAGE:
            check_history(capture, table, moments)
        check_readers(capture, tmp_path)


def declare(capture: Capture, folder: Path) -> None:
    contracts = folder / "schemas" / "contracts"
    contracts.mkdir(parents=True)
    fields: list[Row] = [{"name": "id", "type": "int"}]
    fields += [{"name": n, "type": ["null", t], "default": None} for n, t in FIELDS.items() if n != "id"]
    for table, storage in STORAGE.items():
        name = capture.table_name(table)
        contract: Row = {"type": "record", "name": table.title(), "owner": "somebody", "topic": capture.topic(table)}
        contract |= {"key": ["id"], "fields": fields}
        contract |= {"storage": storage | {"table": name, "history": f"{name}_history", "mode": "current"}}
        (contracts / f"{table}.avsc").write_text(json.dumps(contract))


def offences(capture: Capture, table: str) -> list[str]:
    """What `headrace verify` finds wrong with a history and its current state."""
    name, kafka = capture.table_name(table), KafkaReader(capture.settings.kafka)
    topic, lake = capture.topic(table), Lake(capture.settings.lake)
    return history.check_history(lake, topic, kafka.topics()[topic], name, f"{name}_history", patience=0).offences


def check_partitions(capture: Capture) -> None:
    """Reading by what tables are partitioned by finds every row: each is in a file of its partition or of none."""
    specs = [task.file.spec_id for task in existing(capture, "moving").scan().plan_files()]
    assert len(set(specs)) == 2
    for table in ("moving", "spread"):
        for filtered in FILTERS:
            with psycopg.connect(capture.url, options="-c timezone=UTC") as db:
                want = [row[0] for row in db.execute(f"SELECT id FROM {table} WHERE {filtered} ORDER BY id")]
            found = existing(capture, table).scan(row_filter=filtered, selected_fields=("id",)).to_arrow()
            assert sorted(found.column("id").to_pylist()) == want, (table, filtered)
            assert want, filtered


def check_past(capture: Capture, past: list[tuple[datetime, Moment]]) -> None:
    """`headrace sql --as-of` gives what the source held: by the history before there is a snapshot, by a snapshot
    where all had landed."""
    for at, moment in past:
        for table, rows in moment.rows.items():
            sql = f"SELECT {', '.join(moment.columns[table])} FROM {capture.table_name(table)} ORDER BY id"
            found = answer(capture.settings.lake, sql, as_of=at)
            assert found.rows == rows, (table, at)
            assert ("versions in" in str(found.sources)) == (at == moment.at)


def check_history(capture: Capture, table: str, moments: list[Moment]) -> None:
    """Versions and their times are those of the log, and lie where the source's clock says; the past comes back."""
    history = capture.landed(f"{table}_history")
    names = [name for name in history[0] if not name.startswith("_")] + ["_op"]
    names = [name for name in names if name != "graded"]
    want = versions(capture.landed(table, "bronze"))
    assert counted(history, names) == counted(want, names)
    times = {t for row in history if row["_op"] != "r" for t in (row["valid_from"], row["valid_to"]) if t}
    assert not [t for t in times if not any(m.since <= t <= m.at for m in moments)]
    assert len(moments) > 10
    with open_duckdb(capture.settings.lake) as db:
        location = existing(capture, f"{table}_history").metadata_location
        db.execute(f"CREATE TABLE history AS FROM iceberg_scan('{location}')")
        for moment in moments:
            columns = ", ".join(moment.columns[table])
            valid = f"valid_from <= '{moment.at}' AND (valid_to IS NULL OR valid_to > '{moment.at}')"
            found = db.execute(f"SELECT {columns} FROM history WHERE {valid} ORDER BY id").fetchall()
            assert found == moment.rows[table], moment


def counted(rows: Iterable[Row], names: Sequence[str]) -> Counter[str]:
    return Counter(str([str(row[name]) for name in names]) for row in rows)


def versions(changes: list[Row]) -> list[Row]:
    """What a history holds, by the changes as bronze has them, one after the other."""
    found: list[Row] = []
    open_: dict[int, Row] = {}
    gone: Row = {}
    for change in sorted((c for c in changes if c["op"] is not None), key=place):
        before, after = change["before"], change["after"]
        at = EPOCH + timedelta(microseconds=change["source"]["ts_us"])
        keys = list(open_) if change["op"] == "t" else [(after or before)["id"]]
        for key in open_.keys() & keys:
            gone = open_.pop(key)
            gone["valid_to"] = at
        if after:
            kept = {n: gone[n] for n, value in after.items() if value == UNAVAILABLE}
            found.append(after | kept | {"valid_from": at, "valid_to": None, "_op": change["op"]})
            open_[after["id"]] = found[-1]
    return found


def place(change: Row) -> tuple[int, int]:
    if change["op"] == "r":
        return -1, 0
    committed, own = json.loads(change["source"]["sequence"])
    return int(committed or own), change["transaction"]["total_order"]


def check_readers(capture: Capture, folder: Path) -> None:
    """All read the same rows of tables that have position deletes, were compacted, and whose columns changed."""
    tables = {
        ".".join(table.name()): table
        for name in STORAGE
        for table in (existing(capture, name), existing(capture, f"{name}_history"))
    }
    for name, table in tables.items():
        assert any(task.delete_files for task in table.scan().plan_files()), name
        assert "replace" in {s.summary.operation.value for s in table.snapshots() if s.summary}, name
        assert len(table.schemas()) > 2, name
    for name, found in read_by_all(capture.settings.lake, tables, folder).items():
        want = found.pop("pyiceberg")
        assert want
        assert {reader for reader, rows in found.items() if rows != want} == set(), name
        assert len(found) == 5


def existing(capture: Capture, name: str) -> Table:
    found = capture.table(name)
    assert found is not None
    return found
