from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import ContractError, IdentityError, SchemaNotFoundError, UnavailableError
from schemas.registered import registered
from schemas.registry import Registry

A = {"type": "record", "name": "A", "fields": [{"name": "x", "type": "int"}]}
B = {"type": "record", "name": "B", "fields": []}


class Server:
    """A registry that answers what the test says."""

    def __init__(self) -> None:
        self.schemas: dict[int, Any] = {}
        # Ids by version, of the one subject there is.
        self.versions: dict[int, int] = {}
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
        head, _, last = path.rpartition("/")
        if last == "versions" and self.versions:
            return 200, json.dumps(list(self.versions))
        number = max(self.versions, default=0) if last == "latest" else int(last) if last.isdigit() else 0
        schema_id = number if head == "/schemas/ids" else self.versions.get(number, 0)
        found = self.schemas.get(schema_id)
        if found is None:
            return 404, json.dumps({"error_code": 40403, "message": "not found"})
        said = found if "schema" in found else {"schema": json.dumps(found)}
        return 200, json.dumps(said | {"id": schema_id, "version": number})


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


@pytest.mark.parametrize(
    ("versions", "ids"),
    [
        ({1: 8, 2: 3, 3: 5}, [5, 3, 8]),
        ({1: 8, 2: 4, 4: 9, 7: 5}, [5, 8]),
        ({1: 8, 2: 4}, [8]),
        ({1: 8, 2: 9}, [8]),
        ({1: 8}, [8]),
        ({}, []),
    ],
)
def test_a_topic_has_the_schemas_that_can_be_used_the_newest_first(
    server: Server, versions: dict[int, int], ids: list[int]
) -> None:
    server.schemas = {8: A, 3: B, 5: A, 4: {"schema": "{}", "schemaType": "JSON"}}
    server.versions = versions
    assert list(registered(registry(server), "things")) == ids


def test_earlier_schemas_of_a_topic_are_asked_for_only_when_they_are_wanted(server: Server) -> None:
    server.schemas, server.versions = {8: A, 3: B}, {1: 8, 2: 3}
    assert next(registered(registry(server), "things")) == 3
    assert server.asked == ["/subjects/things-value/versions/latest"]
