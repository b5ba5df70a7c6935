"""Reading the lake: where each table's current metadata is, and a DuckDB connection that sees the tables.

Only for reading; whoever writes a table goes through `sinks.iceberg`. The extensions come from wheels, so nothing is
downloaded when a query runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from importlib import import_module
from pathlib import Path
from threading import Timer
from typing import Any
from urllib.parse import urlsplit

import duckdb
import sqlalchemy
import sqlglot
from sqlglot import exp

from headrace.asof import past
from headrace.config import LakeSettings
from headrace.errors import ConfigError, TerminalError, UnavailableError

EXTENSIONS = ("avro", "iceberg", "httpfs")


def table_locations(lake: LakeSettings) -> dict[str, str]:
    """`namespace.table` -> location of its current metadata file, for every table of the catalog.

    Each location is one consistent snapshot of one table; two tables may be from slightly different times.
    Raises `ConfigError` without a catalog, `UnavailableError` when it cannot be reached.
    """
    if not lake.uri:
        raise ConfigError("no catalog is configured", where="lake.uri", hint="start the local stack: headrace up")
    if lake.uri.startswith(("http://", "https://")):
        return _rest_locations(lake)
    engine = sqlalchemy.create_engine(lake.uri)
    try:
        with engine.connect() as connection:
            if not sqlalchemy.inspect(connection).has_table("iceberg_tables"):
                return {}
            rows = connection.execute(
                sqlalchemy.text(
                    "SELECT table_namespace, table_name, metadata_location FROM iceberg_tables "
                    "WHERE catalog_name = :name"
                ),
                {"name": lake.catalog},
            )
            return {f"{namespace}.{name}": location for namespace, name, location in rows}
    except sqlalchemy.exc.OperationalError as e:
        raise UnavailableError("the catalog cannot be reached", where="lake.uri", hint="headrace status") from e
    finally:
        engine.dispose()


def _rest_locations(lake: LakeSettings) -> dict[str, str]:
    from pyiceberg.catalog import load_catalog

    catalog = load_catalog(lake.catalog, type="rest", uri=lake.uri, warehouse=lake.warehouse, **lake.properties)
    return {
        ".".join(name): catalog.load_table(name).metadata_location
        for namespace in catalog.list_namespaces()
        for name in catalog.list_tables(namespace)
    }


def open_duckdb(lake: LakeSettings) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB that can read Iceberg tables of this lake, on disk or on S3."""
    connection = duckdb.connect(config={"autoinstall_known_extensions": False})
    for name in EXTENSIONS:
        folder = Path(import_module(f"duckdb_extension_{name}").__path__[0])
        connection.load_extension(str(next(folder.glob("extensions/v*/*.duckdb_extension"))))
    connection.execute("SET TimeZone = 'UTC'")
    if endpoint := lake.properties.get("s3.endpoint"):
        address = urlsplit(endpoint)
        connection.execute(
            "CREATE SECRET lake (TYPE s3, KEY_ID $key, SECRET $secret, REGION $region, ENDPOINT $endpoint, "
            "USE_SSL $ssl, URL_STYLE 'path')",
            {
                "key": lake.properties.get("s3.access-key-id", ""),
                "secret": lake.properties.get("s3.secret-access-key", ""),
                "region": lake.properties.get("s3.region", "us-east-1"),
                "endpoint": address.netloc,
                "ssl": address.scheme == "https",
            },
        )
    return connection


def add_views(
    connection: duckdb.DuckDBPyConnection, locations: dict[str, str], names: Iterable[str] | None = None
) -> None:
    """Make tables visible under their names; `names` limits them, since each costs a read of its metadata."""
    for name in locations if names is None else names:
        location = locations[name].replace("'", "''")
        add_view(connection, name, f"FROM iceberg_scan('{location}')")


def add_view(connection: duckdb.DuckDBPyConnection, name: str, sql: str) -> None:
    """Make the rows of a query visible as the table `name`."""
    namespace, _, table = name.partition(".")
    connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{namespace}"')
    connection.execute(f'CREATE OR REPLACE VIEW "{namespace}"."{table}" AS {sql}')


def confine(connection: duckdb.DuckDBPyConnection, lake: LakeSettings) -> None:
    """From here on the connection reads the lake's own files and nothing else of this machine or the network."""
    warehouse = lake.warehouse.rstrip("/") + "/"
    folders = [warehouse, warehouse.removeprefix("file://")]
    connection.execute(f"SET allowed_directories = {folders!r}")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def tables_of(sql: str) -> set[str]:
    """The `namespace.table` names that a query reads. Raises `TerminalError` when it is not one SELECT."""
    try:
        statements = sqlglot.parse(sql, dialect="duckdb")
    except sqlglot.errors.ParseError as e:
        raise TerminalError(f"this is not SQL: {e.errors[0]['description']}", where="query") from e
    if len(statements) != 1 or not isinstance(statements[0], exp.Query | exp.Describe | exp.Summarize):
        raise TerminalError("one SELECT statement is expected: the lake is read-only here", where="query")
    return {f"{table.db}.{table.name}" for table in statements[0].find_all(exp.Table) if table.db}


def query(lake: LakeSettings, sql: str) -> duckdb.DuckDBPyConnection:
    """Run one SELECT over the lake's newest snapshots; the result is on the returned connection.

    The statement can read tables and nothing else: no files, no network. Raises `TerminalError` for anything that is
    not a SELECT, for unknown tables (with those that exist) and for whatever DuckDB has to say.
    """
    connection, _ = _prepared(lake, sql)
    try:
        return connection.execute(sql)
    except duckdb.Error as e:
        connection.close()
        raise _refused(e) from e


@dataclass(frozen=True)
class Answer:
    """Names of the columns, and rows of Python values. `truncated`: there are more rows than were asked for.

    `sources`: what each table was read from, where that was not its newest snapshot.
    """

    columns: list[str]
    rows: list[tuple[Any, ...]]
    truncated: bool = False
    sources: dict[str, str] = field(default_factory=dict)


def answer(
    lake: LakeSettings,
    sql: str,
    *,
    limit: int | None = None,
    seconds: float | None = None,
    as_of: datetime | None = None,
) -> Answer:
    """All rows of one SELECT, or the first `limit`; with `as_of`, over each table as it was then (`asof.past`).

    Raises as `query` does, and when it takes more than `seconds`.
    """
    connection, sources = _prepared(lake, sql, as_of)
    clock = Timer(seconds, connection.interrupt) if seconds is not None else None
    try:
        if clock is not None:
            clock.start()
        # DuckDB works on while rows are fetched, and fails there too.
        cursor = connection.execute(sql)
        columns = [column[0] for column in cursor.description or []]
        rows = cursor.fetchall() if limit is None else cursor.fetchmany(limit + 1)
    except duckdb.InterruptException as e:
        raise TerminalError(f"took longer than {seconds:g} s", where="query", hint="read less at a time") from e
    except duckdb.Error as e:
        raise _refused(e) from e
    finally:
        if clock is not None:
            clock.cancel()
            clock.join()
        connection.close()
    return Answer(columns, rows[:limit], limit is not None and len(rows) > limit, sources)


def _prepared(
    lake: LakeSettings, sql: str, as_of: datetime | None = None
) -> tuple[duckdb.DuckDBPyConnection, dict[str, str]]:
    """A connection that sees what the statement reads, and no more; and what tables of the past are read from."""
    wanted = tables_of(sql)
    locations = table_locations(lake)
    if missing := {name for name in wanted if name not in locations and not name.startswith("information_schema.")}:
        have = ", ".join(sorted(locations)) or "none yet"
        raise TerminalError(f"no table {', '.join(sorted(missing))}", where="query", hint=f"tables: {have}")
    then = {name: past(lake, locations, name, as_of) for name in sorted(wanted & locations.keys())} if as_of else {}
    connection = open_duckdb(lake)
    try:
        add_views(connection, locations, wanted - then.keys() if wanted else None)
        for name, table in then.items():
            add_view(connection, name, table.sql)
        confine(connection, lake)
    except duckdb.Error as e:
        connection.close()
        raise _refused(e) from e
    return connection, {name: table.source for name, table in then.items()}


def _refused(error: duckdb.Error) -> TerminalError:
    return TerminalError(str(error).splitlines()[0], where="query")
