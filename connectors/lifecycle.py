"""Stopping and resuming connectors, and where in its source Connect says that a connector is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from connectors.connect import Connect
from headrace.errors import TransientError, UnavailableError

PATIENCE_SECONDS = 60.0


def stop(connect: Connect, name: str) -> None:
    """Stop a connector and wait until it has no task any more: nothing of it writes to Kafka from here on.

    Raises `ConfigError` for an unknown name, `UnavailableError` when it does not stop in time.
    """
    _until(lambda: _ask(connect, "PUT", name, "/stop"))

    def stopped() -> bool:
        status = connect.call("GET", f"/connectors/{quote(name, safe='')}/status")
        return bool(status["connector"]["state"] == "STOPPED" and not status["tasks"])

    deadline = time.monotonic() + PATIENCE_SECONDS
    while not stopped():
        if time.monotonic() > deadline:
            raise UnavailableError("does not stop", where=f"connector {name}", hint="headrace logs connect")
        time.sleep(0.2)


def resume(connect: Connect, name: str) -> None:
    """Let a stopped or paused connector run; returns at once."""
    _until(lambda: _ask(connect, "PUT", name, "/resume"))


def source_offset(connect: Connect, name: str) -> dict[str, Any]:
    """What Connect keeps as the connector's place in its source; empty before its first record was acknowledged."""
    found = _ask(connect, "GET", name, "/offsets")["offsets"]
    return dict(found[0]["offset"] or {}) if found else {}


def forget_offset(connect: Connect, name: str) -> None:
    """Delete what Connect keeps of a stopped connector: it begins with a snapshot when it is resumed."""
    _until(lambda: _ask(connect, "DELETE", name, "/offsets"))


def begin_anew(connect: Connect, name: str, mark: Path) -> None:
    """Let a connector begin with a snapshot, as one that has read nothing yet.

    The file `mark` is there from before it is stopped until it is to run again: where it is left, this was cut short,
    and is to be called again. Raises what `stop`, `forget_offset` and `resume` do.
    """
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    stop(connect, name)
    forget_offset(connect, name)
    resume(connect, name)
    mark.unlink()


def _ask(connect: Connect, method: str, name: str, path: str) -> Any:
    return connect.call(method, f"/connectors/{quote(name, safe='')}{path}")


def _until(attempt: Any) -> None:
    """Connect refuses while it rebalances; that passes in seconds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            attempt()
            return
        except TransientError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
