"""Lookups in a worker: rows that come late are waited for, changes are seen, unknown keys are refused."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import fastavro
import pytest

from headrace.config import Settings
from headrace.kafka.admin import end_offsets
from schemas.codec import Encoder
from schemas.types import avro_schema
from tests.integration.streams.support import (
    READING,
    Oracle,
    Site,
    framed,
    readings,
    wait_until_accounted,
    wait_until_ready,
)
from tests.unit.streams.support import DEVICE, changes

EXTRA = """
from streams.lookup import Lookup
from streams.steps import enrich, known
DEVICES = Lookup("devices", topic="{topic}", key="id", columns=("site", "limit"))
"""


@pytest.fixture
def site(settings: Settings, tmp_path: Path) -> Site:
    site = Site(tmp_path, settings)
    site.write(
        extra=EXTRA.format(topic=devices_of(site)),
        steps='known("devices", "device_id", "unknown device", patience=2), enrich("devices", "device_id", ["site"]), ',
    )
    contracts = tmp_path / "schemas" / "contracts"
    clean = json.loads((contracts / "clean.avsc").read_text())
    clean["fields"].append({"name": "site", "type": ["null", "string"], "default": None})
    (contracts / "clean.avsc").write_text(json.dumps(clean))
    (contracts / "device.avsc").write_text(
        json.dumps(
            {
                **avro_schema(DEVICE, "Device"),
                "owner": "tests",
                "topic": devices_of(site),
                "key": ["id"],
                "envelope": "debezium",
            }
        )
    )
    agent = tmp_path / "streams" / "agents" / "clean.py"
    agent.write_text(agent.read_text().replace("source=", "lookups=(DEVICES,), source="))
    return site


def devices_of(site: Site) -> str:
    return f"t{site.tag}.public.devices"


def test_late_rows_changes_and_unknown_keys(site: Site) -> None:
    oracle = Oracle(site.settings)
    schema = fastavro.parse_schema({**READING, "topic": site.source})
    reading_id = oracle.register(site.source, {**READING, "topic": site.source})

    def send_readings(devices: int, first: int) -> None:
        rows = readings(devices, devices=devices, first=first)
        oracle.produce(site.source, [(0, None, framed(reading_id, schema, row)) for row in rows])

    def send_devices(rows: list[tuple[str, Any, Any, int]]) -> None:
        batch = changes(rows, DEVICE, "public.devices")
        avro = avro_schema(batch.schema, "Envelope") | {"namespace": devices_of(site)}
        values = Encoder(avro, oracle.register(devices_of(site), avro)).encode(batch).to_pylist()
        oracle.produce(devices_of(site), [(1, b"key", value) for value in values])

    def device(name: str, place: str) -> dict[str, Any]:
        return {"id": name, "site": place, "limit": 4.0}

    with site.worker() as worker:
        wait_until_ready(worker)
        send_readings(3, 0)
        time.sleep(0.5)
        assert end_offsets(site.settings.kafka, [site.output])[site.output, 0] == 0
        send_devices([("c", None, device("d000", "north"), 1), ("c", None, device("d001", "south"), 2)])
        wait_until_accounted(oracle, site)
        send_devices(
            [("u", device("d000", "north"), device("d000", "east"), 3), ("d", device("d001", "south"), None, 4)]
        )
        time.sleep(1)
        send_readings(2, 1)
        wait_until_accounted(oracle, site)
    found = [
        (row["device_id"], row["seq"], row["site"])
        for _, _, _, row in sorted(oracle.read(site.output), key=lambda r: r[:2])
    ]
    assert found == [("d000", 0, "north"), ("d001", 0, "south"), ("d000", 1, "east")]
    refused = oracle.quarantined(f"agent:{site.agent}")
    assert [(row["rule"], row["reason"], row["source_offset"]) for row in refused] == [
        ("unknown device", "d002", 2),
        ("unknown device", "d001", 4),
    ]
