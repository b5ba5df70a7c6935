"""`python -m benchmarks.write rows|commits`: the Iceberg writer alone, without Kafka.

`rows` lands a stream in a table and says where the CPU time went, by stage; `commits` makes many small commits and says
what one costs and how much metadata there is, by thousand. CPU is user and system time of this process.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.data import changes, order_events, readings
from benchmarks.shapes import ORDER, READING, envelope, key
from headrace.config import LakeSettings
from schemas.codec import Encoder
from sinks.iceberg import catalog, commit, owned, parquet
from sinks.iceberg.append import AppendTable
from sinks.iceberg.current import CurrentTable
from sinks.iceberg.owned import OwnedTable, Source
from sinks.iceberg.slices import Slice

TOPIC = "bench.public.orders"
CHUNK = 20_000


class Stages:
    """CPU seconds by stage, each without the stages that it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def timed(self, stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            self._inner.append(0.0)
            try:
                return call(*args, **kwargs)
            finally:
                took = time.process_time() - start
                self.seconds[stage] += took - self._inner.pop()
                self._inner[-1] += took

        return wrapper

    def watch(self, stage: str, owner: Any, name: str) -> None:
        setattr(owner, name, self.timed(stage, getattr(owner, name)))


def slice_of(batch: pa.RecordBatch, keys: pa.Array, values: pa.Array, start: int, partition: int = 0) -> Slice:
    n = batch.num_rows
    nothing = np.empty(0, np.int64)
    return Slice(
        TOPIC, partition, start, start + n, keys, values, np.arange(start, start + n),
        np.full(n, 1_790_000_000_000) + np.arange(n) // 100, batch, np.arange(n), nothing, nothing, (), ("id",),
    )  # fmt: skip


def stream(kind: str, rows: int, chunk: int = CHUNK) -> Iterator[Slice]:
    """Slices as the reader makes them of one partition."""
    if kind == "readings":
        encoder = Encoder(READING, 1)
        for i, batch in enumerate(readings(rows, 0, 1, chunk)):
            yield slice_of(batch, pa.nulls(batch.num_rows, pa.binary()), encoder.encode(batch), i * chunk)
        return
    encoder, key_encoder = Encoder(envelope("orders", ORDER), 1), Encoder(key("orders", "long"), 2)
    for i, parts in enumerate(changes(rows, 0, 1, chunk)):
        keys = key_encoder.encode(pa.RecordBatch.from_pydict({"id": parts["ids"]}))
        batch = order_events(parts)
        yield slice_of(batch, keys, encoder.encode(batch), i * chunk)


def lake(folder: str, uri: str = "") -> Any:
    uri = uri or f"sqlite:///{folder}/catalog.db"
    return catalog.open_catalog(LakeSettings(uri=uri, warehouse=f"file://{folder}/lake"))


def opened(kind: type[OwnedTable], name: str, folder: str, uri: str = "") -> OwnedTable:
    table = kind(lake(folder, uri), name, TOPIC)
    table.open(Source("cluster", "topic", {0: 0}, {0: 1 << 40}))
    return table


def rows(kind: str, count: int, per_commit: int) -> None:
    table_kind: type[OwnedTable] = CurrentTable if kind == "current" else AppendTable
    stages = Stages()
    stages.watch("prepare", table_kind, "prepare")
    stages.watch("commit: rest", table_kind, "commit")
    stages.watch("fit", owned, "fit_rows")
    stages.watch("fit", parquet, "fit_rows")
    stages.watch("choose encodings", parquet, "writer_options")
    stages.watch("parquet", parquet.OpenFile, "write")
    stages.watch("parquet", parquet.OpenFile, "__exit__")
    stages.watch("deletes", parquet.FileWriter, "write_deletes")
    stages.watch("statistics", parquet, "data_file_statistics_from_parquet_metadata")
    stages.watch("commit: table", commit.TableCommitter, "commit")
    stages.watch("care", table_kind, "care")
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        table = opened(table_kind, "bench.rows", folder)
        waiting: list[Slice] = []
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for part in stream(kind, count):
            waiting.append(part)
            if part.next_offset % per_commit == 0 or part.next_offset == count:
                table.commit(table.prepare(waiting))
                table.care()
                waiting = []
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for stage, seconds in stages.seconds.items():
        print(f"{stage:<18} {seconds / count * 1e9:>8.1f} ns/row")
    total = sum(stages.seconds.values())
    print(f"{'all':<18} {total / count * 1e9:>8.1f} ns/row  {size / count:.1f} B/row  +{(peak - before) >> 10} MB")


def commits(count: int, rows_each: int, uri: str) -> None:
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        table = opened(AppendTable, f"bench.commits_{time.time_ns()}", folder, uri)
        print("commits  CPU ms each  metadata KB  snapshots  manifests  data files  files in all")
        used = time.process_time()
        for number, part in enumerate(stream("readings", count * rows_each, rows_each), 1):
            table.commit(table.prepare([part]))
            table.care()
            if number % 1000 and number != count:
                continue
            took, since = time.process_time() - used, (number - 1) % 1000 + 1
            assert table.table is not None
            snapshot = table.table.current_snapshot()
            assert snapshot is not None
            manifests = snapshot.manifests(table.table.io)
            metadata = Path(table.table.metadata_location.removeprefix("file://")).stat().st_size
            live = sum(1 for _ in table.table.scan().plan_files())
            files = sum(path.is_file() for path in Path(folder, "lake").rglob("*"))
            print(
                f"{number:>7} {took / since * 1e3:>12.1f} {metadata / 1024:>12.0f} "
                f"{len(table.table.metadata.snapshots):>10} {len(manifests):>10} {live:>11} {files:>13}",
                flush=True,
            )
            used = time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.write", description=__doc__)
    parser.add_argument("what", choices=["rows", "commits"])
    parser.add_argument("--stream", choices=["readings", "changes", "current"], default="readings")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--per-commit", type=int, default=400_000)
    parser.add_argument("--commits", type=int, default=10_000)
    parser.add_argument("--catalog", default="", help="URL of a Postgres catalog; SQLite without it")
    asked = parser.parse_args()
    if asked.what == "commits":
        commits(asked.commits, 100, asked.catalog)
    else:
        rows(asked.stream, asked.rows, asked.per_commit)


if __name__ == "__main__":
    main()
