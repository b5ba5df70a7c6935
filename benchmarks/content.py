"""Content folders for the processes that the hops measure: contracts, a connector, an agent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.shapes import CLEAN, ENRICHED, READING, envelope

PREFIX = "bench"
DEVICES = f"{PREFIX}.public.devices"
CONNECTOR = {
    "name": "bench",
    "config": {
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "topic.prefix": PREFIX,
        "provide.transaction.metadata": "true",
    },
}
AGENT = '''"""The agent that is measured: the contract's rules, then what the device's row says."""

from streams.agent import Agent
from streams.lookup import Lookup
from streams.steps import enrich, known

COLUMNS = {columns}
DEVICES = Lookup("devices", topic="{devices}", key="id", columns=COLUMNS)

agent = Agent(
    name="bench",
    source="{source}",
    output="{output}",
    lookups=(DEVICES,),
    steps=(known("devices", key="device_id", rule="unknown device"), enrich("devices", "device_id", COLUMNS)),
)
'''


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def readings(folder: Path, topic: str) -> None:
    """A source under contract, which lands in bronze."""
    write(folder, {"schemas/contracts/reading.avsc": json.dumps({**READING, "topic": topic})})


def changelog(folder: Path, topic: str, row: dict[str, Any]) -> None:
    """Change events as a source under contract, which land in bronze and nowhere else."""
    contract = {**envelope("orders", row), "owner": "benchmarks", "topic": topic, "freshness": "1s", "doc": "Changes."}
    write(folder, {"schemas/contracts/changes.avsc": json.dumps(contract)})


def captured(folder: Path) -> None:
    """A connector: its change topics land in bronze and as current state."""
    write(folder, {"connectors/debezium/bench.json": json.dumps(CONNECTOR)})


def agent(folder: Path, source: str, output: str) -> None:
    """Clean and enrich `source` into `output`."""
    readings(folder, source)
    derived = {**CLEAN, "topic": output, "derived_from": [source], "storage": {"table": "silver.bench_clean"}}
    columns = tuple(field["name"] for field in ENRICHED)
    code = AGENT.format(columns=columns, devices=DEVICES, source=source, output=output)
    write(folder, {"schemas/contracts/clean.avsc": json.dumps(derived), "streams/agents/bench.py": code})
