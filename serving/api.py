"""The HTTP API: what the dashboard shows, as JSON, and SELECTs over the lake."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from headrace.config import Settings
from headrace.errors import HeadraceError, TransientError
from headrace.lake import answer
from serving.collect import Collector

MAX_ROWS = 10_000
QUERY_SECONDS = 30.0


class Query(BaseModel):
    sql: str = Field(min_length=1, max_length=100_000, description="one SELECT over the tables of the lake")
    limit: int = Field(1000, ge=1, le=MAX_ROWS, description="rows at most; `truncated` says whether there are more")


def problem(error: HeadraceError) -> JSONResponse:
    """RFC 9457 problem details."""
    status = 503 if isinstance(error, TransientError) else 422
    body = {"type": "about:blank", "title": type(error).__name__, "status": status, "detail": error.what}
    return JSONResponse(
        {**body, "where": error.where, "hint": error.hint}, status, media_type="application/problem+json"
    )


def add_api(app: FastAPI, settings: Settings, collector: Collector) -> None:
    router = APIRouter(prefix="/api")

    @router.get("/kpis")
    async def kpis() -> list[dict[str, Any]]:
        """Every declared KPI with its current values."""
        return [asdict(kpi) for kpi in collector.snapshot.kpis]

    @router.get("/flows")
    async def flows() -> list[dict[str, Any]]:
        """Rows in, proved, quarantined, dropped, lag of each flow, and its rate over the last half minute."""
        return [asdict(flow) for flow in collector.snapshot.flows]

    @router.get("/tables")
    async def tables() -> list[dict[str, Any]]:
        """Tables with their rows, files, size and last commit."""
        return [asdict(table) for table in collector.snapshot.tables]

    @router.get("/health")
    async def health() -> dict[str, Any]:
        """Connectors, processes and what somebody should look at."""
        snapshot = collector.snapshot
        return {
            "troubles": snapshot.troubles(),
            "connectors": [asdict(connector) for connector in snapshot.connectors],
            "processes": [asdict(process) for process in snapshot.processes],
            "read_at": snapshot.read_at,
        }

    @router.post("/sql", responses={422: {"description": "not one SELECT, or wrong"}, 503: {"description": "no lake"}})
    async def sql(body: Query) -> dict[str, Any]:
        """Run one SELECT over the newest snapshots. Bytes are told in hexadecimal."""
        found = await asyncio.to_thread(answer, settings.lake, body.sql, limit=body.limit, seconds=QUERY_SECONDS)
        plain: dict[str, Any] = jsonable_encoder(asdict(found), custom_encoder={bytes: bytes.hex})
        return plain

    async def refuse(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HeadraceError)
        return problem(error)

    app.include_router(router)
    app.add_exception_handler(HeadraceError, refuse)
