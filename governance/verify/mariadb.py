"""MariaDB as the database that current-state tables are compared with.

A transaction that begins WITH CONSISTENT SNAPSHOT says up to which position of the binary log it sees; see MariaDB's
documentation of START TRANSACTION and of the status variables `binlog_snapshot_file` and `binlog_snapshot_position`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pymysql

from governance.verify.values import EPOCH, canonical, number_text, single
from headrace.errors import ContractError, UnavailableError
from headrace.mysql import connect, quoted

_DATED = {"date", "datetime", "timestamp"}
_SPATIAL = {"point", "linestring", "polygon", "multipoint", "multilinestring", "multipolygon", "geometrycollection",
            "geometry"}  # fmt: skip


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
    """How the columns of one table compare: by MariaDB's type and by that of the table in the lake."""

    types: Mapping[str, str]
    lake: Mapping[str, pa.DataType]

    def expected(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row of the database in the table's form."""
        return {
            name: from_mariadb(value, self.types[name], self.lake.get(name, pa.null())) for name, value in row.items()
        }

    def held(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row of the table, or of an event in canonical form, made to compare with it."""
        return {name: _comparable(value, self.types.get(name, "")) for name, value in row.items()}


def _comparable(value: Any, type_: str) -> Any:
    """One form for what arrives in two: bits with zeros at their end and without, a zero timestamp as NULL and as the
    second before the first that the type holds."""
    if type_ == "bit" and isinstance(value, bytes):
        return value.rstrip(b"\0")
    return None if type_ == "timestamp" and value == EPOCH else value


def from_mariadb(value: Any, type_: str, lake: pa.DataType) -> Any:
    """A value as PyMySQL reads it, in the form of a column of type `lake`, as docs/types.md says.

    A time of day stays a `timedelta` when it is none: no table holds it.
    """
    if value is None:
        return None
    if type_ in _DATED and isinstance(value, str):
        return None  # a zero date, or one with a zero in it: PyMySQL has no date for it either
    if type_ == "bit":
        return bool(int.from_bytes(value)) if pa.types.is_boolean(lake) else value[::-1].rstrip(b"\0")
    if type_ in _SPATIAL:
        return _geometry(value, point=type_ == "point")
    if isinstance(value, float):
        return canonical(single(value) if pa.types.is_float32(lake) else value)
    if isinstance(value, Decimal) and pa.types.is_string(lake):
        return number_text(value)
    if isinstance(value, int) and pa.types.is_decimal(lake):
        return canonical(Decimal(value))
    if isinstance(value, timedelta) and timedelta(0) <= value < timedelta(days=1):
        return (datetime.min + value).time()
    return canonical(value)


def _geometry(stored: bytes, *, point: bool) -> dict[str, Any]:
    """The reference system and well-known binary, one after the other as stored; of a column of points x and y too."""
    (srid,), wkb = struct.unpack("<I", stored[:4]), stored[4:]
    found: dict[str, Any] = {"wkb": wkb} | ({"srid": srid} if srid else {})
    if point:
        found |= dict(zip("xy", struct.unpack("<dd", wkb[5:21]), strict=True))
    return found


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


def tables(url: str, statement: str) -> list[tuple[str, str]]:
    """Schemas and names, as a statement lists them. Raises `UnavailableError`."""
    with connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return [(str(schema), str(name)) for schema, name in cursor.fetchall()]


def read(url: str, schema: str, name: str) -> tuple[Visible, list[dict[str, Any]], tuple[str, ...], dict[str, str]]:
    """All rows of one table at one moment, with its primary key and types; none when there is no such table.

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
            cursor.execute(
                "SELECT column_name, data_type FROM information_schema.columns "
                "WHERE table_schema = %s AND table_name = %s ORDER BY ordinal_position",
                (schema, name),
            )
            types = {str(column): str(type_).lower() for column, type_ in cursor.fetchall()}
            cursor.execute(f"SELECT {', '.join(map(_selected, types.items())) or '*'} FROM {quoted(schema, name)}")
            rows = [dict(zip(types, row, strict=True)) for row in cursor.fetchall()]
        except pymysql.err.ProgrammingError as e:
            if e.args[0] != pymysql.constants.ER.NO_SUCH_TABLE:
                raise
            rows, key, types = [], (), {}
        except pymysql.OperationalError as e:
            raise UnavailableError("the source database cannot be read", where=f"{schema}.{name}") from e
    file, at = said["binlog_snapshot_file"], int(said["binlog_snapshot_position"])
    return Visible(*place({"file": file, "pos": at})), rows, key, types


def _selected(column: tuple[str, str]) -> str:
    """A float prints six digits of its own accord: as a double it prints all."""
    name, type_ = column
    return f"CAST({quoted(name)} AS DOUBLE)" if type_ == "float" else quoted(name)
