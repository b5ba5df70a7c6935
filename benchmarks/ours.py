"""Headrace as a user runs it: one process, from its start until its last event is proved in the target."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable

from benchmarks import content, stages, tables
from benchmarks.output import holds_all_enriched
from benchmarks.shapes import ORDER
from benchmarks.system import Run, System
from cli.processes import command
from headrace.config import ENV_PREFIX, LakeSettings
from headrace.kafka import admin
from schemas.names import table_name
from sinks.iceberg.progress import stored_offsets

NAME = "headrace"
COORDINATES = "(_offset * 64 + _kafka_partition)"


def lake(run: Run) -> LakeSettings:
    return LakeSettings(uri=f"sqlite:///{run.folder}/catalog.db", warehouse=f"file://{run.folder}/lake")


def output(run: Run) -> str:
    """The topic that an agent writes."""
    return f"bench.clean_{run.number}"


def environment(run: Run) -> dict[str, str | None]:
    """The run's own settings; those of whoever calls are taken away, but for where jars are kept."""
    theirs = [name for name in os.environ if name.startswith(ENV_PREFIX) and name != "HEADRACE_CACHE"]
    return dict.fromkeys(theirs) | {
        "HEADRACE_HOME": str(run.settings.state),
        "HEADRACE_CONTENT": str(run.folder),
        "HEADRACE_KAFKA__BOOTSTRAP_SERVERS": run.settings.kafka.bootstrap_servers,
        "HEADRACE_REGISTRY__URL": run.settings.registry.url,
        "HEADRACE_LAKE__URI": lake(run).uri,
        "HEADRACE_LAKE__WAREHOUSE": lake(run).warehouse,
        # The topic of this run and no other.
        "HEADRACE_SINK__EXCLUDE": json.dumps([f"(?!{re.escape(run.topic)}$).*"]),
        "HEADRACE_WORKER__APPLICATION": f"bench-{run.number}",
        stages.VARIABLE: None if run.stages is None else str(run.stages),
    }


def process(name: str, write: Callable[[Run], None]) -> Callable[[Run], list[str]]:
    """The command of a Headrace process, on a content folder that `write` fills."""

    def prepared(run: Run) -> list[str]:
        write(run)
        return [*command(name), "--port", "0"] if run.stages is None else stages.command(name)

    return prepared


def bronze(run: Run) -> str | None:
    return tables.catalogued(lake(run), table_name("bronze", run.topic))


def in_bronze(run: Run) -> bool:
    return tables.total_records(bronze(run)) >= run.events


def bronze_holds(distinct: str) -> Callable[[Run], bool]:
    return lambda run: tables.holds_each_once(bronze(run), run.events, distinct)


def current_state(run: Run) -> tuple[int, int, int]:
    """Keys in the changelog; rows, and keys, in the current state."""
    changelog, state = table_name("bronze", run.topic), table_name("silver", run.topic)
    keys = tables.one_row(lake(run), f'SELECT count(DISTINCT "after".id) FROM {changelog}') or (0,)
    rows = tables.one_row(lake(run), f"SELECT count(*), count(DISTINCT id) FROM {state}") or (0, 0)
    return keys[0], rows[0], rows[1]


def in_current_state(run: Run) -> bool:
    """Whether both tables have committed the topic's last record: counting rows meanwhile would take the cores."""
    silver = tables.properties(tables.catalogued(lake(run), table_name("silver", run.topic)))
    return in_bronze(run) and sum(stored_offsets(silver, run.topic).values()) >= run.events


def both_hold(run: Run) -> bool:
    keys, rows, distinct = current_state(run)
    return keys == rows == distinct and bronze_holds(COORDINATES)(run)


def in_output(run: Run) -> bool:
    topic = output(run)
    known = topic in admin.partitions(run.settings.kafka)
    return known and sum(admin.end_offsets(run.settings.kafka, [topic]).values()) >= run.events


def output_holds(run: Run) -> bool:
    return holds_all_enriched(run.settings, output(run), run.events)


APPEND = System(
    NAME,
    process("sink", lambda run: content.readings(run.folder, run.topic)),
    in_bronze,
    lambda run: bronze_holds(COORDINATES)(run) and bronze_holds("measured_at")(run),
    environment,
    location=bronze,
    note="commits every second, or every million rows",
)
CHANGELOG = System(
    NAME,
    process("sink", lambda run: content.changelog(run.folder, run.topic, ORDER)),
    in_bronze,
    bronze_holds(COORDINATES),
    environment,
    location=bronze,
)
CURRENT = System(
    NAME, process("sink", lambda run: content.captured(run.folder)), in_current_state, both_hold, environment
)
AGENT = System(
    NAME,
    process("worker", lambda run: content.agent(run.folder, run.topic, output(run))),
    in_output,
    output_holds,
    environment,
)
