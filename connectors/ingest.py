"""HTTP ingest: `POST /ingest/<contract>` takes JSON or NDJSON rows, and answers when the broker has them.

Each row is checked against the contract's schema and rules; what breaks them is in the answer, row by row, and is not
written: here the sender is still there to mend it. At least once: a sender that got no answer sends again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from aiokafka.errors import KafkaError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from connectors.convert import Converted, RowError
from connectors.feed import MAX_RECORD_BYTES, Feed, Stream, is_fed_from_outside
from headrace.config import Settings
from headrace.errors import HeadraceError, TransientError
from headrace.metrics import BATCH_ROWS, ROWS_DROPPED, ROWS_IN, ROWS_OUT
from schemas.contracts import Contract, load_contracts

FLOW = "ingest"
MAX_BODY = 16 << 20
MAX_ERRORS = 1000
ACK_SECONDS = 10.0
CONCURRENT = 64
# Bytes of bodies taken at once; rows and records made of them take several times as much memory.
MAX_BODIES = 32 << 20
CLOSE_SECONDS = 5.0
NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/jsonlines")


class Problem(Exception):
    """A request that fails as a whole; answered as RFC 9457 problem+json."""

    def __init__(self, status: int, title: str, detail: str = "", *, retry_after: int = 0, **more: Any) -> None:
        super().__init__(title)
        self.status = status
        self.body = {"type": "about:blank", "title": title, "status": status, **({"detail": detail} if detail else {})}
        self.body |= more
        self.headers = {"retry-after": str(retry_after)} if retry_after else {}

    def response(self) -> Response:
        return Response(orjson.dumps(self.body), self.status, self.headers, "application/problem+json")


def parse_rows(body: bytes, content_type: str) -> tuple[list[Any], list[int], list[RowError]]:
    """The rows of a body, the index of each, and errors for lines that are not JSON.

    Raises `Problem` 400 when a JSON body is none, or neither an object nor an array; 415 for another type.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind in NDJSON:
        rows: list[Any] = []
        indexes: list[int] = []
        errors: list[RowError] = []
        lines = (line for line in body.splitlines() if line.strip())
        for index, line in enumerate(lines):
            try:
                rows.append(orjson.loads(line))
                indexes.append(index)
            except orjson.JSONDecodeError as e:
                errors.append(RowError(index, "", f"not JSON: {e}", "JSON"))
        return rows, indexes, errors
    if kind not in ("", "application/json"):
        raise Problem(415, "Unsupported content type", f"send application/json or {NDJSON[0]}")
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as e:
        raise Problem(400, "The body is not JSON", str(e)) from None
    if not isinstance(data, dict | list):
        raise Problem(400, "The body must be an object or an array of objects")
    rows = data if isinstance(data, list) else [data]
    return rows, list(range(len(rows))), []


def check_rules(stream: Stream, found: Converted) -> tuple[pa.RecordBatch, list[RowError]]:
    """The rows that keep every rule of the contract, and for each other row the first rule that it breaks."""
    broken: dict[int, RowError] = {}
    for rule in stream.rules:
        failing = np.flatnonzero(~rule.mask(found.batch).to_numpy(zero_copy_only=False))
        for row in failing.tolist():
            index = int(found.rows[row])
            broken.setdefault(index, RowError(index, rule.field, f"breaks the rule {rule.name}", rule.name))
    if not broken:
        return found.batch, []
    keep = np.isin(found.rows, list(broken), invert=True)
    return found.batch.filter(pa.array(keep)), list(broken.values())


class Bodies:
    """How many bytes of bodies may still be taken, over all requests."""

    def __init__(self, limit: int) -> None:
        self._free = limit

    @contextmanager
    def claims(self) -> Iterator[Callable[[int], None]]:
        """What claims bytes for one request, all given back at its end; raises `Problem` 503 when they are not free."""
        mine = 0

        def claim(size: int) -> None:
            nonlocal mine
            if size > self._free:
                raise Problem(503, "Too many bytes at once", retry_after=1)
            self._free -= size
            mine += size

        try:
            yield claim
        finally:
            self._free += mine


class Ingest:
    """HTTP ingest over the contracts of the content folders. Connects at the first request.

    `close` sends what waits, for a few seconds; nothing that was answered waits.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._feed: Feed | None = None
        self._slots = asyncio.Semaphore(CONCURRENT)
        self._bodies = Bodies(MAX_BODIES)
        self._contracts: Mapping[str, Contract] = load_contracts(settings.content).by_name

    def routes(self) -> list[BaseRoute]:
        return [Route("/ingest/{contract}", self.post, methods=["POST"])]

    async def close(self) -> None:
        if self._feed is not None:
            # Kafka may be away.
            with suppress(TimeoutError):
                await asyncio.wait_for(self._feed.close(), CLOSE_SECONDS)

    async def post(self, request: Request) -> Response:
        try:
            return await self._post(request)
        except Problem as problem:
            return problem.response()
        except ClientDisconnect:
            return Response(status_code=400)

    async def _post(self, request: Request) -> Response:
        contract = self._find(request.path_params["contract"])
        if self._slots.locked():
            raise Problem(503, "Too many requests at once", retry_after=1)
        async with self._slots:
            with self._bodies.claims() as claim:
                body = await read_body(request, claim)
                rows, indexes, errors = parse_rows(body, request.headers.get("content-type", ""))
                stream = await self._attempt(lambda: self._stream(contract))
                ROWS_IN.labels(FLOW, contract.topic).inc(len(rows) + len(errors))
                accepted, refused = await self._take(stream, rows)
        # A row's index is its place in the request, whatever lines before it were not JSON.
        errors += [replace(error, index=indexes[error.index]) for error in refused]
        errors.sort(key=lambda error: error.index)
        # Not in the quarantine: the sender has them, and the answer.
        for rule, count in Counter(error.rule for error in errors).items():
            ROWS_DROPPED.labels(FLOW, contract.topic, f"refused: {rule}").inc(count)
        report: dict[str, Any] = {
            "accepted": accepted,
            "rejected": len(errors),
            "errors": [asdict(error) for error in errors[:MAX_ERRORS]],
        }
        if errors and not accepted:
            raise Problem(400, "No row follows the contract", **report)
        return Response(orjson.dumps(report), 207 if errors else 200, media_type="application/json")

    def _find(self, name: str) -> Contract:
        contract = self._contracts.get(name.rpartition(".")[2])
        if contract is None or not is_fed_from_outside(contract):
            open_to_all = sorted(c.name for c in self._contracts.values() if is_fed_from_outside(c))
            raise Problem(404, f"No contract {name!r} takes rows", f"there are: {', '.join(open_to_all) or 'none'}")
        return contract

    async def _stream(self, contract: Contract) -> Stream:
        self._feed = self._feed or Feed(self._settings)
        return await self._feed.stream(contract)

    async def _take(self, stream: Stream, rows: list[Any]) -> tuple[int, list[RowError]]:
        """Number of rows that the broker has, and the errors of the others."""
        topic = stream.contract.topic
        found = await asyncio.to_thread(stream.converter.convert, rows)
        batch, broken = await asyncio.to_thread(check_rules, stream, found)
        refused = found.errors + broken
        if batch.num_rows:
            keys, values = stream.encode(batch)
            if max(len(value) for value in values.to_pylist()) > MAX_RECORD_BYTES:
                raise Problem(413, "A row is too large", f"a row takes at most {MAX_RECORD_BYTES} bytes as Avro")
            await self._attempt(lambda: self._produce(topic, keys, values))
            ROWS_OUT.labels(FLOW, topic).inc(batch.num_rows)
            BATCH_ROWS.labels(FLOW, topic).observe(batch.num_rows)
        return batch.num_rows, refused

    async def _produce(self, topic: str, keys: pa.BinaryArray, values: pa.BinaryArray) -> None:
        assert self._feed is not None
        done, _ = await asyncio.wait(await self._feed.send(topic, keys, values))
        for future in done:
            future.result()

    async def _attempt(self, call: Callable[[], Any]) -> Any:
        """The result of a call. Raises `Problem`: 503 when servers do not answer in time, 500 when they refuse."""
        try:
            return await asyncio.wait_for(call(), ACK_SECONDS)
        except TimeoutError:
            raise Problem(503, "Not acknowledged in time", "the rows may arrive all the same", retry_after=5) from None
        except TransientError as e:
            raise Problem(503, "Not available", e.what, retry_after=5) from None
        except (HeadraceError, KafkaError) as e:
            what = e.what if isinstance(e, HeadraceError) else type(e).__name__
            raise Problem(500, "The rows were not taken", what) from e


async def read_body(request: Request, claim: Callable[[int], None]) -> bytes:
    """The body, refused with 413 as soon as it is known to be too large; `claim` hears of all bytes that are kept."""
    declared = request.headers.get("content-length", "")
    parts: list[bytes] = []
    size = int(declared) if declared.isdigit() else 0
    if size <= MAX_BODY:
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > MAX_BODY:
                break
            # Not before it is here: a slow sender of a long body must not keep others out.
            claim(len(part))
            parts.append(part)
    if size > MAX_BODY:
        raise Problem(413, "The body is too large", f"at most {MAX_BODY} bytes: send several requests")
    return b"".join(parts)
