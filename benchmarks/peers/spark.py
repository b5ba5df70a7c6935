"""Spark Structured Streaming into Iceberg, on two cores of this machine."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import tables
from benchmarks.peers import environment, plain
from benchmarks.system import Run, System

NAME = "Spark Structured Streaming"
JOB = Path(__file__).with_name("spark_job.py")
# Spark's launcher asks for a module that only its linear algebra uses, and that a JRE from a wheel does not have.
JAVA = """\
#!/bin/sh
left=$#
while [ "$left" -gt 0 ]; do
    argument=$1
    shift
    [ "$argument" = --add-modules=jdk.incubator.vector ] || set -- "$@" "$argument"
    left=$((left - 1))
done
exec '{java}' "$@"
"""


def prepare() -> None:
    environment.venv("spark")
    environment.jars("spark")


def command(run: Run) -> list[str]:
    java = java_home(run) / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(JAVA.format(java=environment.java(environment.venv("spark"))))
    java.chmod(0o755)
    asked = plain.asked(run) | {"jars": [str(jar) for jar in environment.jars("spark")]}
    return [str(environment.venv("spark")), "-P", str(JOB), json.dumps(asked)]


def java_home(run: Run) -> Path:
    return run.folder / "java"


def variables(run: Run) -> dict[str, str | None]:
    return {"PYTHONPATH": None, "SPARK_HOME": None, "JAVA_HOME": str(java_home(run)), "SPARK_LOCAL_IP": "127.0.0.1"}


def location(run: Run) -> str | None:
    """By the rules of a Hadoop catalog: the hint names the current version; it is away for moments at each commit."""
    folder = run.folder / "lake" / "bench" / "readings" / "metadata"
    try:
        version = (folder / "version-hint.text").read_text().strip()
    except FileNotFoundError:
        return None
    return str(folder / f"v{version}.metadata.json") if version else None


APPEND = System(
    NAME,
    command,
    lambda run: tables.total_records(location(run)) >= run.events,
    lambda run: tables.holds_each_once(location(run), run.events, "measured_at"),
    environment=variables,
    prepare=prepare,
    location=location,
    note="local[2], a batch every 10 s",
)
