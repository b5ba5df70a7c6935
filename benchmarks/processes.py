"""What is measured as a user runs it: a Headrace process from its start until its last event is proved in the target.

CPU time and memory are the process's own, as the kernel reports them when it ends; start-up is included, so short runs
look slower than long ones.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.data import write_content
from cli.run import command
from headrace.config import LakeSettings, Settings
from headrace.errors import TerminalError
from headrace.kafka import admin
from headrace.lake import query, table_locations

PATIENCE = 900.0


def measure(name: str, environment: dict[str, str], done: Callable[[], bool]) -> tuple[float, float, float]:
    """(seconds, CPU seconds, peak MB) of `headrace run NAME`. Raises `TerminalError` when it is never done."""
    with tempfile.TemporaryFile() as log:
        clock = time.perf_counter()
        child = subprocess.Popen(
            [*command(name), "--port", "0"],
            env={**os.environ, **environment},
            stderr=log,
            stdout=log,
        )
        try:
            while not done():
                if child.poll() is not None or time.perf_counter() - clock > PATIENCE:
                    log.seek(0)
                    tail = log.read()[-2000:].decode(errors="replace")
                    raise TerminalError(f"the process did not finish: {tail}", where=name)
                time.sleep(0.05)
            seconds = time.perf_counter() - clock
        finally:
            if child.returncode is None:
                child.send_signal(signal.SIGTERM)
                _, _, used = os.wait4(child.pid, 0)
                child.returncode = 0
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def environment(settings: Settings, content: Path, lake: LakeSettings | None = None) -> dict[str, str]:
    out = {
        "HEADRACE_HOME": str(settings.state),
        "HEADRACE_CONTENT": str(content),
        "HEADRACE_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "HEADRACE_REGISTRY__URL": settings.registry.url,
        "HEADRACE_WORKER__APPLICATION": f"bench-{time.time_ns()}",
    }
    if lake is not None:
        out |= {"HEADRACE_LAKE__URI": lake.uri, "HEADRACE_LAKE__WAREHOUSE": lake.warehouse}
    return out


def agent(settings: Settings, events: int, partitions: int, folder: Path) -> dict[str, Any]:
    """Kafka -> contract rules, one derived column -> Kafka."""
    write_content(folder, contracts=True, connector=False, agent=True)

    def produced() -> int:
        if "bench.clean" not in admin.partitions(settings.kafka):
            return 0
        return sum(admin.end_offsets(settings.kafka, ["bench.clean"]).values())

    before = produced()
    seconds, cpu, memory = measure("worker", environment(settings, folder), lambda: produced() - before >= events)
    return _row(events, seconds, cpu, memory, produced() - before == events)


def _lake(folder: Path) -> LakeSettings:
    return LakeSettings(uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/lake")


def _held(lake: LakeSettings, sql: str, table: str) -> tuple[Any, ...] | None:
    if table not in table_locations(lake):
        return None
    row: tuple[Any, ...] | None = query(lake, sql).fetchone()
    return row


def append(settings: Settings, events: int, partitions: int, folder: Path) -> dict[str, Any]:
    """Kafka -> Iceberg bronze, committed."""
    write_content(folder, contracts=True, connector=False, agent=False)
    lake, table = _lake(folder), "bronze.bench_readings"
    sql = f"SELECT count(*), count(DISTINCT _offset * {partitions} + _partition) FROM {table}"
    env = environment(settings, folder, lake) | {"HEADRACE_SINK__EXCLUDE": '["bench\\\\.public.*", "bench\\\\.clean"]'}
    seconds, cpu, memory = measure("sink", env, lambda: (_held(lake, sql, table) or (0,))[0] >= events)
    return _row(events, seconds, cpu, memory, _held(lake, sql, table) == (events, events))


def current_state(settings: Settings, events: int, partitions: int, folder: Path) -> dict[str, Any]:
    """Change events -> bronze changelog and current state, committed, in one process."""
    write_content(folder, contracts=False, connector=True, agent=False)
    lake, bronze, silver = _lake(folder), "bronze.bench_public_orders", "silver.bench_public_orders"
    done = f"SELECT count(*) FROM {bronze}"
    keys = f'SELECT count(DISTINCT "after".id) FROM {bronze}'
    rows = f"SELECT count(*), count(DISTINCT id) FROM {silver}"
    env = environment(settings, folder, lake) | {"HEADRACE_SINK__EXCLUDE": '["bench\\\\.readings", "bench\\\\.clean"]'}

    def finished() -> bool:
        if (_held(lake, done, bronze) or (0,))[0] < events:
            return False
        wanted, have = _held(lake, keys, bronze), _held(lake, rows, silver)
        return wanted is not None and have is not None and have[0] == wanted[0]

    seconds, cpu, memory = measure("sink", env, finished)
    wanted, have = _held(lake, keys, bronze), _held(lake, rows, silver)
    assert wanted is not None
    return _row(events, seconds, cpu, memory, have == (wanted[0], wanted[0]))


def _row(events: int, seconds: float, cpu: float, memory: float, ok: bool) -> dict[str, Any]:
    return {
        "events": events,
        "seconds": seconds,
        "cpu_us_per_event": cpu / events * 1e6,
        "peak_rss_mb": memory,
        "rows_ok": ok,
    }


PROCESSES = {"agent": agent, "iceberg append": append, "bronze + current state": current_state}
