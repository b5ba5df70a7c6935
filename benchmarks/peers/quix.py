"""Quix Streams, with its own Avro deserializer and Iceberg sink."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.peers import environment, plain
from benchmarks.system import Run, System

NAME = "Quix Streams"
JOB = Path(__file__).with_name("quix_job.py")


def prepare() -> None:
    environment.venv("quix")


def command(run: Run) -> list[str]:
    # -P: the job's folder is no place to import from.
    return [str(environment.venv("quix")), "-P", str(JOB), json.dumps(plain.asked(run))]


APPEND = System(
    NAME,
    command,
    plain.landed,
    plain.all_there,
    environment=lambda _: {"PYTHONPATH": None},
    prepare=prepare,
    location=plain.location,
    share=25,
    note="commits every 10 s; its sink knows Glue alone, here with a SQL catalog",
)
