"""The demo from one command to proof: rows are right, rubbish is refused, KPIs move."""

from __future__ import annotations

from collections import Counter

import httpx
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from tests.e2e.conftest import Headrace, eventually, revisions

# The first test waits for the whole stack to start.
pytestmark = pytest.mark.timeout(1500)

KPIS = {
    "active_devices",
    "alarms",
    "customer_alarms",
    "customer_orders",
    "customer_spend",
    "orders_by_status",
    "revenue_per_minute",
    "temperature_p95",
}


def verified(headrace: Headrace) -> None:
    done = headrace("verify", "--patience", "120", check=False, timeout=900)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "everything agrees" in done.stderr


def test_the_business_applications_get_their_rows(demo: Headrace) -> None:
    crm = demo.get("endpoints.crm")
    stats = eventually(90, "the CRM has customers", lambda: httpx.get(f"{crm}/stats", timeout=5).json()["customers"])
    assert stats > 0


def test_bad_readings_are_in_the_quarantine_with_rule_and_reason(demo: Headrace) -> None:
    rows = eventually(120, "something is quarantined", lambda: demo.json("quarantine", "list"))
    assert all(row["rule"] and row["reason"] for row in rows)
    assert demo.json("quarantine", "show", rows[0]["source"])


def test_every_process_says_that_it_is_ready(demo: Headrace) -> None:
    rows = {row["name"]: row for row in demo.json("status")}
    assert {row["state"] for row in rows.values()} == {"running"}
    for name in ("serve", "worker", "merger", "sink", "kpi-sink", "sync", "bridge"):
        base = demo.get(f"endpoints.{name}")
        assert httpx.get(f"{base}/healthz", timeout=5).status_code == 200
        assert "headrace_build_info" in httpx.get(f"{base}/metrics", timeout=5).text


def test_rubbish_in_captured_topics_is_refused_and_everything_agrees(demo: Headrace) -> None:
    """Also whole records of another table and of an agent's output, which tables, KPIs, lookups, agents and syncs would
    each count as theirs, or fail on."""
    kafka = demo.get("kafka.bootstrap_servers")
    stages = {"orders": ["bronze", "agent:orders"], "customers": ["bronze"]}
    whole = {topic: a_record(kafka, topic) for topic in (*(f"shop.public.{t}" for t in stages), "clean.readings")}
    restarts = {name: row["restarts"] for name, row in demo.status().items()}
    producer = Producer({"bootstrap.servers": kafka})
    for topic in (f"shop.public.{table}" for table in stages):
        others = [value for name, (_, value) in whole.items() if name != topic]
        key, value = whole[topic]
        for rubbish in (*others, value[:-9], b"\0\0\x0f\xff\xff0", b"rubbish"):
            producer.produce(topic, rubbish, key, partition=0)
    assert producer.flush(30) == 0

    def refused(table: str) -> Counter[str]:
        return Counter(row["stage"] for row in demo.json("quarantine", "list", "--topic", f"shop.public.{table}"))

    for table, read_by in stages.items():
        wanted = dict.fromkeys(read_by, 5)
        eventually(60, "all is quarantined", lambda t=table, w=wanted: refused(t) == w)
    verified(demo)
    assert {name: row["restarts"] for name, row in demo.status().items()} == restarts


def a_record(kafka: str, topic: str) -> tuple[bytes | None, bytes]:
    """The key and the value of one."""
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "rubbish", "auto.offset.reset": "earliest"})
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    (record,) = consumer.consume(1, 60)
    consumer.close()
    value = record.value()
    assert record.error() is None
    assert value is not None
    return record.key(), value


def test_every_kpi_moves(demo: Headrace) -> None:
    eventually(
        120,
        "every KPI has values",
        lambda: set(demo.kpis()) >= KPIS and all(kpi["points"] for name, kpi in demo.kpis().items() if name in KPIS),
    )
    before = revisions(demo)
    eventually(120, "every KPI moves", lambda: all(revisions(demo)[name] > before[name] for name in KPIS))
