from __future__ import annotations

from pathlib import Path

import pytest

from sinks.iceberg.append import AppendTable
from sinks.iceberg.current import CurrentTable
from tests.unit.sinks.iceberg import history_support
from tests.unit.sinks.iceberg.support import TOPIC, catalog_in, opened


@pytest.fixture
def catalog(tmp_path: Path):
    return catalog_in(tmp_path)


@pytest.fixture
def bronze(catalog):
    return opened(AppendTable(catalog, "bronze.things", TOPIC))


@pytest.fixture
def current(catalog):
    return opened(CurrentTable(catalog, "silver.things", TOPIC))


@pytest.fixture
def history(catalog):
    return history_support.opened(catalog)
