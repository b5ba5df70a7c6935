"""What a person asks of a stack: up, status, logs, down. All of it can be asked again without harm."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from headrace.config import explain, load_settings
from headrace.errors import StackError
from stack import jars
from stack.ports import choose
from stack.servers import DEFAULT, SERVERS
from stack.spec import Endpoints, ProcessSpec, merge
from stack.state import (
    Child,
    Plan,
    acquire,
    disk_error,
    read_children,
    read_plan,
    supervisor_pid,
    write_children,
    write_json,
    write_plan,
)
from stack.supervisor import die_with_parent, end_leftovers

OURS = ("local stack", "default")
PROCESS_TRIES = 4
UP = ("running", "unhealthy")  # it has been well since it started; what it misses now, it says itself
MINIMUM_FREE = 512 * 2**20
OnChild = Callable[[Child], None]


def quiet(_: Any) -> None:
    """For callers without a terminal."""


@dataclass(frozen=True)
class Options:
    """What `up` is asked for.

    `servers` None means all but MariaDB and SeaweedFS; `external` None asks the configuration which servers are
    elsewhere. `attached` ends the stack with this process (call `up` from its main thread then).
    """

    servers: Sequence[str] | None = None
    s3: bool = False
    mariadb: bool = False
    ports: Mapping[str, int] = field(default_factory=dict)
    heaps: Mapping[str, str] = field(default_factory=dict)
    external: Mapping[str, str] | None = None
    wait_seconds: float = 300.0
    attached: bool = False


def external_servers() -> dict[str, str]:
    """Setting section -> URL, for servers that the user has said are elsewhere."""
    settings, said = load_settings(), {origin.key for origin in explain() if origin.source not in OURS}
    found = {}
    for server in SERVERS.values():
        section, key = server.setting.split(".")
        if server.setting in said:
            found[section] = str(getattr(getattr(settings, section), key))
    return found


def wanted(options: Options, external: Mapping[str, str]) -> list[str]:
    """Names of the servers to start: those asked for and what they need, less the user's own."""
    asked = list(DEFAULT if options.servers is None else options.servers)
    asked += [name for name, on in (("seaweedfs", options.s3), ("mariadb", options.mariadb)) if on]
    if unknown := set(asked) - set(SERVERS):
        raise StackError(f"no server {unknown.pop()!r}", hint=f"there are {', '.join(SERVERS)}")
    needed: dict[str, None] = {}
    while asked:
        name = asked.pop(0)
        if name not in needed and SERVERS[name].setting.split(".")[0] not in external:
            needed[name] = None
            asked += SERVERS[name].after
    return [name for name in SERVERS if name in needed]


def endpoints(plan: Plan, home: Path) -> Endpoints:
    """What `<home>/endpoints.json` says: where each of our servers and processes is."""
    place = plan.place(home, jars.cache_folder())
    said: Endpoints = {}
    for name, server in SERVERS.items():
        if name in plan.servers or (name == "postgres" and "postgres" in plan.external):
            said = merge(said, server.endpoints(place))
    ready = {spec.name: f"http://127.0.0.1:{spec.port}" for spec in plan.processes if spec.ready}
    return merge(said, {"endpoints": ready} if ready else {})


def _planned(home: Path, options: Options, processes: Sequence[ProcessSpec], alive: bool) -> Plan:
    """The plan on disk, extended by what is asked for now. Raises `StackError` for a port that is taken."""
    old = read_plan(home)
    external = dict(external_servers() if options.external is None else options.external)
    servers = wanted(options, external)
    if alive:
        servers = [name for name in SERVERS if name in servers or name in old.servers]
    known = {spec.name: spec for spec in old.processes} if alive else {}
    specs = [*known.values(), *(spec for spec in processes if spec.name not in known)]
    preferred = {port: number for name in servers for port, number in SERVERS[name].ports.items()}
    preferred |= {spec.name: spec.port for spec in specs}
    later = {name for server in servers for name in SERVERS[server].reserves} - set(servers)
    reserved = {port: old.ports.get(port, at) for name in later for port, at in SERVERS[name].ports.items()}
    preferred |= reserved
    every = {port for server in SERVERS.values() for port in server.ports} | set(preferred)
    if unknown := set(options.ports) - every:
        raise StackError(f"no port {unknown.pop()!r}", where="--port", hint=f"there are {', '.join(preferred)}")
    fixed = {**{port: at for port, at in old.ports.items() if port not in reserved}, **options.ports}
    running = [*old.servers, *known] if alive else []
    ours = {old.ports[port] for name in running for port in (SERVERS[name].ports if name in SERVERS else (name,))}
    ports = {**old.ports, **choose(preferred, {n: fixed[n] for n in preferred if n in fixed}, ours)}
    specs = [replace(spec, port=ports[spec.name]) for spec in specs]
    return Plan(servers, ports, {**old.heaps, **options.heaps}, external, specs, str(Path.cwd()))


def up(
    home: Path,
    options: Options,
    processes: Sequence[ProcessSpec] = (),
    on_child: OnChild = quiet,
    on_download: jars.OnProgress = lambda done, missing: None,
) -> bool:
    """Make everything asked for run and wait until it is well; true when something had to be started.

    What runs already stays as it is. Raises `StackError` when a server cannot start (then nothing that this call
    started is left behind) or a process keeps failing (then the rest stays up, to be looked at).
    """
    home = home.resolve()
    try:
        (home / "run").mkdir(parents=True, exist_ok=True)
        lock = acquire(home / "run" / "up.lock", wait=True)
    except OSError as e:
        raise disk_error(e, home) from e
    assert lock is not None
    with lock:
        alive = supervisor_pid(home) is not None
        if not alive:
            end_leftovers(home)
        plan = _planned(home, options, processes, alive)
        names = [*plan.servers, *(spec.name for spec in plan.processes)]
        if alive and _all_running(home, names):
            return False
        need_space(home)
        jars.fetch_sets(
            {name for server in plan.servers for name in SERVERS[server].jars}, jars.cache_folder(), on_download
        )
        if "postgres" in plan.external:
            SERVERS["postgres"].setup(plan.place(home, jars.cache_folder()))
        write_plan(home, plan)
        write_json(home / "endpoints.json", endpoints(plan, home))
        if alive:
            _signal(home, signal.SIGHUP)
        else:
            _launch(home, options.attached)
        try:
            _wait(home, plan, options.wait_seconds, on_child)
        except BaseException as e:
            if not alive and not isinstance(e, ProcessFailedError):
                stop(home)
            raise
    return True


def need_space(home: Path) -> None:
    """Raises `StackError` when the disk under `home` is too full for the servers to start."""
    free = shutil.disk_usage(home).free
    if free < MINIMUM_FREE:
        raise StackError(
            f"only {free // 2**20} MB free, the servers need {MINIMUM_FREE // 2**20} MB to start",
            where=str(home),
            hint="free some space, or set HEADRACE_HOME to a folder on another disk",
        )


class ProcessFailedError(StackError):
    """A process of the pipeline does not become ready; the servers are well."""


def _all_running(home: Path, names: Sequence[str]) -> bool:
    children = read_children(home)
    return all(name in children and children[name].state in UP for name in names)


def _signal(home: Path, number: signal.Signals) -> None:
    if pid := supervisor_pid(home):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _launch(home: Path, attached: bool) -> None:
    """Start the supervisor in a session of its own; `attached`, it ends with this process."""
    (home / "logs").mkdir(parents=True, exist_ok=True)
    write_children(home, {})
    with (home / "logs" / "supervisor.log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "stack.supervisor", str(home)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGTERM) if attached else None,
        )
    deadline = time.monotonic() + 30
    while supervisor_pid(home) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            raise StackError("the supervisor does not start", where=str(home), hint="headrace logs supervisor")
        time.sleep(0.02)


def _wait(home: Path, plan: Plan, seconds: float, on_child: OnChild) -> None:
    children: dict[str, Child] = {}
    deadline = time.monotonic() + seconds
    names = [*plan.servers, *(spec.name for spec in plan.processes)]
    while True:
        children = _tell(home, children, on_child)
        failed = next((c for c in children.values() if c.state == "failed"), None)
        if failed:
            raise StackError(f"cannot start: {failed.reason}", where=failed.name, hint=f"headrace logs {failed.name}")
        if all(name in children and children[name].state in UP for name in names):
            return
        if supervisor_pid(home) is None:
            raise StackError("the supervisor has ended", where=str(home), hint="headrace logs supervisor")
        stuck = next((children[n] for n in names if n in children and children[n].state not in UP), Child(names[0]))
        if stuck.name not in SERVERS and stuck.restarts >= PROCESS_TRIES:
            raise ProcessFailedError(
                f"keeps ending: {stuck.reason}", where=stuck.name, hint=f"headrace logs {stuck.name}"
            )
        if time.monotonic() > deadline:
            kind = StackError if stuck.name in SERVERS else ProcessFailedError
            raise kind(
                f"not ready after {seconds:.0f} s: {stuck.problem or stuck.reason or stuck.state}",
                where=stuck.name,
                hint=f"headrace logs {stuck.name}",
            )
        time.sleep(0.1)


def hold(home: Path) -> None:
    """Stay until Ctrl-C, SIGTERM or the end of the stack; then everything is stopped."""

    def leave(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, leave)
    try:
        while supervisor_pid(home.resolve()) is not None:
            time.sleep(0.5)
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
        stop(home)


def stop(home: Path, seconds: float = 90.0, on_child: OnChild = quiet) -> list[str]:
    """End everything in reverse order; returns the names of what ran. Nothing is left when it returns."""
    home = home.resolve()
    before = read_children(home)
    running = [child.name for child in before.values() if child.process()]
    _signal(home, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    last = None
    while (pid := supervisor_pid(home)) is not None:
        last = pid
        before = _tell(home, before, on_child)
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    if last is not None:
        _tell(home, before, on_child)
        with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
            psutil.Process(last).wait(10)
    return sorted({*running, *end_leftovers(home)})


def _tell(home: Path, seen: Mapping[str, Child], on_child: OnChild) -> dict[str, Child]:
    """Report each child that differs from `seen`; returns all as they are now."""
    children = read_children(home)
    for name, child in children.items():
        if child != seen.get(name):
            on_child(child)
    return children


def purge(home: Path) -> None:
    """Remove all state of a stopped stack. Raises `StackError` when the folder is not a stack's."""
    home = home.resolve()
    if not home.exists():
        return
    if not (home / "run").is_dir() and any(home.iterdir()):
        raise StackError("does not look like a stack's home, nothing removed", where=str(home))
    shutil.rmtree(home)


def status(home: Path) -> list[dict[str, Any]]:
    """A row for each server and process: state, pid, port, uptime, restarts, memory (bytes), reason."""
    home = home.resolve()
    alive = supervisor_pid(home) is not None
    plan = read_plan(home)
    children = read_children(home)
    rows: list[dict[str, Any]] = []
    for name in [*plan.servers, *(spec.name for spec in plan.processes)]:
        child = children.get(name, Child(name))
        process = child.process()
        state = child.state if alive else ("orphaned" if process else "stopped")
        rows.append(
            {
                "name": name,
                "kind": "server" if name in SERVERS else "process",
                "state": state,
                "pid": process.pid if process else None,
                "port": child.port or None,
                "uptime_seconds": round(time.time() - child.started, 1) if process else None,
                "restarts": child.restarts,
                "memory_bytes": _memory(process),
                "reason": child.problem or child.reason,
            }
        )
    rows += [
        {"name": section, "kind": "external", "state": "yours", "pid": None, "port": None, "uptime_seconds": None}
        | {"restarts": 0, "memory_bytes": None, "reason": ""}
        for section in plan.external
    ]
    return rows


def _memory(process: psutil.Process | None) -> int | None:
    """Resident memory of a process and of its children (Postgres has many), what they share counted once."""
    if process is None:
        return None
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        total = process.memory_info().rss
        for child in process.children(recursive=True):
            info = child.memory_info()
            total += info.rss - getattr(info, "shared", 0)
    return total


def log_files(home: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted((home.resolve() / "logs").glob("*.log"))}


def tail(path: Path, lines: int) -> list[str]:
    with path.open(errors="replace") as file:
        return list(deque(file, lines))


def follow(paths: Mapping[str, Path], poll: float = 0.3) -> Iterator[tuple[str, str]]:
    """(name, line) as lines are written, for ever; a file that was rotated is read from its start."""
    at = {name: path.stat().st_size for name, path in paths.items()}
    while True:
        for name, path in paths.items():
            if not path.exists():
                continue
            size = path.stat().st_size
            if size < at[name]:
                at[name] = 0
            with path.open("rb") as file:
                file.seek(at[name])
                data = file.read()
            whole, newline, _ = data.rpartition(b"\n")
            at[name] += len(whole) + len(newline)
            for line in whole.decode(errors="replace").split("\n") if newline else ():
                yield name, line
        time.sleep(poll)
