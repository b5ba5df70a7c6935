from __future__ import annotations

import json
import runpy
import time
from collections.abc import AsyncIterator
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from starlette.applications import Starlette

from connectors import ingest
from connectors.ingest import Ingest
from headrace.kafka import partition_for
from headrace.kafka.admin import TopicSpec, ensure_topics
from tests.integration.connectors.conftest import Own

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "confluent_producer.py"


def reading(seq: int, **changes: Any) -> dict[str, Any]:
    now = int(time.time() * 1000)
    row = {"device_id": "fr-0001", "seq": seq, "measured_at": now, "temperature": 4, "door_open": True}
    return row | changes


@pytest.fixture
async def client(own: Own) -> AsyncIterator[httpx.AsyncClient]:
    handler = Ingest(own.settings)
    transport = httpx.ASGITransport(Starlette(routes=handler.routes()))
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        yield client
    await handler.close()


async def test_rows_are_answered_one_by_one(own: Own, client: httpx.AsyncClient) -> None:
    url = f"/ingest/Reading_{own.name}"
    one = await client.post(url, json=reading(1))
    assert (one.status_code, one.json()) == (200, {"accepted": 1, "rejected": 0, "errors": []})
    lines = [
        json.dumps(reading(2)),
        '{"device_id":',
        json.dumps(reading(3, temperature=200)),
        json.dumps(reading(4, humidity="wet")),
        json.dumps(reading(5, humidity=50.5)),
    ]
    some = await client.post(url, content="\n".join(lines), headers={"content-type": "application/x-ndjson"})
    assert some.status_code == 207
    body = some.json()
    assert (body["accepted"], body["rejected"]) == (2, 3)
    assert [(e["index"], e["field"]) for e in body["errors"]] == [(1, ""), (2, "temperature"), (3, "humidity")]
    assert "between -60 90" in body["errors"][1]["message"]
    none = await client.post(url, json=[reading(6, device_id="nobody")])
    assert (none.status_code, none.headers["content-type"]) == (400, "application/problem+json")
    assert none.json()["errors"][0]["field"] == "device_id"
    records = own.read(lambda found: len(found) >= 3)
    assert sorted(r.row["seq"] for r in records if r.row) == [1, 2, 5]
    assert {r.key for r in records} == {b"fr-0001"}


async def test_requests_that_fail_as_a_whole(
    own: Own, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await client.post("/ingest/Nothing", json={})).status_code == 404
    assert (await client.post("/ingest/KpiValue", json={})).status_code == 404
    url = f"/ingest/Reading_{own.name}"
    assert (await client.get(url)).status_code == 405
    assert (await client.post(url, content=b"{")).status_code == 400
    monkeypatch.setattr(ingest, "MAX_BODY", 100)
    assert (await client.post(url, content=b"x" * 101)).status_code == 413

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 50

    assert (await client.post(url, content=parts())).status_code == 413


async def test_no_answer_before_the_broker_has_the_rows(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    away = own.settings.kafka.model_copy(update={"bootstrap_servers": "127.0.0.1:1"})
    settings = own.settings.model_copy(update={"kafka": away})
    monkeypatch.setattr(ingest, "ACK_SECONDS", 1.0)
    transport = httpx.ASGITransport(Starlette(routes=Ingest(settings).routes()))
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        answer = await client.post(f"/ingest/Reading_{own.name}", json=reading(1))
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0


def test_an_ordinary_producer_works_unchanged(own: Own) -> None:
    contract = next(own.settings.content[0].rglob("*.avsc")).read_text()
    produce = runpy.run_path(str(EXAMPLE))["produce"]
    rows = "".join(json.dumps(reading(seq, measured_at=seq)) + "\n" for seq in range(20))
    ensure_topics(own.settings.kafka, {own.topic: TopicSpec()})
    sent = produce(own.settings.kafka.bootstrap_servers, own.settings.registry.url, contract, StringIO(rows))
    assert sent == 20
    records = own.read(lambda found: len(found) >= 20)
    assert [r.row["seq"] for r in records if r.row] == list(range(20)), "one key, one partition, in order"
    assert {r.partition for r in records} == {partition_for(pa.array([b"fr-0001"]), own.settings.kafka.partitions)[0]}
