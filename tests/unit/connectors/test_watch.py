"""What is told of each connector that Connect has."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from connectors.connect import Connect, ConnectorStatus
from connectors.watch import Watch
from headrace.config import Settings
from headrace.kafka import admin

CONFIGS = {"a": {"topic.prefix": "shop"}, "b": {"topic.prefix": "shop.eu"}}
TOPICS = {
    "shop.public.orders": 1_000,
    "shop.eu.public.orders": 2_000,
    "shop.eu.public.headrace_signal": 3_000,
    "shop.eu.transaction": 4_000,
    "shopping.public.orders": 5_000,
    "__debezium-heartbeat.shop.eu": 6_000,
}


def test_a_topic_is_of_the_connector_with_the_longest_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connect, "configs", lambda _: CONFIGS)
    monkeypatch.setattr(Connect, "statuses", lambda _: [ConnectorStatus(name, "RUNNING") for name in CONFIGS])
    monkeypatch.setattr("connectors.watch.divided", lambda *_: "")
    monkeypatch.setattr(admin, "partitions", lambda _: dict.fromkeys(TOPICS, 1))
    monkeypatch.setattr(admin, "newest_timestamps", lambda _, topics: {t: TOPICS[t] for t in topics if t in TOPICS})
    with closing(Watch(Settings(home=tmp_path))) as watch:
        shop, eu = watch.look()
    assert (shop.last_events, shop.heartbeat, shop.problems) == ({"public.orders": 1.0}, None, ())
    assert (eu.last_events, eu.heartbeat, eu.problems) == ({"public.orders": 2.0}, 6.0, ())
