"""The `serve` process: dashboard at `/`, API at `/api`, HTTP ingest at `/ingest`, all on one port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast, get_args

from fastapi import FastAPI
from nicegui import ui

from connectors.ingest import Ingest
from headrace.config import Settings
from headrace.process import Lifecycle
from serving.api import add_api
from serving.collect import Collector
from serving.dashboard import Theme, build


def service(settings: Settings) -> tuple[FastAPI, Callable[[Lifecycle], Awaitable[None]]]:
    """The application and the body of its process, which collects what the application shows."""
    ingest = Ingest(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        # The server has let its requests end by now.
        await ingest.close()

    app = FastAPI(title="Headrace", docs_url="/api/docs", openapi_url="/api/openapi.json", lifespan=lifespan)
    collector = Collector(settings)
    add_api(app, settings, collector)
    app.router.routes.extend(ingest.routes())

    @ui.page("/")
    def dashboard(theme: str = "auto") -> None:
        build(collector, cast(Theme, theme if theme in get_args(Theme) else "auto"))

    ui.run_with(app, title="Headrace", show_welcome_message=False)

    async def body(lifecycle: Lifecycle) -> None:
        lifecycle.ready()
        await collector.run(lifecycle)

    return app, body
