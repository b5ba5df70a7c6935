"""One run: the large table and its backlog by every system, then the databases; what fails loses its own row."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

from benchmarks.cdc import reads
from benchmarks.cdc.accounts import ENVELOPE, PARTITIONS, AccountsTopic
from benchmarks.cdc.figures import OURS, Merge, Read, Report, Stream
from benchmarks.cdc.ours import Sink
from benchmarks.cdc.peers import BATCH, PEERS, SHARES
from benchmarks.cdc.stream import Plan, measure_stream
from benchmarks.cdc.workloads import Workload
from benchmarks.system import Run
from headrace.config import Settings
from headrace.errors import HeadraceError, unforeseen


@dataclass
class Session:
    """Measures into `report`, as it comes. No `systems` means all of them."""

    settings: Settings
    systems: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.report = Report()
        self._numbers = count(1)

    def backlog(self, rows: int, changes: int) -> None:
        """The table of `rows`, `changes` of it, and how it reads before, after, and compacted."""
        topic = AccountsTopic(self.settings, rows)
        say(f"{rows:,} rows into {topic.name} ...")
        topic.fill_base()
        with self._folder() as folder:
            sink = Sink(self._run(topic, rows, folder), topic)
            self._merge(Merge(OURS, rows, load=True), partial(self._load, sink))
            self._merge(Merge(OURS, rows), partial(self._ours, sink, changes))
        for name, measure in PEERS.items():
            if not self.systems or name in self.systems:
                with self._folder() as folder:
                    few = max(min(changes, BATCH), changes // SHARES[name])
                    run = self._run(topic, few, folder)
                    self._merge(Merge(name, rows), partial(self._peer, measure, run, topic))

    def stream(self, home: Path, workload: Workload, plan: Plan) -> None:
        """A database through Debezium."""
        say(f"{workload.name} ({workload.size:,}) through Debezium ...")
        with self._folder() as folder:
            try:
                row = measure_stream(self.settings, home, folder, workload, plan, next(self._numbers))
            except Exception as e:
                row = Stream(workload.name, error=told(e))
        self.report.streams.append(row)
        say(streamed(row))

    def _load(self, sink: Sink) -> Merge:
        row = sink.load()
        self._read(sink, "before")
        return row

    def _ours(self, sink: Sink, changes: int) -> Merge:
        row = sink.merge(changes)
        self._read(sink, "right after")
        sink.compact()
        self._read(sink, "compacted")
        if not sink.right():
            raise HeadraceError("its rows are not right after compaction", where=sink.table)
        return row

    def _peer(self, measure: Callable[..., tuple[Merge, list[Read]]], run: Run, topic: AccountsTopic) -> Merge:
        row, found = measure(run, topic)
        self.report.reads += found
        return row

    def _read(self, sink: Sink, state: str) -> None:
        at = sink.location()
        assert at is not None, "it was just written"
        self.report.reads.append(reads.read(OURS, state, at))

    def _merge(self, blank: Merge, measured: Callable[[], Merge]) -> None:
        say(f"{blank.system} ...")
        try:
            row = measured()
        except Exception as e:
            # Whatever one system breaks, the others' figures are kept; the page tells what it was.
            row = Merge(blank.system, blank.rows, load=blank.load, error=told(e))
        self.report.merges.append(row)
        say(merged(row))

    def _run(self, topic: AccountsTopic, events: int, folder: Path) -> Run:
        return Run(self.settings, topic.name, events, PARTITIONS, folder, ENVELOPE, number=next(self._numbers))

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
            yield Path(folder)


def told(error: Exception) -> str:
    return str(error) if isinstance(error, HeadraceError) else f"{unforeseen(error)}: {error}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def merged(row: Merge) -> str:
    if row.error:
        return f"    NOT MEASURED: {row.error}"
    index = "" if row.index_mb is None else f"  index {row.index_mb:.0f} MB in {row.index_seconds:.1f} s"
    return (
        f"    {row.changes:,} changes  {row.per_second:,.0f}/s  {row.cpu_us:.2f} us  {row.per_core:,.0f}/s a core  "
        f"{row.peak_mb:.0f} MB  {row.bytes_per_change or 0:,.0f} B each{index}  rows {'ok' if row.rows_ok else 'WRONG'}"
    )


def streamed(row: Stream) -> str:
    if row.error:
        return f"    NOT MEASURED: {row.error}"
    fresh = "".join(
        f"  target {p.target:g} s: {p.p50:.2f} s, p99 {p.p99:.2f} s, CPU {p.phase.share:.0%}" for p in row.paced
    )
    return (
        f"    snapshot {row.snapshot.rate:,.0f}/s  burst {row.burst.rate:,.0f}/s{fresh}  "
        f"our CPU {row.cpu_share:.0%} of Connect's  rows {'ok' if row.rows_ok else 'WRONG'}"
    )
