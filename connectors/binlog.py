"""MariaDB and MySQL as a source: the files of the binary log, statistics, the signalling table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pymysql
from pymysql.constants import CR, ER
from pymysql.cursors import Cursor

from connectors.source import LogState
from headrace.errors import ConfigError, UnavailableError
from headrace.mysql import connect, quoted

# What passes: the connection broke, the server goes down, another session holds a lock.
PASSING = (CR.CR_SERVER_GONE_ERROR, CR.CR_SERVER_LOST, ER.SERVER_SHUTDOWN, ER.LOCK_WAIT_TIMEOUT, ER.LOCK_DEADLOCK)


class BinlogSource:
    """The binary log of the server at `url`. See `connectors.source.Source`.

    The server keeps it by size and age, not for a connector: `kept_bytes` is all of it, and nothing is dropped by
    `forget`. That the log was numbered anew (RESET MASTER, another server) is not seen here.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    @contextmanager
    def _database(self) -> Iterator[Cursor]:
        with connect(self._url) as connection, connection.cursor() as cursor:
            try:
                yield cursor
                connection.commit()
            except pymysql.MySQLError as e:
                where = f"source database at {urlsplit(self._url).hostname}"
                if e.args[0] in PASSING:
                    raise UnavailableError(str(e.args[-1]), where=where) from e
                raise ConfigError(str(e.args[-1]), where=where, hint="see docs/mariadb.md") from e

    def log(self) -> LogState:
        with self._database() as cursor:
            cursor.execute("SHOW BINARY LOGS")
            files = {str(row[0]): int(row[1]) for row in cursor.fetchall()}
        return LogState(kept_bytes=sum(files.values()), status="kept", files=files)

    def behind(self, log: LogState, offset: Mapping[str, Any]) -> LogState:
        number = _number(offset)
        if number is None or self.missing(log, offset):
            return log
        ahead = sum(size for name, size in log.files.items() if _numbered(name) >= number)
        return replace(log, lag_bytes=max(0, ahead - int(offset.get("pos") or 0)))

    def missing(self, log: LogState, offset: Mapping[str, Any]) -> str:
        number = _number(offset)
        if number is None or number >= min(map(_numbered, log.files), default=0):
            return ""
        return (
            f"the server has purged {offset['file']} of its binary log, which the connector was reading, "
            "and the changes in it"
        )

    def forget(self) -> None:
        """Nothing: the server keeps nothing for a connector."""

    def estimated_rows(self, table: str) -> int | None:
        with self._database() as cursor:
            cursor.execute(
                "SELECT table_rows FROM information_schema.tables WHERE table_schema = %s AND table_name = %s",
                table.split("."),
            )
            row = cursor.fetchone()
        return None if row is None or row[0] is None else int(row[0])

    def prepare_signals(self, table: str) -> None:
        with self._database() as cursor:
            columns = "id varchar(64) PRIMARY KEY, type varchar(32) NOT NULL, data text"
            cursor.execute("SELECT 1 FROM information_schema.tables WHERE CONCAT(table_schema, '.', table_name) = %s",
                           (table,))  # fmt: skip
            if cursor.fetchone() is None:
                cursor.execute(f"CREATE TABLE {quoted(*table.split('.'))} ({columns})")

    def signal(self, table: str, number: str, kind: str, data: Mapping[str, Any]) -> None:
        place = quoted(*table.split("."))
        with self._database() as cursor:
            # Debezium deletes its own rows; those of earlier signals are of no more use.
            cursor.execute(f"DELETE FROM {place} WHERE id LIKE 'headrace-%%'", ())
            values = (number, kind, json.dumps(data))
            cursor.execute(f"INSERT INTO {place} (id, type, data) VALUES (%s, %s, %s)", values)


def _number(offset: Mapping[str, Any]) -> int | None:
    return _numbered(str(offset["file"])) if offset.get("file") else None


def _numbered(file: str) -> int:
    return int(file.rpartition(".")[2])
