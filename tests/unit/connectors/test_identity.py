from __future__ import annotations

import pytest

from connectors.identity import captures


@pytest.mark.parametrize(
    ("config", "captured"),
    [
        ({}, True),
        ({"table.include.list": "public.orders"}, True),
        ({"table.include.list": "public.other, PUBLIC[.]ord.*"}, True),
        ({"table.include.list": "public.order"}, False),
        ({"table.exclude.list": "public.orders"}, False),
        ({"table.exclude.list": "public.order"}, True),
        ({"schema.include.list": "public"}, True),
        ({"schema.include.list": "pub"}, False),
        ({"schema.exclude.list": "public,other"}, False),
        ({"schema.include.list": "public", "table.exclude.list": ".*[.]orders"}, False),
    ],
)
def test_a_connector_reads_the_tables_of_its_lists(config: dict[str, str], captured: bool) -> None:
    assert captures(config, "public.orders") is captured


@pytest.mark.parametrize(
    ("config", "captured"),
    [
        ({}, True),
        ({"column.exclude.list": "public[.]orders[.]total"}, False),
        ({"column.exclude.list": "public[.]orders[.]id"}, True),
        ({"column.include.list": "public[.]orders[.](id|total)"}, True),
        ({"column.include.list": "public[.]orders[.]id"}, False),
        ({"table.exclude.list": "public.orders"}, False),
        (
            {"connector.class": "io.debezium.connector.mariadb.MariaDbConnector", "database.include.list": "other"},
            False,
        ),
    ],
)
def test_a_connector_reads_the_columns_of_its_lists(config: dict[str, str], captured: bool) -> None:
    assert captures(config, "public.orders", "total") is captured
