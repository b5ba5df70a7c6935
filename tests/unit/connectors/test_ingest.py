from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY
from starlette.applications import Starlette
from starlette.requests import Request

from connectors.convert import JsonConverter
from connectors.feed import Stream
from connectors.ingest import Bodies, Ingest, Problem, parse_rows, read_body
from headrace.config import Settings
from schemas.codec.encoder import Encoder
from schemas.contracts import Contract

ROOT = Path(__file__).parents[3]


def test_json_bodies() -> None:
    assert parse_rows(b'{"a":1}', "application/json; charset=utf-8") == ([{"a": 1}], [0], [])
    assert parse_rows(b"[1,2]", "") == ([1, 2], [0, 1], [])
    assert parse_rows(b"[]", "application/json") == ([], [], [])


def test_ndjson_keeps_the_places_of_its_lines() -> None:
    rows, indexes, errors = parse_rows(b'{"a":1}\n{"a":\n\n\r\n{"a":2}\r\n', "application/x-ndjson")
    assert (rows, indexes) == ([{"a": 1}, {"a": 2}], [0, 2])
    assert [(e.index, e.message.startswith("not JSON")) for e in errors] == [(1, True)]


@pytest.mark.parametrize(
    ("body", "kind", "status"), [(b"{", "", 400), (b'"a"', "", 400), (b"", "", 400), (b"{}", "text/csv", 415)]
)
def test_bodies_that_are_none(body: bytes, kind: str, status: int) -> None:
    with pytest.raises(Problem) as e:
        parse_rows(body, kind)
    answer = e.value.response()
    assert (answer.status_code, answer.media_type) == (status, "application/problem+json")


async def test_refused_rows_are_dropped_by_rule_and_never_called_quarantined(monkeypatch: pytest.MonkeyPatch) -> None:
    ingest = Ingest(Settings(content=[ROOT]))

    async def stream(contract: Contract) -> Stream:
        return Stream(contract, 1, Encoder(contract.avro, 1), JsonConverter(contract.avro))

    def counted(what: str, **labels: str) -> float:
        found = {"flow": "ingest", "topic": "telemetry.readings", **labels}
        return REGISTRY.get_sample_value(f"headrace_flow_rows_{what}_total", found) or 0

    monkeypatch.setattr(ingest, "_stream", stream)
    row = '{"device_id": "fr-0001", "seq": -1, "measured_at": 0, "temperature": 1, "door_open": false}'
    before = counted("in")
    body = "\n".join([row, "{", "{}", row])
    transport = httpx.ASGITransport(Starlette(routes=ingest.routes()))
    async with httpx.AsyncClient(transport=transport, base_url="http://serve") as client:
        answer = await client.post("/ingest/Reading", content=body, headers={"content-type": "application/x-ndjson"})
    assert answer.status_code == 400
    assert [e["rule"] for e in answer.json()["errors"]] == ["seq: min 0", "JSON", "schema", "seq: min 0"]
    assert counted("in") - before == 4
    dropped = {rule: counted("dropped", rule=f"refused: {rule}") for rule in ("seq: min 0", "JSON", "schema")}
    assert dropped == {"seq: min 0": 2, "JSON": 1, "schema": 1}
    assert not [
        sample
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == "headrace_flow_rows_quarantined_total" and sample.labels["flow"] == "ingest"
    ]


async def test_bodies_beyond_the_memory_for_them_are_refused_until_others_are_done() -> None:
    bodies = Bodies(100)

    async def read(claim: Callable[[int], None], *parts: bytes) -> bytes:
        messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        left = iter([*messages, {"type": "http.request", "body": b"", "more_body": False}])

        async def receive() -> dict[str, Any]:
            return next(left)

        return await read_body(Request({"type": "http", "headers": []}, receive), claim)

    with bodies.claims() as one:
        assert await read(one, b"x" * 60) == b"x" * 60
        with pytest.raises(Problem) as refused, bodies.claims() as two:
            await read(two, b"x" * 30, b"x" * 30)
        answer = refused.value.response()
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        with bodies.claims() as three:
            assert len(await read(three, b"x" * 40)) == 40
    with bodies.claims() as all_of_it:
        assert len(await read(all_of_it, b"x" * 100)) == 100
