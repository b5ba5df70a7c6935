"""Rows of a Postgres database: batches in transactions, fenced.

Each transaction raises the sync's version in the table `headrace_syncs` of the target, or finds that another process
has raised it further and writes nothing. So a process that was thought dead cannot overwrite what came after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from headrace.errors import FencedError, TerminalError, UnavailableError
from sinks.reverse.declaration import Sync
from sinks.reverse.fold import Change
from sinks.reverse.targets.base import RESPONSE_LENGTH, Done, Failed, Outcome, Refused

FENCE = """CREATE TABLE IF NOT EXISTS headrace_syncs (
  name text PRIMARY KEY, version bigint NOT NULL, written_at timestamptz NOT NULL DEFAULT now())"""
RAISE = """INSERT INTO headrace_syncs (name, version) VALUES (%s, %s)
ON CONFLICT (name) DO UPDATE SET version = excluded.version, written_at = now()
WHERE headrace_syncs.version <= excluded.version RETURNING version"""

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


class SqlTarget:
    def __init__(self, sync: Sync, url: str) -> None:
        assert sync.sql is not None
        self._sync = sync
        self._prepare = sync.sql.prepare
        self._url = url.replace("+psycopg", "", 1)
        self._connection: Connection | None = None
        self._columns = [*sync.columns]
        table = sql.Identifier(*sync.sql.table.split("."))
        self._upsert = self._insert(table)
        self._delete = sql.SQL("DELETE FROM {} WHERE {}").format(
            table, sql.SQL(" AND ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in sync.key)
        )

    def _insert(self, table: sql.Identifier) -> sql.Composed:
        names, key = self._columns, self._sync.key
        out = sql.SQL("INSERT INTO {} ({}) VALUES ({}) ").format(
            table,
            sql.SQL(", ").join(map(sql.Identifier, names)),
            sql.SQL(", ").join(sql.Placeholder() for _ in names),
        )
        rest = [name for name in names if name not in key]
        if self._sync.mode == "events" or not rest:
            return out + sql.SQL("ON CONFLICT DO NOTHING")
        new = (sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in rest)
        conflict = sql.SQL("ON CONFLICT ({}) DO UPDATE SET {}")
        return out + conflict.format(sql.SQL(", ").join(map(sql.Identifier, key)), sql.SQL(", ").join(new))

    async def open(self) -> None:
        await self._connect()

    async def _connect(self) -> Connection:
        if self._connection is not None and not self._connection.broken and not self._connection.closed:
            return self._connection
        try:
            connection: Connection = await psycopg.AsyncConnection.connect(
                self._url, autocommit=True, connect_timeout=max(2, int(self._sync.timeout))
            )
        except psycopg.OperationalError as e:
            raise UnavailableError(_first_line(e), where=f"target {self._sync.target}") from e
        try:
            await connection.execute("SELECT set_config('statement_timeout', %s, false)", (self._milliseconds(),))
            if self._prepare:
                await connection.execute(self._prepare.encode())
            if self._sync.mode != "events":
                await connection.execute(FENCE)
        except psycopg.Error as e:
            await connection.close()
            raise self._error(e) from e
        self._connection = connection
        return connection

    def _milliseconds(self) -> str:
        return str(int(self._sync.timeout * 1000))

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def send(self, changes: Sequence[Change]) -> list[Outcome]:
        try:
            connection = await self._connect()
            try:
                async with connection.transaction():
                    await self._fence(connection, changes)
                    for statement, rows in self._statements(changes):
                        await connection.cursor().executemany(statement, rows)
                return [Done()] * len(changes)
            except (psycopg.DataError, psycopg.IntegrityError):
                return await self._one_by_one(connection, changes)
        except UnavailableError as e:
            return [Failed(e.what)] * len(changes)
        except psycopg.Error as e:
            error = self._error(e)
            if isinstance(error, UnavailableError):
                return [Failed(error.what)] * len(changes)
            raise error from e

    async def _one_by_one(self, connection: Connection, changes: Sequence[Change]) -> list[Outcome]:
        """Some row does not fit: find out which, and write the others."""
        outcomes: list[Outcome] = []
        async with connection.transaction():
            await self._fence(connection, changes)
            for change in changes:
                statement, rows = next(self._statements([change]))
                try:
                    async with connection.transaction():
                        await connection.execute(statement, rows[0])
                except (psycopg.DataError, psycopg.IntegrityError) as e:
                    outcomes.append(Refused(f"{e.sqlstate}: {e}"[:RESPONSE_LENGTH]))
                else:
                    outcomes.append(Done())
        return outcomes

    async def _fence(self, connection: Connection, changes: Sequence[Change]) -> None:
        if self._sync.mode == "events":
            return
        version = max(change.version for change in changes)
        raised = await connection.execute(RAISE, (self._sync.name, version))
        if await raised.fetchone() is None:
            raise FencedError(f"a later version than {version} has been written", where=f"sync {self._sync.name}")

    def _statements(self, changes: Sequence[Change]) -> Iterator[tuple[sql.Composed, list[list[Any]]]]:
        """Runs of equal operations, in order."""
        for delete, run in groupby(changes, lambda change: change.op == "delete"):
            names = self._sync.key if delete else self._columns
            rows = [[_adapt(change.row[name]) for name in names] for change in run]
            yield (self._delete if delete else self._upsert), rows

    def _error(self, e: psycopg.Error) -> UnavailableError | TerminalError:
        """Lost connections, deadlocks, full or stopping servers, timeouts pass; what is left is the declaration's."""
        state = e.sqlstate or ""
        where = f"sync {self._sync.name}: target {self._sync.target}"
        passing = isinstance(e, psycopg.OperationalError | psycopg.InterfaceError) and not state.startswith("42")
        if passing or state[:2] in ("08", "40", "53", "55", "57", "58"):
            return UnavailableError(_first_line(e), where=where)
        hint = "" if not state.startswith("42") else "does the table have these columns, and may the user write it?"
        return TerminalError(_first_line(e), where=where, hint=hint)


def _adapt(value: Any) -> Any:
    return Jsonb(value) if isinstance(value, dict | list) else value


def _first_line(e: Exception) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0]
