"""The page of results: a table with ratios, the machine, the versions and the command."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "docs" / "benchmarks"
LIBRARIES = ("aiokafka", "faust-streaming", "pyarrow", "pyiceberg", "numba", "confluent-kafka", "fastavro")


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def table(results: list[dict[str, Any]]) -> str:
    ours = {r["hop"]: r["cpu_us_per_event"] for r in results if r["system"] == "headrace"}
    lines = [
        "| hop | system | events | events/s | CPU us/event | events/s a core | cost, ours = 1 | peak MB | rows right |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for r in results:
        cpu = r["cpu_us_per_event"]
        ratio = f"{cpu / ours[r['hop']]:.1f}x" if r["hop"] in ours else ""
        lines.append(
            f"| {r['hop']} | {r['system']} | {r['events']:,} | {r['events'] / r['seconds']:,.0f} | {cpu:.2f} "
            f"| {1e6 / cpu:,.0f} | {ratio} | {r['peak_rss_mb']:.0f} | {'yes' if r['rows_ok'] else 'NO'} |"
        )
    return "\n".join(lines)


def write_page(results: list[dict[str, Any]]) -> None:
    """`docs/benchmarks/README.md` and the same figures as `results.json`."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    (FOLDER / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (FOLDER / "README.md").write_text(
        f"""# Benchmarks

Made by `python -m benchmarks --write` on {datetime.now(UTC):%Y-%m-%d}; {os.cpu_count()} x {processor()}, Python
{platform.python_version()}; {versions}; Kafka on the same machine, lz4, {2} partitions.

{table(results)}

How to read it:
- Every line comes from the same run on the same machine. Ratios hold elsewhere; absolute figures do not.
- CPU is user and system time of the measured process. *produce* and *fetch + decode* are measured inside a client,
  after its imports. *agent*, *iceberg append* and *bronze + current state* are a whole Headrace process from its start
  to the last event proved in the target: a longer run would spread its start-up over more events.
- *bronze + current state* writes each change twice: as a row of the changelog, and merged into the current state by
  position deletes.
- Rows are checked: count and distinct coordinates in the target.

The same figures as JSON: [results.json](results.json).
""",
        encoding="utf-8",
    )
