"""The lake on SeaweedFS: a table written through the settings that the stack gives outlives kill -9 of the store."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest
from pyiceberg.catalog import load_catalog

from headrace.lake import query
from stack.testing import SessionStack
from tests.integration.stack.test_supervision import kill


@pytest.fixture
def own() -> Iterator[SessionStack]:
    session = SessionStack()
    try:
        yield session
    finally:
        session.close()


def test_a_table_on_s3_survives_the_store(own: SessionStack) -> None:
    lake = own.need("postgres", "seaweedfs").lake
    assert lake.warehouse.startswith("s3://")
    catalog = load_catalog(lake.catalog, type="sql", uri=lake.uri, warehouse=lake.warehouse, **lake.properties)
    catalog.create_namespace("bronze")
    rows = pa.table({"id": pa.array(range(1000), pa.int64())})
    table = catalog.create_table("bronze.kept", rows.schema)
    table.append(rows)
    assert query(lake, "SELECT count(*), sum(id) FROM bronze.kept").fetchall() == [(1000, 499500)]
    kill(own.home, "seaweedfs")
    table.append(rows)
    assert query(lake, "SELECT count(*) FROM bronze.kept").fetchall() == [(2000,)]
