"""An HTTP/JSON application: one request a change, with an idempotency key."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from time import time

import httpx
import orjson

from headrace.errors import ConfigError
from sinks.reverse.declaration import Http, Sync
from sinks.reverse.fold import Change
from sinks.reverse.targets.base import RESPONSE_LENGTH, Done, Failed, Outcome, Refused
from sinks.reverse.template import fill, fill_path, fill_text

# The application is there but wants to be left alone, or what stands before it cannot reach it.
AWAY = frozenset({408, 425, 429, 502, 503, 504})
CREDENTIALS = frozenset({401, 403, 407})


class HttpTarget:
    """Requests of different keys run side by side, `concurrency` at a time; those of one key one after the other."""

    def __init__(self, sync: Sync, url: str) -> None:
        assert sync.http is not None
        self._http: Http = sync.http
        self._name = sync.name
        headers = {"content-type": "application/json", "user-agent": "headrace"}
        if self._http.token_env and (token := os.environ.get(self._http.token_env)):
            headers["authorization"] = f"Bearer {token}"
        self._client = httpx.AsyncClient(base_url=url.rstrip("/"), timeout=sync.timeout, headers=headers)
        self._slots = asyncio.Semaphore(self._http.concurrency)

    async def open(self) -> None:
        """Nothing to do: the first request connects."""

    async def close(self) -> None:
        await self._client.aclose()

    async def send(self, changes: Sequence[Change]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        by_key: dict[str, list[int]] = {}
        for index, change in enumerate(changes):
            by_key.setdefault(change.order, []).append(index)

        async def one_key(indexes: list[int]) -> None:
            for place, index in enumerate(indexes):
                async with self._slots:
                    outcomes[index] = outcome = await self._request(changes[index])
                if isinstance(outcome, Failed):
                    outcomes.update({later: Failed(outcome.reason, outcome.after) for later in indexes[place + 1 :]})
                    return

        await asyncio.gather(*(one_key(indexes) for indexes in by_key.values()))
        return [outcomes[index] for index in range(len(changes))]

    def build(self, change: Change) -> httpx.Request:
        """The request of a change. Raises `ValueError` when its values do not fit path or headers."""
        http = self._http
        delete = change.op == "delete"
        path = fill_path(http.delete_path or http.path if delete else http.path, change.row)
        headers = {} if delete else {name: fill_text(value, change.row) for name, value in http.headers.items()}
        headers[http.idempotency_header] = change.id
        body = b"" if delete else orjson.dumps(change.row if http.body is None else fill(http.body, change.row))
        method = http.delete_method if delete else http.method
        try:
            return self._client.build_request(method, path, headers=headers, content=body)
        except httpx.InvalidURL as e:
            raise ValueError(str(e)) from e

    async def _request(self, change: Change) -> Outcome:
        try:
            request = self.build(change)
        except ValueError as e:
            return Refused(f"the row does not fit the request: {e}")
        try:
            answer = await self._client.send(request)
        except httpx.UnsupportedProtocol as e:
            raise ConfigError(str(e), where=f"sync {self._name}") from e
        except httpx.LocalProtocolError as e:
            return Refused(f"the row does not fit the request: {e}")
        except httpx.HTTPError as e:
            return Failed(f"{type(e).__name__}: {e}".rstrip(": "))
        return self._judge(change, answer)

    @staticmethod
    def _judge(change: Change, answer: httpx.Response) -> Outcome:
        status = answer.status_code
        if answer.is_success or (change.op == "delete" and status in (404, 410)):
            return Done()
        said = f"HTTP {status}: {answer.text[:RESPONSE_LENGTH]}".rstrip(": ")
        if status in AWAY:
            return Failed(f"HTTP {status}", retry_after(answer.headers.get("retry-after", "")))
        if status in CREDENTIALS:
            return Failed(f"HTTP {status}: the application does not accept the credentials")
        return Failed(f"HTTP {status}", counts=True) if status >= 500 else Refused(said)


def retry_after(header: str) -> float:
    """Seconds in a Retry-After header, given as a number or as a date; 0 when there are none. At most five minutes."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time()
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), 300.0) if seconds == seconds else 0.0
