"""Change events and readings through the real worker, merger and sink, killed on the way, to Redis."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from tests.integration.streams.kpi_support import PARTITIONS, open_site
from tests.integration.streams.support import framed

START = datetime(2026, 1, 1, tzinfo=UTC)
MICROS = {"type": "long", "logicalType": "timestamp-micros"}


def optional(kind):
    return {"type": ["null", kind], "default": None}


def envelope_schema(table):
    row = {
        "type": "record",
        "name": "Value",
        "fields": [
            {"name": "id", "type": "long"},
            {"name": "country", **optional("string")},
            {
                "name": "amount",
                **optional({"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}),
            },
            {"name": "created_at", "type": {"type": "string", "connect.name": "io.debezium.time.ZonedTimestamp"}},
        ],
    }
    source = [
        {"name": "snapshot", **optional("string")},
        {"name": "schema", "type": "string"},
        {"name": "table", "type": "string"},
        {"name": "txId", **optional("long")},
        {"name": "lsn", **optional("long")},
        {"name": "sequence", **optional("string")},
        {"name": "ts_ms", "type": "long"},
    ]
    block = [{"name": "id", "type": "string"}, {"name": "total_order", "type": "long"}]
    return {
        "type": "record",
        "name": "Envelope",
        "namespace": table,
        "fields": [
            {"name": "before", "type": ["null", row], "default": None},
            {"name": "after", "type": ["null", "Value"], "default": None},
            {"name": "source", "type": {"type": "record", "name": "Source", "fields": source}},
            {"name": "transaction", **optional({"type": "record", "name": "block", "fields": block})},
            {"name": "op", "type": "string"},
        ],
    }


class Shop:
    """A table that changes, and the log of it as Debezium writes it: snapshot first, repeats after crashes."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.rows, self.next_id, self.lsn = {}, 1, 1000
        self.recent = []
        self.start = START

    def row(self, key):
        return {
            "id": key,
            "country": self.random.choice(["DE", "FR", "IT", None]),
            "amount": Decimal(self.random.randint(0, 10_000_000)).scaleb(-2),
            "created_at": (self.start + timedelta(seconds=self.random.randint(0, 600))).isoformat(),
        }

    def event(self, op, before, after, placed=True):
        self.lsn += 10
        return {
            "before": before,
            "after": after,
            "op": op,
            "source": {
                "snapshot": "false" if placed else "true", "schema": "public", "table": "orders",
                "txId": self.lsn if placed else 7, "lsn": self.lsn if placed else 1000,
                "sequence": json.dumps([str(self.lsn), str(self.lsn)]) if placed else None, "ts_ms": 0,
            },
            "transaction": {"id": str(self.lsn), "total_order": 1} if placed else None,
        }  # fmt: skip

    def snapshot(self, size):
        for _ in range(size):
            self.rows[self.next_id] = self.row(self.next_id)
            self.next_id += 1
        return [self.event("r", None, row, placed=False) for row in self.rows.values()]

    def changes(self, count):
        out = []
        for _ in range(count):
            kind = self.random.random()
            if kind < 0.4 or not self.rows:
                key, self.next_id = self.next_id, self.next_id + 1
                self.rows[key] = self.row(key)
                event = self.event("c", None, self.rows[key])
            elif kind < 0.8:
                key = self.random.choice(list(self.rows))
                old, self.rows[key] = self.rows[key], self.row(key)
                event = self.event("u", old, self.rows[key])
            else:
                key = self.random.choice(list(self.rows))
                event = self.event("d", self.rows.pop(key), None)
            out.append((key, event))
        # Connect crashed: what it had not noted down comes again.
        return out + out[-20:] + self.changes(10) if count > 50 else out


@pytest.fixture
def running(tmp_path, settings):
    with open_site(tmp_path, settings) as site:
        yield site


def spend(rows):
    total = defaultdict(Decimal)
    for row in rows.values():
        total[None, json.dumps({"country": row["country"]}, separators=(",", ":"))] += row["amount"]
    return {k: float(v) for k, v in total.items()}


def per_minute(rows):
    total = defaultdict(int)
    for row in rows.values():
        total[datetime.fromisoformat(row["created_at"]).replace(second=0), "{}"] += 1
    return {k: float(v) for k, v in total.items()}


def test_values_in_redis_equal_the_table_after_kills(running):
    site = running
    site.kpi("spend", source=site.orders, measure="sum", field="amount", dimensions=["country"])
    site.kpi("orders", source=site.orders, measure="count", window="1m", event_time="created_at", lateness="1h")
    schema = envelope_schema(site.orders)
    schema_id = site.oracle.register(site.orders, schema)
    shop = Shop(7)

    def produce(events):
        records = [(key % PARTITIONS, str(key).encode(), framed(schema_id, schema, e)) for key, e in events]
        site.oracle.produce(site.orders, records)

    produce([(e["after"]["id"], e) for e in shop.snapshot(300)])
    for name in ("worker", "merger", "kpi-sink"):
        site.start(name)
    site.await_values("spend", spend(shop.rows))
    for victims in (("worker",), ("merger", "kpi-sink"), ("worker", "merger")):
        for _ in range(4):
            produce(shop.changes(300))
            time.sleep(0.1)
        for name in victims:
            site.kill(name)
        produce(shop.changes(100))
        for name in victims:
            site.start(name)
        produce(shop.changes(100))
    site.await_values("spend", spend(shop.rows))
    site.await_values("orders", per_minute(shop.rows))
    # Declared later, counted from the beginning; the others go on where they stood.
    site.kpi("later", source=site.orders, measure="count")
    for name in ("worker", "merger", "kpi-sink"):
        site.processes[name].send_signal(signal.SIGTERM)
        assert site.processes[name].wait(30) == 0
        site.start(name)
    produce(shop.changes(60))
    site.await_values("later", {(None, "{}"): float(len(shop.rows))})
    site.await_values("spend", spend(shop.rows))
    last = json.loads(site.redis.hget(f"kpi:later_{site.tag}", "all|{}"))
    assert last["cut"] == {site.orders: {str(p): end for p, end in enumerate(site.oracle.ends(site.orders))}}
