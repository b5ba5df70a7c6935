"""What a stack keeps on disk besides its servers' data: the plan (what shall run) and the state (what does).

`<home>/plan.json` is written by `up`, `<home>/run/state.json` by the supervisor alone; both are replaced whole.
The supervisor holds a lock on `<home>/run/supervisor.lock` while it lives: the lock, not a pid, says that it runs.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

from headrace.errors import StackError
from stack.spec import Place, ProcessSpec


@dataclass
class Plan:
    """What shall run, and where. `folder` is the working directory of the processes."""

    servers: list[str] = field(default_factory=list)
    ports: dict[str, int] = field(default_factory=dict)
    heaps: dict[str, str] = field(default_factory=dict)
    external: dict[str, str] = field(default_factory=dict)
    processes: list[ProcessSpec] = field(default_factory=list)
    folder: str = "."

    def place(self, home: Path, cache: Path) -> Place:
        return Place(home, cache, self.ports, self.heaps, self.external)


@dataclass
class Child:
    """One server or process as the supervisor sees it. Times are seconds since the epoch, 0 for never.

    `state` is waiting, preparing, starting, running, unhealthy, restarting, failed, stopping or stopped; `problem`
    is what is wrong now, `reason` why it ended last.
    """

    name: str
    state: str = "waiting"
    pid: int = 0
    created: float = 0.0
    port: int = 0
    started: float = 0.0
    restarts: int = 0
    problem: str = ""
    reason: str = ""

    def process(self) -> psutil.Process | None:
        """The process itself, unless its pid has been reused."""
        return process_of(self.pid, self.created)


def process_of(pid: int, created: float) -> psutil.Process | None:
    if not pid:
        return None
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - created) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
        return process if same else None
    except psutil.NoSuchProcess:
        return None


def write_json(path: Path, value: Any) -> None:
    """Replace the file whole; readable by its owner alone. Raises `StackError` when the disk is full."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(value, file, indent=1)
            os.replace(name, path)
        except OSError:
            os.unlink(name)
            raise
    except OSError as e:
        raise disk_error(e, path) from e


def disk_error(e: OSError, path: Path) -> StackError:
    """What the operating system said about a file, as one sentence with the way out."""
    where = str(path)
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return StackError("no space left on the disk", where=where, hint="free some space and run the command again")
    return StackError(f"cannot be written: {e.strerror or e}", where=where, hint="set HEADRACE_HOME to another folder")


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as e:
        raise StackError("is not valid JSON", where=str(path), hint="headrace down --purge starts afresh") from e
    return data if isinstance(data, dict) else {}


def read_plan(home: Path) -> Plan:
    data = _read(home / "plan.json")
    processes = [ProcessSpec(**spec) for spec in data.pop("processes", [])]
    return Plan(**data, processes=processes)


def write_plan(home: Path, plan: Plan) -> None:
    write_json(home / "plan.json", {**asdict(plan), "processes": [_plain(spec) for spec in plan.processes]})


def _plain(spec: ProcessSpec) -> dict[str, Any]:
    return {**asdict(spec), "command": list(spec.command), "after": list(spec.after), "env": dict(spec.env)}


def read_children(home: Path) -> dict[str, Child]:
    return {child["name"]: Child(**child) for child in _read(home / "run" / "state.json").get("children", [])}


def write_children(home: Path, children: Mapping[str, Child]) -> None:
    write_json(home / "run" / "state.json", {"children": [asdict(child) for child in children.values()]})


def acquire(path: Path, *, wait: bool = False) -> IO[str] | None:
    """An exclusive lock held until the file is closed or the process dies; None when another one holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        return None
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()
    return file


def supervisor_pid(home: Path) -> int | None:
    """Pid of the living supervisor of this home, or None."""
    path = home / "run" / "supervisor.lock"
    if not path.exists():
        return None
    with path.open("r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(file.read() or 0) or None
    return None
