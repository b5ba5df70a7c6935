"""A table in Postgres through the real Debezium: the KPI is what SQL says, also after a second snapshot."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from connectors.connect import Connect, load_connector
from headrace.errors import ContractError
from streams.kpi.declaration import require_full_identity
from tests.integration.streams.kpi_support import open_site

SHOP = Path(__file__).parents[3] / "connectors" / "debezium" / "shop.json"
SPEND = "SELECT country, sum(amount)::float8 FROM orders WHERE status <> 'cancelled' GROUP BY country"
INSERT = (
    "INSERT INTO orders SELECT i, (ARRAY['DE', 'FR', NULL])[1 + i %% 3], 'new', i * 1.37 "
    "FROM generate_series(%s::bigint, %s::bigint) i"
)


class Table:
    """A database with a table `orders` and its connector."""

    def __init__(self, postgres_url, connect_url, name, folder):
        self.name, self.client, self.connect_url, self.folder = name, Connect(connect_url), connect_url, folder
        self.admin = psycopg.connect(postgres_url, autocommit=True)
        self.admin.execute(f"CREATE DATABASE {name}")
        self.url = make_conninfo(postgres_url, dbname=name)
        self.db = psycopg.connect(self.url, autocommit=True)
        self.db.execute(
            "CREATE TABLE orders (id bigint PRIMARY KEY, country text, status text, amount numeric(12, 2), "
            "created_at timestamptz DEFAULT now())"
        )

    def stream(self):
        config = json.loads(SHOP.read_text())["config"] | {
            "database.dbname": self.name, "topic.prefix": self.name, "table.include.list": "public.orders",
            "slot.name": self.name, "publication.name": self.name, "heartbeat.interval.ms": "500",
            "topic.creation.default.partitions": "3",
        }  # fmt: skip
        path = self.folder / "connector.json"
        path.write_text(json.dumps({"name": self.name, "config": config}))
        self.client.apply(load_connector(path))

    def forget(self):
        """The connector, what it knows and its slot go: as when a slot is lost."""
        httpx.put(f"{self.connect_url}/connectors/{self.name}/stop").raise_for_status()
        self.until(lambda: httpx.delete(f"{self.connect_url}/connectors/{self.name}/offsets").is_success)
        self.client.remove(self.name)
        self.drop_slot()

    def drop_slot(self):
        def dropped():
            found = self.admin.execute(
                "SELECT active FROM pg_replication_slots WHERE slot_name = %s", (self.name,)
            ).fetchall()
            if found == [(False,)]:
                self.admin.execute("SELECT pg_drop_replication_slot(%s)", (self.name,))
            return not found

        self.until(dropped)

    def until(self, check, seconds=30):
        deadline = time.monotonic() + seconds
        while not check():
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def close(self):
        if any(c.name == self.name for c in self.client.statuses()):
            self.client.remove(self.name)
        self.drop_slot()
        self.db.close()
        self.admin.execute(f"DROP DATABASE {self.name} WITH (FORCE)")
        self.admin.close()


@pytest.fixture
def site(tmp_path, settings):
    with open_site(tmp_path, settings) as made:
        yield made


@pytest.fixture
def table(postgres_url, connect_url, site):
    made = Table(postgres_url, connect_url, f"k{site.tag}", site.folder)
    yield made
    made.close()


def expected(table):
    return {
        (None, json.dumps({"country": country}, separators=(",", ":"))): total
        for country, total in table.db.execute(SPEND).fetchall()
        if total
    }


def test_the_kpi_is_what_sql_says(site, table):
    with pytest.raises(ContractError) as e:
        require_full_identity(table.url, "public.orders")
    assert e.value.hint == 'ALTER TABLE "public"."orders" REPLICA IDENTITY FULL'
    table.db.execute(e.value.hint)
    require_full_identity(table.url, "public.orders")

    table.db.execute(INSERT, (1, 500))
    table.stream()
    site.kpi(
        "spend", source=f"{table.name}.public.orders", measure="sum", field="amount", dimensions=["country"],
        filter="status <> 'cancelled'",
    )  # fmt: skip
    for name in ("worker", "merger", "kpi-sink"):
        site.start(name)
    site.await_values("spend", expected(table))
    table.db.execute(INSERT, (501, 800))
    table.db.execute("UPDATE orders SET status = 'cancelled' WHERE id % 7 = 0")
    table.db.execute("UPDATE orders SET amount = amount + 0.01, country = 'IT' WHERE id % 5 = 0")
    table.db.execute("DELETE FROM orders WHERE id % 11 = 0")
    site.await_values("spend", expected(table))

    # Nobody listens while rows change and go; then everything is read again.
    table.forget()
    table.db.execute("UPDATE orders SET amount = amount * 2, country = 'DE' WHERE id % 4 = 0")
    table.db.execute("DELETE FROM orders WHERE id % 13 = 0")
    table.stream()
    site.await_values("spend", expected(table))
    table.db.execute("UPDATE orders SET status = 'new'")
    table.db.execute("DELETE FROM orders WHERE id % 3 = 0")
    site.await_values("spend", expected(table))
