"""MariaDB and MySQL as a source: the files of the binary log, statistics, the signalling table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pymysql
from pymysql.constants import CR, ER
from pymysql.cursors import Cursor

from connectors.source import Column, LogState
from headrace.errors import ConfigError, UnavailableError
from headrace.mysql import connect, quoted

# What passes: the connection broke, the server goes down, another session holds a lock.
PASSING = (CR.CR_SERVER_GONE_ERROR, CR.CR_SERVER_LOST, ER.SERVER_SHUTDOWN, ER.LOCK_WAIT_TIMEOUT, ER.LOCK_DEADLOCK)

# MariaDB's: domain, server, number.
GTID = re.compile(r"(\d+)-(\d+)-(\d+)")
SPARE_FILES = 100


class BinlogSource:
    """The binary log of the server at `url`. See `connectors.source.Source`.

    The server keeps it by size and age, not for a connector: `kept_bytes` is all of it, and nothing is dropped by
    `forget`. That it is another log (RESET MASTER, another server) shows as long as what was read last is beyond its
    end, by place or by GTID of MariaDB: a log that has grown past both looks like the one that was read.
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
            # MySQL has no such variable.
            cursor.execute("SHOW GLOBAL VARIABLES LIKE 'gtid_binlog_pos'")
            reached = cursor.fetchone()
        gtids = None if reached is None else str(reached[1])
        return LogState(kept_bytes=sum(files.values()), status="kept", files=files, gtids=gtids)

    def behind(self, log: LogState, offset: Mapping[str, Any]) -> LogState:
        number = _number(offset)
        if number is None or number < _oldest(log):
            return log
        ahead = sum(size for name, size in log.files.items() if _numbered(name) >= number)
        return replace(log, lag_bytes=max(0, ahead - int(offset.get("pos") or 0)))

    def missing(self, log: LogState, offset: Mapping[str, Any]) -> str:
        number = _number(offset)
        if number is None:
            return ""
        if number < _oldest(log):
            return (
                f"the server has purged {offset['file']} of its binary log, which the connector was reading, "
                "and the changes in it"
            )
        place = int(offset.get("pos") or 0)
        size = next((size for name, size in log.files.items() if _numbered(name) == number), 0)
        unknown = f"{offset['file']}:{place}" if place > size else _unreached(log, offset)
        if not unknown:
            return ""
        return (
            f"the server's binary log does not reach {unknown}, which the connector has read: it was begun anew "
            "(RESET MASTER), or is another server's, and changes in between are missing"
        )

    def obstacle(self, log: LogState, offset: Mapping[str, Any]) -> str:
        number = _number(offset)
        if number is None or number < max(map(_numbered, log.files), default=0):
            return ""
        if not self.missing(log, offset):
            return ""
        # Changes were read beyond the offset, which Connect keeps once in a while.
        return f"its places must go on above those that were read: RESET MASTER TO {number + SPARE_FILES}"

    def forget(self) -> None:
        """Nothing: the server keeps nothing for a connector."""

    def nameless(self) -> dict[str, str]:
        return {}

    def columns(self) -> list[Column]:
        with self._database() as cursor:
            cursor.execute(
                "SELECT CONCAT(table_schema, '.', table_name), column_name, data_type FROM information_schema.columns"
                " WHERE data_type IN ('inet4', 'inet6') ORDER BY 1, 2"
            )
            return [Column(table, name, kind) for table, name, kind in cursor.fetchall()]

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

    def signalled(self, table: str, number: str) -> dict[str, Any] | None:
        with self._database() as cursor:
            cursor.execute(f"SELECT data FROM {quoted(*table.split('.'))} WHERE id = %s", (number,))
            row = cursor.fetchone()
        return None if row is None else json.loads(row[0])


def _oldest(log: LogState) -> int:
    return min(map(_numbered, log.files), default=0)


def _unreached(log: LogState, offset: Mapping[str, Any]) -> str:
    """A GTID that was read and that its server, or anybody in its domain, has not written in this log."""
    if log.gtids is None:
        return ""
    held = {domain: (server, int(number)) for domain, server, number in GTID.findall(log.gtids)}
    for domain, server, number in GTID.findall(str(offset.get("gtids") or "")):
        # Numbers of two servers in one domain need not follow each other.
        if domain not in held or (held[domain][0] == server and held[domain][1] < int(number)):
            return f"{domain}-{server}-{number}"
    return ""


def _number(offset: Mapping[str, Any]) -> int | None:
    return _numbered(str(offset["file"])) if offset.get("file") else None


def _numbered(file: str) -> int:
    return int(file.rpartition(".")[2])
