"""Change events and readings through the real worker, merger and sink, killed on the way, to Redis."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
import redis

from headrace.kafka.admin import TopicSpec, ensure_topics
from tests.integration.streams.support import Oracle, framed

PARTITIONS = 3
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
def site(tmp_path, settings):
    """Content, topics and the environment of this test's processes."""
    return Site(tmp_path, settings)


class Site:
    def __init__(self, folder, settings):
        self.folder, self.settings, self.tag = folder, settings, uuid.uuid4().hex[:8]
        self.oracle = Oracle(settings)
        self.orders, self.readings = f"t{self.tag}.public.orders", f"t{self.tag}.readings"
        ensure_topics(settings.kafka, {t: TopicSpec(PARTITIONS) for t in (self.orders, self.readings)})
        database = 1 + int(self.tag, 16) % 15
        self.redis_url = settings.redis.url.rpartition("/")[0] + f"/{database}"
        self.redis = redis.Redis.from_url(self.redis_url)
        self.redis.flushdb()
        self.processes = {}
        (folder / "streams" / "kpis").mkdir(parents=True)

    def kpi(self, name, **declared):
        lines = [f"{k} = {json.dumps(v)}" for k, v in ({"title": name, "unit": "u"} | declared).items()]
        (self.folder / "streams" / "kpis" / f"{name}_{self.tag}.toml").write_text("\n".join(lines))

    def start(self, name):
        log = (self.folder / f"{name}.log").open("ab")
        self.processes[name] = subprocess.Popen(
            [sys.executable, "-P", "-m", "cli.main", "run", name], cwd=self.folder, stderr=log, stdout=log,
            env={
                **os.environ,
                "HEADRACE_HOME": str(self.folder / "home"),
                "HEADRACE_CONTENT": str(self.folder),
                "HEADRACE_KAFKA__BOOTSTRAP_SERVERS": self.settings.kafka.bootstrap_servers,
                "HEADRACE_REGISTRY__URL": self.settings.registry.url,
                "HEADRACE_REDIS__URL": self.redis_url,
                "HEADRACE_WORKER__APPLICATION": f"g{self.tag}",
                "HEADRACE_WORKER__SESSION_TIMEOUT_SECONDS": "6",
            },
        )  # fmt: skip
        log.close()

    def kill(self, name):
        self.processes[name].kill()
        self.processes[name].wait()

    def values(self, name):
        """{(window start or None, group as text): value}, as Redis has them."""
        stored = self.redis.hgetall(f"kpi:{name}_{self.tag}")
        found = {}
        for field, text in stored.items():
            window, _, group = field.decode().partition("|")
            value = json.loads(text)["value"]
            found[None if window == "all" else datetime.fromisoformat(window), group] = value
        return {k: v for k, v in found.items() if v}

    def await_values(self, name, expected, seconds=60):
        deadline = time.monotonic() + seconds
        while self.values(name) != expected:
            dead = [n for n, p in self.processes.items() if p.poll() is not None]
            if time.monotonic() > deadline or dead:
                logs = {n: (self.folder / f"{n}.log").read_text()[-3000:] for n in self.processes}
                pytest.fail(f"{dead=}\n{self.values(name)}\n!= {expected}\n" + "\n".join(map(str, logs.items())))
            time.sleep(0.2)


@pytest.fixture
def running(site):
    yield site
    for process in site.processes.values():
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    for process in site.processes.values():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
    site.redis.flushdb()


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
