from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import uvicorn
from psycopg.conninfo import make_conninfo
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from demo.crm import Crm


@dataclass
class App:
    """The demo's business application on a real port. `answers` are given instead of its own, in turn."""

    url: str
    crm: Crm
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    answers: list[Response] = field(default_factory=list)

    def customers(self) -> dict[str, Any]:
        import json

        return {i: json.loads(b) for i, b in self.crm.db.execute("SELECT id, body FROM customers").fetchall()}

    def counts(self) -> dict[str, int]:
        return dict(self.crm.db.execute("SELECT name, n FROM counts").fetchall())


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    crm = Crm(tmp_path / "crm.sqlite", rate=10_000)
    inner = Starlette(routes=crm.routes())
    found = App("", crm)

    async def front(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            found.requests.append((request.method, request.url.path, request.headers.get("idempotency-key", "")))
            if found.answers:
                await found.answers.pop(0)(scope, receive, send)
                return
        await inner(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(front, port=0, log_level="warning"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not (server.started and server.servers):
        assert thread.is_alive()
    found.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield found
    server.should_exit = True
    thread.join(10)
    crm.close()


@pytest.fixture
def database(postgres_url: str) -> Iterator[str]:
    """URL of a database of the test's own."""
    name = f"t{uuid4().hex[:10]}"
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
        yield _url(postgres_url, name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def _url(url: str, database: str) -> str:
    parts = psycopg.conninfo.conninfo_to_dict(make_conninfo(url))
    return "postgresql://{user}:{password}@{host}:{port}/".format(**parts) + database
