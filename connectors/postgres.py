"""PostgreSQL as a source: its replication slot, its statistics, its signalling table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from connectors.source import Column, LogState
from headrace.errors import ConfigError, UnavailableError

CONNECT_SECONDS = 5
SLOT = """
SELECT coalesce(wal_status, 'lost'), safe_wal_size, (pg_current_wal_lsn() - restart_lsn)::bigint,
       (pg_current_wal_lsn() - confirmed_flush_lsn)::bigint, (confirmed_flush_lsn - '0/0')::bigint
FROM pg_replication_slots WHERE slot_name = %s
"""
# Columns that an index only includes are not part of an identity.
NAMELESS = """
SELECT n.nspname || '.' || c.relname, format('ALTER TABLE %I.%I REPLICA IDENTITY DEFAULT', n.nspname, c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_index i ON i.indrelid = c.oid AND i.indisreplident JOIN pg_index p ON p.indrelid = c.oid AND p.indisprimary
WHERE c.relreplident = 'i'
  AND NOT (p.indkey::int2[])[0:p.indnkeyatts - 1] <@ (i.indkey::int2[])[0:i.indnkeyatts - 1] ORDER BY 1
"""
# Plain types are carried, so arrays, types of extensions and domains are all that is asked for.
COLUMNS = """
SELECT n.nspname || '.' || c.relname, a.attname,
       CASE WHEN t.typtype = 'd' THEN format_type(t.typbasetype, t.typtypmod) ELSE format_type(t.oid, a.atttypmod) END,
       c.relreplident = 'f'
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_type t ON t.oid = a.atttypid AND (t.typtype = 'd' OR t.typcategory IN ('A', 'U'))
WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
UNION ALL
SELECT '', n.nspname || '.' || t.typname, 'domain over an enum', true
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.typtype = 'd' AND t.typcategory = 'E'
ORDER BY 1, 2
"""


class PostgresSource:
    """A connector's slot and publication in the database at `url`. See `connectors.source.Source`."""

    def __init__(self, url: str, slot: str, publication: str) -> None:
        self._url = url
        self.slot = slot
        self.publication = publication

    @contextmanager
    def _database(self) -> Iterator[psycopg.Connection]:
        where = f"source database of slot {self.slot}"
        try:
            with psycopg.connect(self._url, autocommit=True, connect_timeout=CONNECT_SECONDS) as connection:
                yield connection
        except psycopg.OperationalError as e:
            raise UnavailableError(str(e).strip().splitlines()[0], where=where) from e
        except psycopg.Error as e:
            raise ConfigError(str(e).strip().splitlines()[0], where=where) from e

    def log(self) -> LogState:
        with self._database() as db:
            row = db.execute(SLOT, (self.slot,)).fetchone()
        if row is None:
            return LogState(status="missing")
        status, safe, kept, lag, confirmed = row
        return LogState(lag, kept, safe, status, confirmed=confirmed)

    def missing(self, log: LogState, offset: Mapping[str, Any]) -> str:
        read = offset.get("lsn_proc") or offset.get("lsn")
        if log.status == "missing":
            # Before its first record a connector is about to make its slot.
            return f"replication slot {self.slot} is gone, and the changes since with it" if offset else ""
        if log.status == "lost":
            return f"replication slot {self.slot} is lost: the database has removed log that it still needed"
        if read is not None and log.confirmed is not None and log.confirmed > int(read):
            return (
                f"replication slot {self.slot} begins after what was read last: it was made anew, and the changes "
                "in between are missing"
            )
        return ""

    def obstacle(self, log: LogState, offset: Mapping[str, Any]) -> str:
        return ""

    def behind(self, log: LogState, offset: Mapping[str, Any]) -> LogState:
        return log

    def forget(self) -> None:
        with self._database() as db:
            db.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s",
                (self.slot,),
            )

    def nameless(self) -> dict[str, str]:
        with self._database() as db:
            return dict(db.execute(NAMELESS).fetchall())

    def columns(self) -> list[Column]:
        with self._database() as db:
            return [Column(*row) for row in db.execute(COLUMNS).fetchall()]

    def estimated_rows(self, table: str) -> int | None:
        with self._database() as db:
            # By name and not by `to_regclass`, which folds case as an unquoted name does.
            row = db.execute(
                "SELECT c.reltuples::bigint FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
                " WHERE n.nspname || '.' || c.relname = %s",
                (table,),
            ).fetchone()
        return int(row[0]) if row is not None and row[0] >= 0 else None

    def prepare_signals(self, table: str) -> None:
        with self._database() as db:
            if db.execute("SELECT to_regclass(%s)", (table,)).fetchone() == (None,):
                columns = sql.SQL("CREATE TABLE {} (id varchar(64) PRIMARY KEY, type varchar(32) NOT NULL, data text)")
                db.execute(columns.format(sql.Identifier(*table.split("."))))

    def signal(self, table: str, number: str, kind: str, data: Mapping[str, Any]) -> None:
        place = sql.Identifier(*table.split("."))
        published = "SELECT 1 FROM pg_publication_tables WHERE pubname = %s AND schemaname = %s AND tablename = %s"
        with self._database() as db:
            if db.execute(published, (self.publication, *table.split("."))).fetchone() is None:
                raise ConfigError(
                    f"publication {self.publication} lacks the signalling table, so a signal would not be read",
                    where=table,
                    hint=f"ALTER PUBLICATION {self.publication} ADD TABLE {table}; "
                    "then headrace connect restart NAME --all",
                )
            # Debezium deletes its own rows; those of earlier signals are of no more use.
            db.execute(sql.SQL("DELETE FROM {} WHERE id LIKE 'headrace-%'").format(place))
            insert = sql.SQL("INSERT INTO {} (id, type, data) VALUES (%s, %s, %s)").format(place)
            db.execute(insert, (number, kind, json.dumps(data)))

    def signalled(self, table: str, number: str) -> dict[str, Any] | None:
        asked = sql.SQL("SELECT data FROM {} WHERE id = %s").format(sql.Identifier(*table.split(".")))
        with self._database() as db:
            row = db.execute(asked, (number,)).fetchone()
        return None if row is None else json.loads(row[0])
