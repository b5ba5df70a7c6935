"""A small business application: customers over HTTP/JSON, kept in a SQLite file.

It behaves as such applications do: a token where one is set, `Idempotency-Key` honoured (a key seen before changes
nothing and gets the first answer again), 422 for what it will not take, 429 when asked too fast.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from demo.options import options
from headrace.config import Settings
from headrace.process import Lifecycle

TABLES = """
CREATE TABLE IF NOT EXISTS customers (id TEXT PRIMARY KEY, body TEXT NOT NULL, updated_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, digest TEXT NOT NULL, status INTEGER, body BLOB);
CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, n INTEGER NOT NULL);
"""


class Throttle:
    """Takes `rate` requests a second, `rate` at once at most; beyond that says how long to wait."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.clock = rate, clock
        self.tokens, self.at = rate, clock()

    def wait(self) -> float:
        """0 when the request is taken, else the seconds after which to come again."""
        now = self.clock()
        self.tokens = min(self.rate, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens >= 1:
            self.tokens -= 1
            return 0.0
        return (1 - self.tokens) / self.rate


def answer(status: int, body: object, **headers: str) -> Response:
    return Response(orjson.dumps(body), status, headers, "application/json")


class Crm:
    """The application. One SQLite transaction a request: an answer is kept with the change that it reports."""

    def __init__(self, file: Path, *, token: str | None = None, rate: float = 100.0) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.db = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        self.db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; {TABLES}")
        self.token = token
        self.throttle = Throttle(rate)

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/", self.page),
            Route("/stats", self.stats),
            Route("/customers", self.list),
            Route("/customers/{id}", self.get),
            Route("/customers/{id}", self.guarded(self.put), methods=["PUT"]),
            Route("/customers/{id}", self.guarded(self.delete), methods=["DELETE"]),
        ]

    def close(self) -> None:
        self.db.close()

    def count(self, name: str) -> None:
        self.db.execute("INSERT INTO counts VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET n = n + 1", (name,))

    def guarded(self, change: Callable[[str, bytes], Response]) -> Callable[[Request], Awaitable[Response]]:
        """Token, throttle, idempotency; then `change` of (id, request body)."""

        async def handle(request: Request) -> Response:
            if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
                return answer(401, {"error": "token missing or wrong"})
            if wait := self.throttle.wait():
                self.count("throttled")
                return answer(429, {"error": "too many requests"}, **{"retry-after": f"{wait:.3f}"})
            body, key = await request.body(), request.headers.get("idempotency-key")
            target = f"{request.method} {request.url.path}\n".encode()
            digest = hashlib.sha256(target + body).hexdigest()
            self.db.execute("BEGIN IMMEDIATE")
            try:
                given = self.replay(key, digest) or change(request.path_params["id"], body)
                if key and given.status_code < 500:
                    row = (key, digest, given.status_code, bytes(given.body))
                    self.db.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", row)
                self.db.execute("COMMIT")
            except BaseException:
                self.db.execute("ROLLBACK")
                raise
            return given

        return handle

    def replay(self, key: str | None, digest: str) -> Response | None:
        """The answer that this key got before; 422 when it came with something else then."""
        row = self.db.execute("SELECT digest, status, body FROM answers WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        if row[0] != digest:
            self.count("key_conflicts")
            return answer(422, {"error": "this Idempotency-Key came with another request"})
        self.count("replays")
        return Response(row[2], row[1], {"idempotent-replayed": "true"}, "application/json")

    def put(self, id: str, body: bytes) -> Response:
        try:
            customer = orjson.loads(body)
        except ValueError:
            customer = None
        if not isinstance(customer, dict):
            self.count("refused")
            return answer(422, {"error": "the body must be a JSON object"})
        email = customer.get("email")
        if email is not None and "@" not in str(email):
            self.count("refused")
            return answer(422, {"error": "not an e-mail address", "field": "email"})
        self.db.execute(
            "INSERT INTO customers VALUES (?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET body = excluded.body, updated_at = excluded.updated_at",
            (id, orjson.dumps(customer).decode(), time.time()),
        )
        self.count("writes")
        return answer(200, {"id": id})

    def delete(self, id: str, body: bytes) -> Response:
        gone = self.db.execute("DELETE FROM customers WHERE id = ?", (id,)).rowcount
        self.count("deletes")
        return answer(200 if gone else 404, {"id": id})

    async def get(self, request: Request) -> Response:
        row = self.db.execute("SELECT body FROM customers WHERE id = ?", (request.path_params["id"],)).fetchone()
        return answer(200, orjson.loads(row[0])) if row else answer(404, {"error": "no such customer"})

    async def list(self, request: Request) -> Response:
        """The customers changed last, or all with `?all=1`."""
        limit = -1 if request.query_params.get("all") else 50
        rows = self.db.execute(
            "SELECT id, body, updated_at FROM customers ORDER BY updated_at DESC, id LIMIT ?", (limit,)
        )
        return answer(200, [orjson.loads(body) | {"id": id, "updated_at": at} for id, body, at in rows])

    async def stats(self, _: Request) -> Response:
        counts = dict(self.db.execute("SELECT name, n FROM counts").fetchall())
        (customers,) = self.db.execute("SELECT count(*) FROM customers").fetchone()
        return answer(200, {"customers": customers} | counts)

    async def page(self, _: Request) -> Response:
        return HTMLResponse((files("demo") / "crm.html").read_text(encoding="utf-8"))


def service(settings: Settings) -> tuple[Starlette, Callable[[Lifecycle], Awaitable[None]]]:
    """The application, served beside the process's health pages. Its token is `CRM_TOKEN`, where that is set."""
    file = settings.state / "demo" / "crm.sqlite"
    crm = Crm(file, token=os.environ.get("CRM_TOKEN") or None, rate=options().crm_rate)

    async def body(lifecycle: Lifecycle) -> None:
        lifecycle.ready()
        await lifecycle.stopping.wait()
        crm.close()

    return Starlette(routes=crm.routes()), body
