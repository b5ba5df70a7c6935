"""MariaDB as the database that current-state tables are compared with.

A transaction that begins WITH CONSISTENT SNAPSHOT says up to which position of the binary log it sees; see MariaDB's
documentation of START TRANSACTION and of the status variables `binlog_snapshot_file` and `binlog_snapshot_position`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import time, timedelta
from typing import Any

import pyarrow as pa
import pymysql

from governance.verify.values import canonical, single
from headrace.errors import ContractError, UnavailableError
from headrace.mysql import connect


@dataclass(frozen=True)
class Visible:
    """All of the log before this place."""

    file: int
    position: int

    def shows(self, event: dict[str, Any]) -> bool:
        """Whether a reader sees the change."""
        return place(event["source"]) < (self.file, self.position)


@dataclass(frozen=True)
class Forms:
    """How the columns of one table compare: by the type that the table in the lake has."""

    lake: Mapping[str, pa.DataType]

    def expected(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row of the database in the table's form."""
        return {name: _in_table(value, self.lake.get(name, pa.null())) for name, value in row.items()}

    def held(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row of the table, or of an event in canonical form: it compares as it is."""
        return dict(row)


def _in_table(value: Any, lake: pa.DataType) -> Any:
    if isinstance(value, float) and pa.types.is_float32(lake):
        value = single(value)
    if pa.types.is_string(lake) and not isinstance(value, str | type(None)):
        value = json.dumps(value) if isinstance(value, dict | list) else str(value)
    return canonical(value)


def place(source: dict[str, Any]) -> tuple[int, int]:
    """(number of the log file, position in it) of an event."""
    return int(source["file"].rpartition(".")[2]), source["pos"]


def position(event: dict[str, Any]) -> tuple[int, int] | None:
    """The position of a change as the tables' properties have it; None for a row of a snapshot."""
    if event["op"] == "r":
        return None
    file, at = place(event["source"])
    within = 0 if event["op"] == "t" else 2 * event["source"]["row"] + (event["op"] != "d")
    return (file << 32) + at, within


def read(
    url: str, schema: str, name: str
) -> tuple[Visible, list[dict[str, Any]], tuple[str, ...], frozenset[str] | None]:
    """All rows of one table at one moment, with its primary key and its columns; none when there is no such table.

    Raises `UnavailableError`, and `ContractError` for a server that does not say what a snapshot sees: MySQL.
    """
    with connect(url) as connection, connection.cursor() as cursor:
        try:
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
            cursor.execute("SHOW STATUS LIKE 'binlog_snapshot_%'")
            said = {str(key).lower(): str(value) for key, value in cursor.fetchall()}
            if not said.get("binlog_snapshot_file"):
                raise ContractError(
                    "the server does not say up to which change a snapshot sees",
                    where=f"{schema}.{name}",
                    hint="MariaDB does",
                )
            cursor.execute(
                "SELECT column_name FROM information_schema.key_column_usage "
                "WHERE table_schema = %s AND table_name = %s AND constraint_name = 'PRIMARY' ORDER BY ordinal_position",
                (schema, name),
            )
            key = tuple(str(row[0]) for row in cursor.fetchall())
            cursor.execute(f"SELECT * FROM {_quoted(schema)}.{_quoted(name)}")
            columns = [str(column[0]) for column in cursor.description]
            rows = [dict(zip(columns, map(_value, row), strict=True)) for row in cursor.fetchall()]
        except pymysql.err.ProgrammingError as e:
            if e.args[0] != pymysql.constants.ER.NO_SUCH_TABLE:
                raise
            rows, key, columns = [], (), []
        except pymysql.OperationalError as e:
            raise UnavailableError("the source database cannot be read", where=f"{schema}.{name}") from e
    file, at = said["binlog_snapshot_file"], int(said["binlog_snapshot_position"])
    return Visible(*place({"file": file, "pos": at})), rows, key, frozenset(columns) or None


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _value(value: Any) -> Any:
    """PyMySQL's TIME is an interval; in a table it is a time of day, as far as it is one."""
    if isinstance(value, timedelta) and timedelta(0) <= value < timedelta(days=1):
        seconds, micros = divmod(value // timedelta(microseconds=1), 1_000_000)
        return time(seconds // 3600, seconds // 60 % 60, seconds % 60, micros)
    return value
