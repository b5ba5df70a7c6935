"""A measured process and all that it starts: CPU time, peak memory, and an end for every one of them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil

from headrace.errors import TerminalError
from stack.supervisor import die_with_parent

# What runs is `python -m benchmarks...`: it must be found.
ROOT = Path(__file__).parent.parent
SAMPLE_SECONDS = 0.2
POLL_SECONDS = 0.1
END_SECONDS = 40.0
TAIL_BYTES = 1500


class Tree:
    """Runs `command` for the length of a `with` block. After it `cpu_seconds` and `peak_mb` are those of the tree.

    The process itself is counted by the kernel, to its end; its descendants by samples, so what one of them uses after
    its last sample is missing, unless it was waited for. Memory is the highest sum of resident sizes (pages that two of
    them share count twice), or the highest of one of them. Leaving the block asks the process to end, and kills what is
    left of the tree after END_SECONDS.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str | None]) -> None:
        """`environment` is laid over this process's own; None takes a variable away."""
        env = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
        self.cpu_seconds = 0.0
        self.peak_mb = 0.0
        self._seen: dict[tuple[int, float], float] = {}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the block is left)
        self._over = threading.Event()
        self._name = next((part for part in command[1:] if not part.startswith("-")), command[0])
        # In a session of its own, so that Ctrl-C reaches this process alone, which then ends the tree in order.
        self._child = subprocess.Popen(
            command,
            env=env,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGKILL),
        )
        self._root = psutil.Process(self._child.pid)
        self._sampler = threading.Thread(target=self._sample, name="sample", daemon=True)

    def __enter__(self) -> Tree:
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        self._log.close()

    def wait(self, done: Callable[[], bool], seconds: float) -> float:
        """Wait until `done`; returns how long. Raises `TerminalError` with the end of what the process has said."""
        clock = time.perf_counter()
        while not done():
            passed = time.perf_counter() - clock
            if self._ended():
                raise TerminalError(
                    f"it ended before its last event was in the target: {self.tail()}", where=self._name
                )
            if passed > seconds:
                raise TerminalError(f"not done after {seconds:.0f} s: {self.tail()}", where=self._name)
            time.sleep(POLL_SECONDS)
        return time.perf_counter() - clock

    def running(self) -> bool:
        """Whether the process is there. Raises `TerminalError` when it has failed."""
        if self._child.returncode is None and not self._ended():
            return True
        self.end()
        if self._child.returncode:
            raise TerminalError(f"it failed: {self.tail()}", where=self._name)
        return False

    def finish(self, seconds: float) -> str:
        """Wait for the process to end by itself; returns what it has said. Raises `TerminalError` when it fails."""
        clock = time.perf_counter()
        while self.running():
            if time.perf_counter() - clock > seconds:
                raise TerminalError(f"not done after {seconds:.0f} s: {self.tail()}", where=self._name)
            time.sleep(POLL_SECONDS)
        return self.said()

    def said(self) -> str:
        """All that the process has written."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    @property
    def pid(self) -> int:
        return self._child.pid

    def tail(self) -> str:
        """The end of what the process has written."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - TAIL_BYTES))
        return self._log.read().decode(errors="replace").strip()

    def end(self) -> None:
        """End the process and its descendants, and take the last figures. May be called again."""
        if self._child.returncode is not None:
            return
        family = self._family()
        with contextlib.suppress(ProcessLookupError):
            # Not Popen's own: that would reap it, and with it what it has used.
            os.kill(self._child.pid, signal.SIGTERM)
        deadline = time.perf_counter() + END_SECONDS
        while not self._ended() and time.perf_counter() < deadline:
            time.sleep(0.02)
        for process in [*family, *self._family()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _, status, used = os.wait4(self._child.pid, 0)
        self._child.returncode = os.waitstatus_to_exitcode(status)
        self._over.set()
        if self._sampler.is_alive():
            self._sampler.join()
        self.cpu_seconds = max(used.ru_utime + used.ru_stime, sum(self._seen.values()))

    def _ended(self) -> bool:
        """Whether the process is over; it is left to `end` to reap, since only that tells what it has used."""
        found = os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return found is not None

    def _family(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            resident = highest = 0
            for process in self._family():
                try:
                    with process.oneshot():
                        times = process.cpu_times()
                        self._seen[process.pid, process.create_time()] = times.user + times.system
                        resident += process.memory_info().rss
                    highest = max(highest, highest_resident(process.pid))
                except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                    continue
            self.peak_mb = max(self.peak_mb, resident / 2**20, highest / 2**20)


def highest_resident(pid: int) -> int:
    """Bytes that a process has had in memory at most since its exec; 0 when it is over.

    Not the kernel's ru_maxrss: after a fork that starts from what the parent had.
    """
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
