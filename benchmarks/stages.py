"""Where a process spends its CPU time: functions of each stage, wrapped by a clock of the thread that runs them.

`python -m benchmarks.stages NAME` runs a process of the pipeline so, and writes nanoseconds by stage as JSON to the
file that BENCH_STAGES names. A stage's time is its own, without stages inside it. What no stage claims, the event loop
and receiving from and sending to sockets above all, is the rest.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import json
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

VARIABLE = "BENCH_STAGES"
START, REST = "start", "sockets + loop"
# `module:name` or `module:Class.method`, as the callers of the stage find it.
STAGES = {
    "parse": ("headrace.kafka.reader:FetchReader.read",),
    "decode": ("schemas.codec:ChunkDecoder.decode",),
    "rules": ("streams.flow:check",),
    "steps": ("streams.flow:run_step",),
    "encode": ("schemas.codec:Encoder.encode",),
    "produce": ("headrace.kafka.producer:encode_batches",),
    "columns": ("sinks.iceberg.append:AppendTable.prepare",),
    "fold": ("sinks.iceberg.current:CurrentTable.prepare",),
    "index": ("sinks.iceberg.keyed:KeyedTable._applied", "sinks.iceberg.keyed:KeyedTable.live_locations"),
    "deletes": ("sinks.iceberg.parquet:FileWriter.write_deletes",),
    "Parquet": ("sinks.iceberg.parquet:FileWriter.write",),
    "commit": ("sinks.iceberg.commit:TableCommitter.commit",),
    "care": ("sinks.iceberg.owned:OwnedTable.care",),
}


class Clock:
    """Adds up nanoseconds by stage, over all threads."""

    def __init__(self) -> None:
        self.spent: dict[str, int] = defaultdict(int)
        self.started = 0
        self._lock = threading.Lock()
        self._inner = threading.local()

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, each call of it on the clock; of a generator function, each step."""

        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            with _Span(self, stage):
                return function(*arguments, **named)

        @functools.wraps(function)
        def steps(*arguments: Any, **named: Any) -> Iterator[Any]:
            left = function(*arguments, **named)
            while True:
                with _Span(self, stage):
                    item = next(left, _END)
                if item is _END:
                    return
                yield item

        return steps if inspect.isgeneratorfunction(function) else call

    def begin(self) -> None:
        """From now on it is no longer start-up; again, nothing happens."""
        self.started = self.started or time.process_time_ns()

    def report(self) -> dict[str, int]:
        """Nanoseconds by stage: start-up first, then stages in their order, then the rest."""
        total = time.process_time_ns()
        named = {stage: self.spent[stage] for stage in STAGES if self.spent[stage]}
        return {START: self.started, **named, REST: max(0, total - self.started - sum(named.values()))}

    def add(self, stage: str, own: int) -> None:
        if self.started:
            with self._lock:
                self.spent[stage] += own

    @property
    def inner(self) -> list[int]:
        """Of this thread: for each span that is open, the time of the spans that were inside it."""
        stack: list[int] = self._inner.__dict__.setdefault("stack", [])
        return stack


_END = object()


class _Span:
    def __init__(self, clock: Clock, stage: str) -> None:
        self._clock, self._stage = clock, stage

    def __enter__(self) -> None:
        self._clock.inner.append(0)
        self._start = time.thread_time_ns()

    def __exit__(self, *_: object) -> None:
        spent = time.thread_time_ns() - self._start
        inner = self._clock.inner
        self._clock.add(self._stage, spent - inner.pop())
        if inner:
            inner[-1] += spent


def owner_of(name: str) -> tuple[Any, str]:
    """The module or class that holds what `module:name` names, and the last name. Raises when there is none."""
    module, _, path = name.partition(":")
    *parts, last = path.split(".")
    owner: Any = import_module(module)
    for part in parts:
        owner = getattr(owner, part)
    getattr(owner, last)
    return owner, last


def install(clock: Clock, into: Path) -> None:
    """Put every stage on the clock, and write its report when the process ends."""
    for stage, names in STAGES.items():
        for name in names:
            owner, last = owner_of(name)
            setattr(owner, last, clock.timed(stage, getattr(owner, last)))
    atexit.register(lambda: into.write_text(json.dumps(clock.report())))


def command(name: str) -> list[str]:
    """The command line of a process of the pipeline that is on the clock."""
    return [sys.executable, "-m", "benchmarks.stages", name]


def asked_for() -> Clock | None:
    """The clock of this process, when its environment asks for one."""
    if path := os.environ.get(VARIABLE):
        clock = Clock()
        install(clock, Path(path))
        return clock
    return None


def read(path: Path, events: int) -> dict[str, float]:
    """Nanoseconds an event, by stage."""
    return {stage: ns / events for stage, ns in json.loads(path.read_text()).items()}


def main() -> int:
    clock = asked_for()
    from cli.processes import PROCESSES, run_named
    from headrace.config import load_settings
    from headrace.process import Lifecycle

    if clock is not None:
        ready = Lifecycle.ready

        def begun(lifecycle: Lifecycle) -> None:
            clock.begin()
            ready(lifecycle)

        Lifecycle.ready = begun  # type: ignore[method-assign, assignment]  # the moment from which it works
    name = sys.argv[1]
    return run_named(PROCESSES[name], load_settings({"process": {"name": name, "port": 0}}))


if __name__ == "__main__":
    sys.exit(main())
