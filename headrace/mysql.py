"""MariaDB and MySQL servers as sources: connections, and what their log must hold for a change to be told exactly."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

import pymysql
from pymysql.cursors import Cursor

from headrace.errors import ContractError, UnavailableError

SCHEMES = ("mysql", "mariadb")
DEFAULT_PORT = 3306
# Variable, value, what is wrong without it. A server that does not know a variable has no need of it.
REQUIRED = (
    ("log_bin", "ON", "keeps no binary log"),
    ("binlog_format", "ROW", "logs statements, not rows"),
    ("binlog_row_image", "FULL", "does not log whole rows"),
    (
        "binlog_legacy_event_pos",
        "ON",
        "logs no positions inside of transactions, so repeats cannot be told from changes",
    ),
    ("binlog_transaction_compression", "OFF", "hides the positions inside of transactions"),
)
NOT_DYNAMIC = ("log_bin",)


def is_mysql(url: str) -> bool:
    """Whether a database's URL is of MariaDB or MySQL: `mysql://` or `mariadb://user:password@host:port/`."""
    return urlsplit(url).scheme in SCHEMES


def connect(url: str) -> pymysql.Connection[Cursor]:
    """A session in UTC. Raises `UnavailableError` when there is no getting in."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or DEFAULT_PORT
    try:
        return pymysql.connect(
            host=host,
            port=port,
            user=unquote(parts.username or "root"),
            password=unquote(parts.password or ""),
            database=parts.path.strip("/") or None,
            charset="utf8mb4",
            init_command="SET time_zone = '+00:00'",
            connect_timeout=5,
        )
    except pymysql.MySQLError as e:
        raise UnavailableError(f"the source database cannot be reached: {e.args[-1]}", where=f"{host}:{port}") from e


def quoted(*names: str) -> str:
    """An identifier of one part or several, as SQL."""
    return ".".join("`" + name.replace("`", "``") + "`" for name in names)


def log_problem(variables: Mapping[str, str]) -> tuple[str, str] | None:
    """What is wrong with the binary log by the server's variables, and the statement that mends it."""
    for name, wanted, wrong in REQUIRED:
        value = variables.get(name)
        if value is not None and value.upper() != wanted:
            fix = f"start the server with {name}" if name in NOT_DYNAMIC else f"SET GLOBAL {name} = {wanted}"
            return f"the server {wrong}: {name} is {value}", f"{fix}; and in its configuration file"
    return None


def require_row_log(url: str) -> None:
    """Return when the server's binary log holds whole rows, each with a place of its own.

    Raises `ContractError` with the statement that makes it so, `UnavailableError` when the server cannot be asked.
    What sessions override, and sessions that were open before a change, are not seen.
    """
    with connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("SHOW GLOBAL VARIABLES WHERE variable_name IN %s", (tuple(name for name, _, _ in REQUIRED),))
        variables = {str(name).lower(): str(value) for name, value in cursor.fetchall()}
    if problem := log_problem(variables):
        raise ContractError(problem[0], where=f"{urlsplit(url).hostname}", hint=problem[1])
