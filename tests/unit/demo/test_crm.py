from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from demo.crm import Crm, Throttle


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    crm = Crm(tmp_path / "crm.sqlite", token="t", rate=1000)
    with TestClient(Starlette(routes=crm.routes()), headers={"authorization": "Bearer t"}) as client:
        yield client
    crm.close()


def test_a_key_seen_before_changes_nothing_and_answers_the_same(client: TestClient) -> None:
    put = lambda key, name: client.put("/customers/1", json={"name": name}, headers={"idempotency-key": key})  # noqa: E731
    assert put("a", "one").status_code == 200
    assert put("b", "two").status_code == 200
    again = put("a", "one")
    assert (again.status_code, again.headers["idempotent-replayed"]) == (200, "true")
    assert client.get("/customers/1").json() == {"name": "two"}
    assert put("a", "other").status_code == 422
    assert client.get("/stats").json() == {"customers": 1, "writes": 2, "replays": 1, "key_conflicts": 1}


def test_what_it_will_not_take(client: TestClient) -> None:
    assert client.put("/customers/1", content=b"[").status_code == 422
    assert client.put("/customers/1", json={"email": "nowhere"}).status_code == 422
    assert client.put("/customers/1", json={}, headers={"authorization": "Bearer x"}).status_code == 401
    assert client.delete("/customers/1").status_code == 404
    assert client.get("/customers").json() == []
    assert "<table>" in client.get("/").text


def test_too_fast_is_told_when_to_come_again() -> None:
    now = [0.0]
    throttle = Throttle(2, lambda: now[0])
    assert [throttle.wait() for _ in range(3)] == [0, 0, 0.5]
    now[0] = 0.5
    assert [throttle.wait() for _ in range(2)] == [0, 0.5]
