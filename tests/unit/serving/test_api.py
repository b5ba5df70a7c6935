"""The HTTP API over a lake in a folder."""

from __future__ import annotations

from pathlib import Path

import httpx
import pyarrow as pa
from fastapi import FastAPI
from pyiceberg.catalog.sql import SqlCatalog

from headrace.config import LakeSettings, Settings
from serving.api import add_api
from serving.collect import Collector


async def test_sql_tells_every_kind_of_value_and_errors_as_problems(tmp_path: Path) -> None:
    lake = LakeSettings(uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}/lake")
    catalog = SqlCatalog(lake.catalog, uri=lake.uri, warehouse=lake.warehouse)
    catalog.create_namespace("bronze")
    rows = pa.table({"_key": [b"\x00\xff"], "value": [{"raw": b"\x80"}], "n": [float("nan")]})
    catalog.create_table("bronze.things", schema=rows.schema).append(rows)
    settings = Settings(home=tmp_path, content=[], lake=lake)
    app = FastAPI()
    add_api(app, settings, Collector(settings))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://headrace") as client:
        good = await client.post("/api/sql", json={"sql": "SELECT * FROM bronze.things"})
        bad = await client.post("/api/sql", json={"sql": "SELECT nonesuch FROM bronze.things"})
    assert good.json() == {
        "columns": ["_key", "value", "n"],
        "rows": [["00ff", {"raw": "80"}, None]],
        "truncated": False,
        "sources": {},
    }
    assert (bad.status_code, bad.headers["content-type"]) == (422, "application/problem+json")
