from __future__ import annotations

from pathlib import Path

import pytest

from connectors.ingest import Ingest
from headrace.config import Settings
from serving.app import service


async def test_ingest_is_closed_when_the_server_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    async def close(self: Ingest) -> None:
        closed.append(self)

    monkeypatch.setattr(Ingest, "close", close)
    app, _ = service(Settings(home=tmp_path, content=[]))
    async with app.router.lifespan_context(app):
        assert not closed
    assert len(closed) == 1
