"""Stock Faust: the same agent as ours, an event at a time."""

from __future__ import annotations

import json
import sys

from benchmarks import ours
from benchmarks.content import DEVICES
from benchmarks.peers import plain
from benchmarks.shapes import CLEAN, DEVICE, envelope
from benchmarks.system import Run, System
from headrace.kafka import admin
from schemas.names import subject
from schemas.registry import Registry

NAME = "stock Faust"


def command(run: Run) -> list[str]:
    output = ours.output(run)
    admin.ensure_topics(run.settings.kafka, {output: admin.TopicSpec(run.partitions)})
    registry = Registry(run.settings.registry.url)
    try:
        schema_id = registry.register(subject(output, "value"), CLEAN)
    finally:
        registry.close()
    asked = plain.asked(run) | {
        "output": output,
        "output_schema": CLEAN,
        "output_id": schema_id,
        "devices": DEVICES,
        "devices_schema": envelope("devices", DEVICE),
        "partitions": run.partitions,
    }
    return [sys.executable, "-m", "benchmarks.peers.stock_faust_job", json.dumps(asked)]


AGENT = System(NAME, command, ours.in_output, ours.output_holds, share=100, note="one event at a time")
