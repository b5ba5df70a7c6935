"""The life of a process: starts, says ready, serves health and metrics, drains on SIGTERM, ends with a reason.

A process is an async function `body(lifecycle)`. It calls `lifecycle.ready()` when it does its work, looks at
`lifecycle.stopping` (an event) and returns after it has drained. What it raises ends the process with status 1 and
one log line; its supervisor restarts it.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from importlib.metadata import PackageNotFoundError, version

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from headrace.config import ProcessSettings
from headrace.errors import HeadraceError, unforeseen
from headrace.logs import configure_logs, get_logger
from headrace.metrics import BUILD

Check = Callable[[], str | None]


class Lifecycle:
    """Shared by a process and its health pages. `checks` return None when well, else the reason."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.checks: dict[str, Check] = {}
        self._ready = False

    def ready(self) -> None:
        self._ready = True

    def problems(self) -> dict[str, str]:
        found = {} if self._ready else {"start": "not ready yet"}
        if self.stopping.is_set():
            found["stop"] = "draining"
        found.update({name: reason for name, check in self.checks.items() if (reason := check()) is not None})
        return found

    async def sleep(self, seconds: float) -> bool:
        """Wait; true when the process is asked to stop meanwhile."""
        try:
            await asyncio.wait_for(self.stopping.wait(), seconds)
        except TimeoutError:
            return False
        return True


def health_routes(lifecycle: Lifecycle) -> list[BaseRoute]:
    """`/livez` asks nothing of others; `/readyz` says what is missing; `/healthz` is its alias; `/metrics`."""

    async def livez(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_: Request) -> Response:
        problems = lifecycle.problems()
        body = {"status": "unavailable" if problems else "ok", "problems": problems}
        return JSONResponse(body, status_code=503 if problems else 200)

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return [
        Route("/livez", livez),
        Route("/readyz", readyz),
        Route("/healthz", readyz),
        Route("/metrics", metrics),
    ]


class _Server(uvicorn.Server):
    def install_signal_handlers(self) -> None:
        """The process handles signals; uvicorn must not."""


async def serve(app: Starlette, settings: ProcessSettings, lifecycle: Lifecycle) -> None:
    """Serve `app` until the process stops. Raises `OSError` when the port is taken."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        lifespan="on",
        ws="none",
        timeout_graceful_shutdown=3,
    )
    server = _Server(config)
    serving = asyncio.ensure_future(server._serve())
    stopped = asyncio.ensure_future(lifecycle.stopping.wait())
    await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    server.should_exit = True
    await serving


def _version() -> str:
    try:
        return version("headrace")
    except PackageNotFoundError:
        return "unknown"


async def _run(body: Callable[[Lifecycle], Awaitable[None]], settings: ProcessSettings, app: Starlette) -> None:
    lifecycle = Lifecycle()
    app.router.routes[:0] = health_routes(lifecycle)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lifecycle.stopping.set)
    pages = asyncio.ensure_future(serve(app, settings, lifecycle))
    work = asyncio.ensure_future(body(lifecycle))
    try:
        await asyncio.wait({pages, work}, return_when=asyncio.FIRST_COMPLETED)
        if pages.done() and not work.done():
            pages.result()
        await work
    finally:
        lifecycle.stopping.set()
        work.cancel()
        await asyncio.gather(pages, work, return_exceptions=True)


def run_process(
    body: Callable[[Lifecycle], Awaitable[None]],
    settings: ProcessSettings,
    app: Starlette | None = None,
) -> int:
    """Run `body` to its end and return the exit status: 0 drained, 1 failed with a reason in the log.

    `app` holds pages of the process's own; health and metrics are put before them.
    """
    configure_logs(settings.name)
    log = get_logger("process")
    BUILD.info({"version": _version(), "process": settings.name})
    log.info("starting", port=settings.port)
    try:
        asyncio.run(_run(body, settings, app or Starlette()))
    except HeadraceError as e:
        log.error("failed", **e.as_dict())
        return 1
    except (Exception, asyncio.CancelledError) as e:  # cancelled: by a library, nobody here does
        log.error("failed", **unforeseen(e).as_dict())
        return 1
    log.info("stopped")
    return 0
