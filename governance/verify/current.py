"""Current-state tables against the database, row by row, while it goes on changing.

The table is read first, at its cut. Then the database is read in one transaction that sees a fixed set of changes: of
other transactions (PostgreSQL's `pg_current_snapshot`), or of the log up to a place (MariaDB). Whatever those changed
after the table's cut is taken from Kafka and applied to the copy in hand; then both must be equal. The feed is still
arriving, so a difference is looked at again for a bounded time before it counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
import pyarrow as pa
from psycopg import sql

from governance.verify import mariadb
from governance.verify.added import Added
from governance.verify.avro import Schemas
from governance.verify.kafka import KafkaReader, Record
from governance.verify.lake import Lake, Table
from governance.verify.postgres import OPTIONS, Forms, types_of
from governance.verify.report import Check
from governance.verify.states import META, NOWHERE, Keyed, Keyless, is_incremental, sent
from headrace.errors import DecodeError, UnavailableError
from headrace.mysql import is_mysql
from schemas.envelope import UNSEEN_MS, row_schema
from schemas.names import field_name, is_schema_of, is_topic_of, table_name


@dataclass(frozen=True)
class Visible:
    """PostgreSQL's pg_snapshot: which transactions a reader sees. See the manual, "Transaction ID and Snapshot"."""

    xmin: int
    xmax: int
    running: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Visible:
        xmin, xmax, running = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(int(x) for x in running.split(",") if x))

    def shows(self, event: dict[str, Any]) -> bool:
        """Whether a reader sees the change."""
        xid = event["source"].get("txId")
        return xid is None or self.sees(xid)

    def sees(self, xid: int) -> bool:
        """`xid` as Debezium reports it: its low 32 bits."""
        full = (self.xmax & ~0xFFFFFFFF) | (xid & 0xFFFFFFFF)
        if full > self.xmax + (1 << 31):
            full -= 1 << 32
        return full < self.xmax and full not in self.running


@dataclass(frozen=True)
class DatabaseRows:
    """Columns have the names of the fields that hold them in change events."""

    visible: Visible | mariadb.Visible
    rows: list[dict[str, Any]]
    key: tuple[str, ...]
    # Of each column; none where there is no such table.
    types: dict[str, str]


def source_of(url: str, topic: str) -> tuple[str, str]:
    """Schema and name of the table whose changes a topic has. Raises `UnavailableError`."""
    schema, name = topic.split(".")[-2:]
    listed = "SELECT table_schema, table_name FROM information_schema.tables"
    try:
        if is_mysql(url):
            found = mariadb.tables(url, listed)
        else:
            with psycopg.connect(url) as connection:
                found = connection.execute(listed).fetchall()
    except psycopg.OperationalError as e:
        raise UnavailableError("the source database cannot be reached", where=topic) from e
    named = [(schema, name), *((s, t) for s, t in found if is_topic_of(topic, f"{s}.{t}"))]
    return next((table for table in named if table in found), (schema, name))


def read_database(url: str, schema: str, name: str) -> DatabaseRows:
    """All rows of one table at one moment, with its primary key. Raises `UnavailableError`."""
    visible, rows, key, types = (mariadb.read if is_mysql(url) else _read_postgres)(url, schema, name)
    names = {column: field_name(column) for column in types}
    return DatabaseRows(
        visible,
        [{names[column]: value for column, value in row.items()} for row in rows],
        tuple(names[column] for column in key),
        {names[column]: type_ for column, type_ in types.items()},
    )


def _read_postgres(
    url: str, schema: str, name: str
) -> tuple[Visible, list[dict[str, Any]], tuple[str, ...], dict[str, str]]:
    try:
        with psycopg.connect(url, options=OPTIONS) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            snapshot = connection.execute("SELECT pg_current_snapshot()::text").fetchone()
            assert snapshot is not None
            keys = connection.execute(
                "SELECT a.attname FROM pg_index i JOIN LATERAL unnest(i.indkey) WITH ORDINALITY k(n, o) ON true "
                "JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.n "
                "WHERE i.indrelid = %s::regclass AND i.indisprimary ORDER BY k.o",
                [f'"{schema}"."{name}"'],
            ).fetchall()
            types = types_of(connection, schema, name)
            with connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
                cursor.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(schema, name)))
                rows = cursor.fetchall()
    except psycopg.OperationalError as e:
        raise UnavailableError("the source database cannot be reached", where=f"{schema}.{name}") from e
    except psycopg.errors.UndefinedTable:
        rows, keys, snapshot, types = [], [], ("0:0:",), {}
    return Visible.parse(snapshot[0]), rows, tuple(k[0] for k in keys), types


def forms_of(url: str, types: Mapping[str, str], lake: Mapping[str, pa.DataType]) -> Forms | mariadb.Forms:
    """How columns of a database's table compare with those of its table in the lake."""
    return (mariadb.Forms if is_mysql(url) else Forms)(types, lake)


def _changes(
    kafka: KafkaReader, schemas: Schemas, topic: str, start: dict[int, int], end: Mapping[int, int] | None = None
) -> list[tuple[Record, dict[str, Any]]]:
    """Change events from `start` to `end`, or to the end of each partition; `start` is moved there. `schema` of each is
    its writer's, `fields` are those of its row, by name. Records under a schema of another topic are none."""
    found = []
    for partition, offset in list(start.items()):
        high = kafka.bounds(topic, partition)[1] if end is None else end[partition]
        for record in kafka.read(topic, partition, offset, high):
            if record.value is None:
                continue
            try:
                event, schema = schemas.read(record.value)
            except DecodeError:
                continue
            if not (isinstance(schema, dict) and is_schema_of(topic, schema.get("name", ""))):
                continue
            fields = {field["name"]: field for field in row_schema(schema)["fields"]}
            found.append((record, event | {"schema": schema, "fields": fields}))
        start[partition] = max(high, offset)
    return found


def _in_log_order(
    found: list[tuple[Record, dict[str, Any]]],
) -> list[tuple[Record, dict[str, Any], tuple[int, int] | None]]:
    """Changes with their positions, in the order of the database's log across partitions and of offsets within each: a
    truncate is in one partition and is of all."""
    reached: dict[int, tuple[int, int]] = {}
    placed = []
    for record, event in found:
        position = _position(event)
        reached[record.partition] = max(position or NOWHERE, reached.get(record.partition, NOWHERE))
        placed.append((reached[record.partition], record, event, position))
    placed.sort(key=lambda one: one[0])
    return [(record, event, position) for _, record, event, position in placed]


def _position(event: dict[str, Any]) -> tuple[int, int] | None:
    if event["source"].get("file") is not None:
        return mariadb.position(event)
    order = (event.get("transaction") or {}).get("total_order")
    if order is None:
        return None
    # The first transaction of a new slot has no commit before it: its own position stands in.
    return int(_commit_before(event) or event["source"].get("lsn") or 0), order


def _commit_before(event: dict[str, Any]) -> str | None:
    """Where the commit is in the log that was streamed last."""
    first: str | None = (json.loads(event["source"].get("sequence") or "[null]") or [None])[0]
    return first


def _place(event: dict[str, Any]) -> tuple[int, int]:
    """What orders a change among those of other partitions; a row of a snapshot is where the log ended then, or behind
    the commit that was streamed last."""
    if event["op"] != "r":
        return _position(event) or NOWHERE
    source = event["source"]
    if source.get("file") is not None:
        file, at = mariadb.place(source)
        return (file << 32) + at, -1
    return int(source.get("lsn") or _commit_before(event) or -1), -1


def check_current(
    kafka: KafkaReader,
    schemas: Schemas,
    lake: Lake,
    topic: str,
    partitions: int,
    table: Table,
    database_url: str,
    *,
    patience: float = 60.0,
) -> Check:
    """The table equals the database at one moment; keyless tables as multisets.

    Columns of the database that no change has ever had, as those that a connector leaves out, do not count; the note
    names them. Rows of a table that the database has not, or no more, are one offence.
    """
    schema, name = source_of(database_url, topic)
    check = Check(topic, f"{table.name} equals {schema}.{name}")
    held = list(lake.rows(f"SELECT * FROM {lake.scan(table)}")) if table.columns else []
    database = read_database(database_url, schema, name)
    if held and not database.types:
        check.offend(topic, f"the database has no table {schema}.{name}: dropped, or is databases.* another database?")
        return check
    columns = _columns(lake, table)
    known = _sent(lake, topic) | columns.keys()
    forms = forms_of(database_url, database.types, columns)

    def compared(row: dict[str, Any]) -> dict[str, Any]:
        """Without what the database has no more: a column that was dropped stays in the table."""
        names = database.types
        return forms.held({n: v for n, v in row.items() if not names or n in names or n in META})

    expected = [forms.expected(row) for row in database.rows]
    start = {p: max(table.offsets(topic).get(p, 0), kafka.bounds(topic, p)[0]) for p in range(partitions)}
    applied: dict[int, tuple[int, int]] = {}
    for partition in range(partitions):
        text = table.properties.get(f"headrace.position.{topic}.{partition}", "")
        if ":" in text:
            lsn, order = text.split(":")
            applied[partition] = (int(lsn), int(order))
    key = database.key or tuple(filter(None, table.properties.get("headrace.key", "").split(",")))
    floor = table.properties.get(f"headrace.floor.{topic}", "-1:-1").split(":")
    held = [compared(row) for row in held]
    state = (Keyed(key, held) if key else Keyless(held)).raised((int(floor[0]), int(floor[1])))
    added = Added(columns, table.properties)
    deadline = time.monotonic() + patience
    cut: dict[int, int] | None = dict(start)
    while True:
        found = _changes(kafka, schemas, topic, start)
        read = [sent(event) for _, event in found if is_incremental(event)]
        if read and cut is not None:
            # They may be older than changes which the table has.
            since = min(read) - UNSEEN_MS
            before = _changes(kafka, schemas, topic, {p: kafka.offset_at(topic, p, since) for p in cut}, cut)
            state.recall((r, e | {side: compared(row) for side, row in _rows(e).items()}) for r, e in before)
            cut = None
        for record, event, position in _in_log_order(found):
            if position is not None:
                if position <= applied.get(record.partition, NOWHERE):
                    continue
                applied[record.partition] = position
            fields, place = event["fields"], _place(event)
            known |= fields.keys()
            # Also by a change that the database's rows are too old for: `compared` knows the columns that they have.
            if learned := added.learn(fields):
                state.fill(compared(learned))
            event |= {side: compared(added.filled(row, fields)) for side, row in _rows(event).items()}
            if not state.stale(event) and (event["op"] == "r" or database.visible.shows(event)):
                state.apply(record, event, place)
        if absent := (database.types.keys() - known - set(key)) if known else set():
            check.note = f"columns that no change has had, left out: {', '.join(sorted(absent))}"
        wanted = [{n: v for n, v in row.items() if n not in absent} for row in expected] if absent else expected
        if not state.differs(wanted) or time.monotonic() > deadline:
            break
        time.sleep(1.0)
    check.compared = len(wanted)
    state.report(check, topic, wanted)
    return check


def _sent(lake: Lake, topic: str) -> set[str]:
    """Columns that rows of the topic's changes have had, as far as bronze says."""
    bronze = lake.table(table_name("bronze", topic))
    after = _columns(lake, bronze).get("after") if bronze else None
    return {field.name for field in after} if after is not None and pa.types.is_struct(after) else set()


def _rows(event: dict[str, Any]) -> dict[str, Any]:
    return {side: row for side in ("before", "after") if (row := event.get(side))}


def _columns(lake: Lake, table: Table) -> dict[str, pa.DataType]:
    if not table.columns:
        return {}
    schema = lake.execute(f"SELECT * FROM {lake.scan(table)} LIMIT 0").to_arrow_reader().schema
    return {field.name: field.type for field in schema}
