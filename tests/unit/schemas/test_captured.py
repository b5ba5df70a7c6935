from __future__ import annotations

from pathlib import Path

import pytest

from headrace.errors import ConfigError
from schemas.captured import Captured, change_prefixes
from schemas.contracts import load_contracts

ROOT = Path(__file__).parents[3]


def test_topics_of_tables_are_those_of_connectors_and_of_contracts_of_rows() -> None:
    captured = Captured(load_contracts([ROOT]), ["shop", "shop.eu", "a.b"])
    for topic in ("shop.public.orders", "shop.public.unknown", "shop.eu.public.orders", "a.b.c.d"):
        assert topic in captured
    others = ["shop.transaction", "shop.public.headrace_signal", "__debezium-heartbeat.shop", "shopping.a.b", "a.b.c"]
    others += ["shop.eu.notifications", "shop.eu.transaction"]
    for topic in (*others, "clean.orders", "telemetry.readings"):
        assert topic not in captured
    by_contract = [topic for topic in Captured(load_contracts([ROOT])).contracts.by_topic if topic.startswith("shop.")]
    assert by_contract
    assert all(topic in Captured(load_contracts([ROOT])) for topic in by_contract)


def test_prefixes_come_from_connector_files(tmp_path: Path) -> None:
    folder = tmp_path / "connectors" / "debezium"
    folder.mkdir(parents=True)
    (folder / "a.json").write_text('{"name": "a", "config": {"topic.prefix": "shop"}}')
    assert change_prefixes([tmp_path]) == {"shop"}
    assert "shop.public.orders" in Captured.load([tmp_path])
    (folder / "b.json").write_text("[]")
    with pytest.raises(ConfigError, match="connector"):
        Captured.load([tmp_path])
