"""The ordinary Python way into Iceberg: confluent-kafka, fastavro, pyiceberg."""

from __future__ import annotations

import json
import sys

from benchmarks import tables
from benchmarks.system import Run, System
from headrace.config import LakeSettings

NAME = "confluent-kafka + fastavro + pyiceberg"
TABLE = "bench.readings"


def lake(run: Run) -> LakeSettings:
    return LakeSettings(
        catalog="bench", uri=f"sqlite:///{run.folder}/catalog.db", warehouse=f"file://{run.folder}/lake"
    )


def asked(run: Run) -> dict[str, object]:
    """What a job is told."""
    return {
        "bootstrap": run.settings.kafka.bootstrap_servers,
        "registry": run.settings.registry.url,
        "topic": run.topic,
        "group": f"bench-{run.number}",
        "schema": run.schema,
        "seconds": run.commit_seconds,
        "uri": lake(run).uri,
        "warehouse": lake(run).warehouse,
        "folder": str(run.folder),
    }


def command(run: Run) -> list[str]:
    return [sys.executable, "-m", "benchmarks.peers.plain_job", json.dumps(asked(run))]


def location(run: Run) -> str | None:
    return tables.catalogued(lake(run), TABLE)


def landed(run: Run) -> bool:
    return tables.total_records(location(run)) >= run.events


def all_there(run: Run) -> bool:
    return tables.holds_each_once(location(run), run.events, "measured_at")


APPEND = System(NAME, command, landed, all_there, location=location, share=5, note="commits every 10 s")
