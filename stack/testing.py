"""A stack for a test session: servers start when the first test asks for them, and none outlives the session."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

from headrace.config import Settings, load_settings
from headrace.errors import StackError
from stack.control import Options, stop, up
from stack.ports import HIGHEST, is_free
from stack.servers import SERVERS
from stack.spec import ProcessSpec


def scattered_ports(names: list[str], used: set[int] | None = None) -> dict[str, int]:
    """A free port for each name, chosen at random so that sessions side by side do not race for the same one."""
    taken = set(used or ())
    found: dict[str, int] = {}
    while len(found) < len(names):
        port = random.randint(12000, HIGHEST)
        if port not in taken and is_free(port):
            found[names[len(found)]] = port
            taken.add(port)
    return found


class SessionStack:
    """Servers in a temporary home that end with this process, however it ends.

    With `home` it is a running stack of somebody else's instead: used, never started nor stopped.
    """

    def __init__(self, home: Path | None = None) -> None:
        self.foreign = home is not None
        # not under pytest's own folders: they are closed to the user that Postgres runs as
        self.home = home or Path(tempfile.mkdtemp(prefix="headrace-test-"))
        self._ports: dict[str, int] = {}

    def settings(self) -> Settings:
        """Settings that point at what runs now; the caller's environment and folder play no part."""
        return load_settings({"home": self.home}, environ={}, folder=self.home)

    def need(self, *servers: str, processes: list[ProcessSpec] | None = None) -> Settings:
        """Start what is missing of `servers` and wait for it. Raises `StackError`."""
        if self.foreign:
            if not (self.home / "endpoints.json").exists():
                raise StackError("no stack runs there", where=str(self.home), hint="headrace up --servers-only")
            return self.settings()
        names = [port for server in SERVERS.values() for port in server.ports]
        self._ports = self._ports or scattered_ports(names)
        options = Options(servers=servers, external={}, ports=self._ports, attached=True)
        up(self.home, options, processes or [])
        return self.settings()

    def close(self) -> None:
        """End everything and remove the home."""
        if not self.foreign:
            stop(self.home)
            shutil.rmtree(self.home)
