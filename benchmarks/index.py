"""`python -m benchmarks.index`: a current-state table at size: its key index, and what changes to it cost.

Makes a table of `--keys` rows, opens it in a process of its own (time and memory of the index), then commits batches of
random updates to it (time, files and bytes of each commit, and DuckDB's time to read the table as they add up).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.config import LakeSettings
from headrace.lake import answer
from headrace.logs import configure_logs
from sinks.iceberg.catalog import open_catalog
from sinks.iceberg.current import CurrentTable
from sinks.iceberg.operate import table_state
from sinks.iceberg.owned import Source
from sinks.iceberg.slices import Slice

TOPIC, TABLE = "bench.public.accounts", "silver.accounts"
KEYS = {"bigint": ("id",), "composite": ("region", "number"), "text": ("code",)}
STEP = 500_000
STATES = pa.array(["new", "paid", "packed", "shipped", "returned"])
# The log position of the first update: above those of all rows that were there.
FIRST_LSN = 1_000_000_000

Int64 = npt.NDArray[np.int64]


def rows_of(numbers: Int64, kind: str, seed: int) -> pa.StructArray:
    """Accounts by number: a key of the kind, a text, a state, an amount, a time."""
    random = np.random.default_rng(seed)
    n = len(numbers)
    keys: dict[str, Any] = {
        "bigint": {"id": pa.array(numbers)},
        "composite": {"region": pa.array((numbers % 97).astype(np.int32)), "number": pa.array(numbers)},
        "text": {"code": pa.array([f"account-{number:010d}" for number in numbers.tolist()])},
    }[kind]
    columns = keys | {
        "note": pa.array(random.integers(0, 1 << 62, n)).cast(pa.string()),
        "state": STATES.take(pa.array(random.integers(0, len(STATES), n))),
        "amount": pa.array(random.integers(0, 1_000_000, n) / 100),
        "changed_at": pa.array(1_700_000_000_000_000 + random.integers(0, 1 << 45, n)).cast(pa.timestamp("us", "UTC")),
    }
    return pa.StructArray.from_arrays(list(columns.values()), list(columns))


def changes(numbers: Int64, kind: str, op: str, start: int, lsn: int) -> Slice:
    """Change events of these accounts as a slice from offset `start` on."""
    return changes_of(rows_of(numbers, kind, lsn + start), op, start, lsn, KEYS[kind])


def changes_of(rows: pa.StructArray, op: str, start: int, lsn: int, key: tuple[str, ...]) -> Slice:
    """Change events of rows, each at a log position and a millisecond of its own from `lsn` on."""
    n = len(rows)
    gone = op == "d"
    order = np.arange(lsn, lsn + n)
    text = pa.array([None if op == "r" else f'["{at}","{at}"]' for at in order.tolist()], pa.string())
    source = {"schema": pa.array(["public"] * n), "table": pa.array(["accounts"] * n), "lsn": pa.array(order)}
    source |= {"sequence": text, "ts_ms": pa.array(1_700_000_000_000 + order)}
    block = {"id": text, "total_order": pa.array(np.ones(n, np.int64))}
    columns = {
        "before": rows if gone else pa.nulls(n, rows.type),
        "after": pa.nulls(n, rows.type) if gone else rows,
        "source": pa.StructArray.from_arrays(list(source.values()), list(source)),
        "op": pa.array([op] * n),
        "transaction": pa.StructArray.from_arrays(list(block.values()), list(block)),
    }
    nothing = pa.nulls(n, pa.binary())
    return Slice(
        topic=TOPIC,
        partition=0,
        start=start,
        next_offset=start + n,
        keys=nothing,
        values=nothing,
        offsets=np.arange(start, start + n),
        timestamps=np.full(n, 1_700_000_000_000),
        batch=pa.RecordBatch.from_arrays(list(columns.values()), list(columns)),
        rows=np.arange(n),
        nulls=np.empty(0, np.int64),
        bad=np.empty(0, np.int64),
        reasons=(),
        key_fields=key,
    )


def opened(lake: LakeSettings) -> CurrentTable:
    table = CurrentTable(open_catalog(lake), TABLE, TOPIC)
    table.open(Source("bench", "bench", {0: 0}, {0: 1 << 60}))
    return table


def land(table: CurrentTable, part: Slice) -> None:
    prepared = table.prepare([part])
    if prepared.rejects:
        raise RuntimeError(f"rows were refused: {prepared.rejects[0].reasons[0]}")
    table.commit(prepared)


def index_figures(lake: LakeSettings, results: Any) -> None:
    """Open the table in this process, and tell what that took."""
    CurrentTable(open_catalog(lake), "silver.nothing", TOPIC)
    Path("/proc/self/clear_refs").write_text("5")
    before, cpu, started = memory("VmRSS"), time.process_time(), time.perf_counter()
    table = opened(lake)
    results.put(
        {
            "keys": len(table.index),
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu,
            "index_bytes": table.index.nbytes,
            "bytes_per_key": table.index.nbytes / len(table.index),
            "peak_growth_bytes": memory("VmHWM") - before,
        }
    )


def memory(what: str) -> int:
    """A figure of this process from the kernel, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) << 10


def read_seconds(lake: LakeSettings) -> tuple[float, int]:
    """DuckDB's time for a sum over all rows, the best of three, and how many rows it saw."""
    times, count = [], 0
    for _ in range(3):
        started = time.perf_counter()
        ((count, _),) = answer(lake, f"SELECT count(*), sum(amount) FROM {TABLE}").rows
        times.append(time.perf_counter() - started)
    return min(times), count


def change_figures(lake: LakeSettings, kind: str, keys: int, commits: int, batch: int) -> dict[str, Any]:
    """Commit batches of random updates; per commit what was written, afterwards what the table is made of."""
    table = opened(lake)
    random = np.random.default_rng(7)
    clean, _ = read_seconds(lake)
    at = table.offsets[0]
    seconds, care, deletes, nbytes, reads, worst = [], [], [], [], [], 0
    for number in range(commits):
        part = changes(random.integers(0, keys, batch), kind, "u", at, FIRST_LSN + number * batch)
        at = part.next_offset
        started = time.perf_counter()
        land(table, part)
        committed = time.perf_counter()
        assert table.table is not None
        summary = table.table.current_snapshot().summary.additional_properties  # type: ignore[union-attr]
        deletes.append(int(summary.get("added-delete-files", 0)))
        nbytes.append(int(summary["added-files-size"]))
        table.care()
        care.append(time.perf_counter() - committed)
        seconds.append(committed - started)
        worst = max(worst, max(len(task.delete_files) for task in table._files))
        if number % max(1, commits // 10) == 0:
            reads.append(read_seconds(lake)[0])
    assert table.table is not None
    state = table_state(table.table)
    last, rows = read_seconds(lake)
    if rows != keys:
        raise RuntimeError(f"{rows} rows, not {keys}")
    tenth = max(1, commits // 10)
    return {
        "commits": commits,
        "updates": batch,
        "commit_seconds_first_tenth": median(seconds[:tenth]),
        "commit_seconds_last_tenth": median(seconds[-tenth:]),
        "commit_seconds_worst": max(seconds),
        "care_seconds_mean": sum(care) / commits,
        "care_seconds_worst": max(care),
        "delete_files_a_commit": sum(deletes) / commits,
        "bytes_a_change": sum(nbytes) / commits / batch,
        "delete_files_of_a_data_file_worst": worst,
        "files": state.files,
        "small_files": state.small_files,
        "delete_files": state.delete_files,
        "dead_share": state.dead_rows / (state.rows + state.dead_rows),
        "read_seconds_clean": clean,
        "read_seconds_worst": max([*reads, last]),
        "read_seconds_last": last,
    }


def run(folder: Path, kind: str, keys: int, commits: int, batch: int) -> dict[str, Any]:
    """All figures of one kind of key, for a lake in `folder`."""
    lake = LakeSettings(uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/warehouse")
    table = opened(lake)
    for start in range(0, keys, STEP):
        land(table, changes(np.arange(start, min(keys, start + STEP)), kind, "r", start, 0))
        table.care()
    del table
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    reader = context.Process(target=index_figures, args=(lake, results))
    reader.start()
    figures = {"key": kind, "index": results.get(timeout=600)}
    reader.join()
    if figures["index"]["keys"] != keys:
        raise RuntimeError(f"the index has {figures['index']['keys']} keys, not {keys}")
    return figures | ({"changes": change_figures(lake, kind, keys, commits, batch)} if commits else {})


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.index", description=__doc__)
    parser.add_argument("--keys", type=int, default=10_000_000)
    parser.add_argument("--kinds", nargs="+", choices=KEYS, default=list(KEYS))
    parser.add_argument("--commits", type=int, default=100, help="batches of updates; 0 for the index alone")
    parser.add_argument("--updates", type=int, default=10_000, help="random updates of a batch")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder unless told")
    asked = parser.parse_args(arguments)
    configure_logs("benchmark", "WARNING")
    found = []
    for kind in asked.kinds:
        folder = Path(tempfile.mkdtemp(dir=asked.folder))
        try:
            found.append(run(folder, kind, asked.keys, asked.commits, asked.updates))
            print(json.dumps(found[-1], indent=1), flush=True)
        finally:
            shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
