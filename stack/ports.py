"""Which ports a stack uses: preferred ones, the next free ones when those are taken, the same ones ever after."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Mapping

import psutil

from headrace.errors import StackError

HIGHEST = 32767  # above begin the ports that the system hands out to clients


def is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def holder(port: int) -> str:
    """Name and pid of who listens on a port, as far as the system tells."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        return "another process"
    return "another process"


def choose(
    preferred: Mapping[str, int],
    fixed: Mapping[str, int],
    ours: Collection[int] = (),
    free: Callable[[int], bool] = is_free,
) -> dict[str, int]:
    """A port for each name of `preferred`.

    One in `fixed` (said by the user, or used before) is taken as it is; `ours` are in use by this very stack.
    Raises `StackError` when a fixed port is held by somebody else, naming the holder.
    """
    chosen: dict[str, int] = {}
    for name, port in fixed.items():
        if name in preferred and port not in ours and not free(port):
            raise StackError(
                f"port {port} is taken by {holder(port)}",
                where=name,
                hint=f"stop that process, or choose another port: headrace up --port {name}=NUMBER",
            )
    for name, port in preferred.items():
        used = set(chosen.values()) | set(fixed.values())
        if name in fixed:
            chosen[name] = fixed[name]
            continue
        candidates = (at for at in range(port, HIGHEST) if at not in used and free(at))
        found = next(candidates, None)
        if found is None:
            raise StackError(f"no free port between {port} and {HIGHEST}", where=name, hint="ss -ltnp")
        chosen[name] = found
    return chosen
