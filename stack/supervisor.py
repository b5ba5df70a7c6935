"""The process that keeps a stack alive: `python -m stack.supervisor HOME`.

It starts what the plan names in dependency order (independent ones at once), asks after everyone's health, starts
again what dies, and on SIGTERM ends all in reverse order. SIGHUP makes it read the plan again and start what is new.
Should it be killed itself, the kernel ends its children; what survives even that is ended by the next supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from headrace.errors import HeadraceError
from headrace.logs import configure_logs, get_logger
from stack import probes
from stack.jars import cache_folder
from stack.servers import SERVERS
from stack.spec import ProcessSpec, Server, unprivileged_user
from stack.state import Child, acquire, disk_error, read_children, read_plan, write_children

START_SECONDS = 180.0
POLL_STARTING = 0.2
POLL_RUNNING = 2.0
BACKOFF = (0.2, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
STEADY_SECONDS = 60.0
GIVE_UP_AFTER = 4
LOG_BYTES = 64 * 1024 * 1024
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None

log = get_logger("supervisor")


@dataclass(frozen=True)
class Unit:
    """A server or a process in the form the supervisor runs."""

    name: str
    port: int
    after: tuple[str, ...]
    command: Callable[[], list[str]]
    env: Callable[[], dict[str, str]]
    prepare: Callable[[], None]
    health: Callable[[], str | None]
    setup: Callable[[], None]
    folder: Path
    stop_signal: signal.Signals
    stop_seconds: float
    unprivileged: bool
    early: bool
    patient: bool  # a process waits for what it misses; a server that cannot start needs a person


def die_with_parent(number: signal.Signals) -> Callable[[], None]:
    """For `preexec_fn`: the kernel sends the child `number` when the supervisor is gone (Linux only)."""

    def set_signal() -> None:
        if _libc is not None:
            _libc.prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)

    return set_signal


class Supervisor:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.cache = cache_folder()
        self.units: dict[str, Unit] = {}
        self.children: dict[str, Child] = {}
        self.well: dict[str, asyncio.Event] = {}
        self.leave: dict[str, asyncio.Event] = {}
        self.gone: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.stopping = asyncio.Event()

    def load(self) -> None:
        """Read the plan and start a task for every unit that has none."""
        if self.stopping.is_set():
            return
        plan = read_plan(self.home)
        place = plan.place(self.home, self.cache)
        units = [self._server(SERVERS[name], place, set(plan.servers)) for name in plan.servers]
        names = {spec.name for spec in plan.processes}
        units += [self._process(spec, plan.folder, plan.servers, names) for spec in plan.processes]
        for unit in units:
            task = self.tasks.get(unit.name)
            if task is not None and not task.done():
                continue
            self.units[unit.name] = unit
            self.children[unit.name] = Child(unit.name, port=unit.port)
            for events in (self.well, self.leave, self.gone):
                events[unit.name] = asyncio.Event()
        for unit in units:
            if unit.name not in self.tasks or self.tasks[unit.name].done():
                self.tasks[unit.name] = asyncio.ensure_future(self._keep(unit))
        self.save()

    def _server(self, server: Server, place: Any, running: set[str]) -> Unit:
        return Unit(
            name=server.name,
            port=place.ports[next(iter(server.ports))],
            after=tuple(name for name in server.after if name in running),
            command=lambda: server.command(place),
            env=lambda: server.env(place),
            prepare=lambda: server.prepare(place),
            health=lambda: server.health(place),
            setup=lambda: server.setup(place),
            folder=place.data(server.name),
            stop_signal=server.stop_signal,
            stop_seconds=server.stop_seconds,
            unprivileged=server.unprivileged,
            early=server.early,
            patient=False,
        )

    def _process(self, spec: ProcessSpec, folder: str, servers: list[str], names: set[str]) -> Unit:
        env = {
            "HEADRACE_HOME": str(self.home),
            "HEADRACE_PROCESS__NAME": spec.name,
            "HEADRACE_PROCESS__PORT": str(spec.port),
            **spec.env,
        }
        return Unit(
            name=spec.name,
            port=spec.port,
            after=(*servers, *(name for name in spec.after if name in names)),
            command=lambda: list(spec.command),
            env=lambda: env,
            prepare=lambda: None,
            health=lambda: probes.http_ok(spec.port, spec.ready) if spec.ready else None,
            setup=lambda: None,
            folder=Path(folder),
            stop_signal=signal.SIGTERM,
            stop_seconds=spec.stop_seconds,
            unprivileged=False,
            early=False,
            patient=True,
        )

    def save(self) -> None:
        try:
            write_children(self.home, self.children)
        except HeadraceError as e:  # a full disk must not end the stack; status is stale until it passes
            log.error("state not saved", **e.as_dict())

    def note(self, name: str, state: str, problem: str = "") -> None:
        child = self.children[name]
        if (child.state, child.problem) != (state, problem):
            child.state, child.problem = state, problem
            self.save()

    async def _keep(self, unit: Unit) -> None:
        """Start a unit when what it depends on is well; start it again whenever it ends, later each time."""
        child = self.children[unit.name]
        for name in () if unit.early else unit.after:
            if await self._or_stop(self.well[name].wait()) is None:
                return
        failures = 0
        while not self.stopping.is_set():
            begun = time.monotonic()
            try:
                reason = await self._live(unit, child)
            except HeadraceError as e:
                reason = str(e)
            except Exception as e:  # whatever a preparation or setup raised: told, logged, tried again
                full = isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT)
                reason = str(disk_error(e, self.home)) if isinstance(e, OSError) and full else str(e)
                log.exception("raised", child=unit.name)
            if self.stopping.is_set():
                return
            steady = time.monotonic() - begun > STEADY_SECONDS
            failures = 0 if steady else failures + 1
            if failures >= GIVE_UP_AFTER and not unit.patient and not self.well[unit.name].is_set():
                child.reason = reason
                self.note(unit.name, "failed", reason)
                log.error("given up", child=unit.name, reason=reason)
                return
            child.restarts += 1
            child.reason = reason
            wait = BACKOFF[min(failures, len(BACKOFF) - 1)]
            self.note(unit.name, "restarting", reason)
            log.warning("restarting", child=unit.name, reason=reason, restarts=child.restarts, wait=wait)
            await self._or_stop(asyncio.sleep(wait, True))

    async def _live(self, unit: Unit, child: Child) -> str:
        """One life of a unit; returns why it ended."""
        self.note(unit.name, "preparing")
        await asyncio.to_thread(unit.prepare)
        if self.stopping.is_set():
            return "not started"
        process = await self._spawn(unit)
        child.pid, child.started = process.pid, time.time()
        with contextlib.suppress(psutil.NoSuchProcess):
            child.created = psutil.Process(process.pid).create_time()
        self.note(unit.name, "starting")
        log.info("started", child=unit.name, pid=process.pid)
        watch = asyncio.ensure_future(self._watch(unit))
        ended = asyncio.ensure_future(process.wait())
        leave = asyncio.ensure_future(self.leave[unit.name].wait())
        try:
            await asyncio.wait({watch, ended, leave}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                if leave.done():
                    self.note(unit.name, "stopping")
                await self._end(unit, process)
                if watch.done():  # a setup that raised, or a start that takes for ever
                    watch.result()
            code = await ended
        finally:
            watch.cancel()
            leave.cancel()
            child.pid = 0
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}{self._last(unit)}"

    def _last(self, unit: Unit) -> str:
        """The last error the child wrote, else its last line, for a person who has not opened its log yet."""
        with (self.home / "logs" / f"{unit.name}.log").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4000))
            text = file.read().decode(errors="replace")
            lines = [line for line in text.splitlines() if line.strip() and not line[0].isspace()]
        telling = [
            line for line in lines[-40:] if any(word in line for word in ("FATAL", "PANIC", "ERROR", "Exception"))
        ]
        return f": {(telling or lines)[-1][:300]}" if lines else ""

    async def _spawn(self, unit: Unit) -> asyncio.subprocess.Process:
        path = self.home / "logs" / f"{unit.name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        user = unprivileged_user() if unit.unprivileged else None
        with path.open("ab") as output:
            return await asyncio.create_subprocess_exec(
                *unit.command(),
                cwd=unit.folder,
                env={**os.environ, **unit.env()},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                user=user[0] if user else None,
                group=user[1] if user else None,
                extra_groups=[] if user else None,
                preexec_fn=die_with_parent(unit.stop_signal),
            )

    async def _watch(self, unit: Unit) -> None:
        """Ask after a unit's health until cancelled. Raises when it is not well in time or its setup fails."""
        deadline = time.monotonic() + START_SECONDS
        reached = False
        while True:
            problem = await asyncio.to_thread(unit.health)
            if problem is None and not reached:
                if not self.well[unit.name].is_set():
                    await asyncio.to_thread(unit.setup)
                reached = True
                self.well[unit.name].set()
                log.info("ready", child=unit.name, port=unit.port)
            if problem is None:
                self.note(unit.name, "running")
            elif reached:
                self.note(unit.name, "unhealthy", problem)
            elif time.monotonic() > deadline and not unit.patient:
                raise TimeoutError(f"not ready after {START_SECONDS:.0f} s: {problem}")
            else:
                self.note(unit.name, "starting", problem)
            await asyncio.sleep(POLL_RUNNING if reached else POLL_STARTING)

    async def _or_stop(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of `work`, or None as soon as the stack is asked to stop."""
        stop = asyncio.ensure_future(self.stopping.wait())
        task = asyncio.ensure_future(work)
        await asyncio.wait({stop, task}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not task.done():
            task.cancel()
            return None
        return task.result()

    async def _end(self, unit: Unit, process: asyncio.subprocess.Process) -> None:
        """Ask, wait, then kill the unit's whole process group."""
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(unit.stop_signal)
        try:
            await asyncio.wait_for(process.wait(), unit.stop_seconds)
        except TimeoutError:
            log.warning("killed, it did not stop in time", child=unit.name)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()

    async def _stop_unit(self, unit: Unit) -> None:
        for other in self.units.values():
            if unit.name in other.after:
                await self.gone[other.name].wait()
        self.leave[unit.name].set()
        await self.tasks[unit.name]
        self.note(unit.name, "stopped")
        log.info("ended", child=unit.name)
        self.gone[unit.name].set()

    async def run(self) -> None:
        end_leftovers(self.home)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self.load)
        self.load()
        await self.stopping.wait()
        log.info("stopping")
        await asyncio.gather(*(self._stop_unit(unit) for unit in self.units.values()))
        log.info("stopped")


def end_leftovers(home: Path, seconds: float = 10.0) -> list[str]:
    """End what an earlier supervisor of this home left running; returns the names."""
    left = {child.name: process for child in read_children(home).values() if (process := child.process())}
    for name, process in left.items():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(SERVERS[name].stop_signal if name in SERVERS else signal.SIGTERM)
    _, alive = psutil.wait_procs(left.values(), timeout=seconds)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=seconds)
    return list(left)


class LossyStream(io.TextIOBase):
    """Standard error that loses lines while the disk is full: the stack must live on and recover by itself."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            os.write(2, text.encode())
        return len(text)


def main(home: Path) -> int:
    """Run until SIGTERM. Exit status 3: another supervisor of this home is alive."""
    sys.stderr = LossyStream()
    configure_logs("supervisor")
    os.umask(0o022)
    lock = acquire(home / "run" / "supervisor.lock")
    if lock is None:
        return 3
    with lock:
        asyncio.run(Supervisor(home).run())
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
