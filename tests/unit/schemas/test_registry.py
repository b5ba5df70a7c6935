from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import ContractError, IdentityError, SchemaNotFoundError, UnavailableError
from schemas.registry import Registry

A = {"type": "record", "name": "A", "fields": [{"name": "x", "type": "int"}]}
B = {"type": "record", "name": "B", "fields": []}


class Server:
    """A registry that answers what the test says."""

    def __init__(self) -> None:
        self.schemas: dict[int, Any] = {}
        self.broken: tuple[int, str] | None = None
        self.asked: list[str] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.asked.append(self.path)
                status, body = owner.broken or owner.answer(self.path)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, path: str) -> tuple[int, str]:
        found = self.schemas.get(int(path.rpartition("/")[2]))
        if found is None:
            return 404, json.dumps({"error_code": 40403, "message": "not found"})
        return 200, json.dumps(found if "schema" in found else {"schema": json.dumps(found)})


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def registry(server: Server, cache: Path | None = None, check_seconds: float = 300.0) -> Registry:
    return Registry(server.url, cache, patience=0.3, check_seconds=check_seconds)


def test_tls_is_verified_however_its_scheme_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[bool] = []
    monkeypatch.setattr("schemas.registry.httpx.Client", lambda verify, **_: verified.append(verify))
    for url in ("https://registry", "HTTPS://registry", "http://registry"):
        Registry(url)
    assert verified == [True, True, False]


def test_an_id_is_asked_for_once(server: Server, tmp_path: Path) -> None:
    server.schemas = {1: A}
    client = registry(server, tmp_path)
    assert client.schema(1) is client.schema(1)
    assert server.asked == ["/schemas/ids/1"]


@pytest.mark.parametrize(
    "broken", [(500, "{}"), (503, ""), (404, "<html>nothing here</html>"), (200, "<html>"), (404, "{}")]
)
def test_a_registry_in_trouble_is_unavailable_never_ignorant(server: Server, broken: tuple[int, str]) -> None:
    server.broken = broken
    with pytest.raises(UnavailableError):
        registry(server).schema(1)
    assert len(server.asked) > 1


def test_a_registry_that_is_down_is_unavailable(server: Server) -> None:
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(UnavailableError, match="cannot be reached"):
        registry(server).schema(1)


def test_unknown_ids_are_not_asked_for_again_at_once(server: Server) -> None:
    client = registry(server)
    for schema_id in (7, 7, 2**31, 2**32 - 1):
        with pytest.raises(SchemaNotFoundError, match=f"schema id {schema_id}"):
            client.schema(schema_id)
    assert server.asked == ["/schemas/ids/7"]


def test_known_ids_survive_restarts_without_a_registry(server: Server, tmp_path: Path) -> None:
    server.schemas = {1: A}
    registry(server, tmp_path).schema(1)
    server.broken = (503, "{}")
    assert registry(server, tmp_path).schema(1) == A
    server.broken = None
    server.schemas = {}
    assert registry(server, tmp_path).schema(1) == A


def test_an_id_that_means_another_schema_halts(server: Server, tmp_path: Path) -> None:
    server.schemas = {1: A}
    running = registry(server, tmp_path, check_seconds=0.0)
    running.schema(1)
    server.schemas = {1: {**A, "fields": list(A["fields"])}}
    assert running.schema(1) == A
    server.schemas = {1: B}
    with pytest.raises(IdentityError, match="schema id 1"):
        running.schema(1)
    with pytest.raises(IdentityError):
        registry(server, tmp_path).schema(1)


def test_a_damaged_cache_is_not_believed(server: Server, tmp_path: Path) -> None:
    server.schemas = {1: A}
    registry(server, tmp_path).schema(1)
    (file,) = tmp_path.glob("*/1.json")
    for damaged in (file.read_text().replace('"int"', '"long"'), "{", "[]"):
        file.write_text(damaged)
        assert registry(server, tmp_path).schema(1) == A


def test_schemas_that_are_no_avro_are_refused(server: Server) -> None:
    server.schemas = {
        1: {"schema": "{}", "schemaType": "JSON"},
        2: {"schema": "{"},
        3: {"schema": '"string"', "references": [{"name": "x"}]},
        4: {"schema": '"string"'},
    }
    for schema_id in (1, 2, 3):
        with pytest.raises(ContractError):
            registry(server).schema(schema_id)
    assert registry(server).schema(4) == {"type": "string"}
