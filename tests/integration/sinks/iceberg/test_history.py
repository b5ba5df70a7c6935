"""Histories and limits of the index through the real sink."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headrace.config import Settings
from headrace.kafka import admin
from headrace.kafka.admin import TopicSpec
from headrace.lake import answer
from tests.integration.sinks.iceberg.shop import EPOCH_MS, PARTITIONS, Shop, opened_shop, running, until


def declare(shop: Shop, folder: Path, history: str) -> None:
    contracts = folder / "schemas" / "contracts"
    contracts.mkdir(parents=True)
    fields = [{"name": "id", "type": "long"}, {"name": "name", "type": ["null", "string"], "default": None}]
    record: dict[str, Any] = {"type": "record", "name": "Thing", "owner": "somebody", "topic": shop.topic}
    storage = {"table": shop.current, "history": history, "mode": "current"}
    record |= {"key": ["id"], "envelope": "debezium", "storage": storage, "fields": fields}
    (contracts / "thing.avsc").write_text(json.dumps(record))


class Log:
    """Versions of each row as they come, by hand: (id, name, from, to), times in ms since the first change."""

    def __init__(self) -> None:
        self.versions: list[list[Any]] = []
        self._open: dict[int, list[Any]] = {}

    def add(self, event: dict[str, Any]) -> dict[str, Any]:
        row, time = event["after"] or event["before"], event["source"]["ts_ms"] - EPOCH_MS
        if row["id"] in self._open:
            self._open.pop(row["id"])[3] = time
        if event["after"]:
            self._open[row["id"]] = [row["id"], row["name"], time, None]
            self.versions.append(self._open[row["id"]])
        return event

    def at(self, time: int) -> dict[int, str]:
        return {v[0]: v[1] for v in self.versions if v[2] <= time and (v[3] is None or v[3] > time)}


async def test_a_history_has_every_version_once_and_gives_back_the_past(settings: Settings, tmp_path: Path) -> None:
    chance = random.Random(11)
    async with opened_shop(settings, tmp_path) as shop:
        history = f"silver.{shop.prefix}_history"
        declare(shop, tmp_path, history)
        log = Log()
        await shop.send([log.add(shop.event("r", n, f"n{n}")) for n in range(30)])
        for _ in range(2):
            async with running(shop.settings) as lifecycle:
                for _ in range(6):
                    events = []
                    for _ in range(25):
                        key = chance.randrange(40)
                        known = key in shop.state
                        op = chance.choice("ud") if known else "c"
                        name = str(chance.random()) if op != "d" else shop.state[key]
                        events.append(log.add(shop.event(op, key, name)))
                    await shop.send(events)
                    await asyncio.sleep(0.3)
                await shop.until_landed()
                await until(lambda: len(shop.rows(history, "id")) >= len(log.versions))
                assert lifecycle.problems() == {}
        found = answer(
            shop.settings.lake,
            f"SELECT id, name, epoch_ms(valid_from) - {EPOCH_MS}, epoch_ms(valid_to) - {EPOCH_MS} FROM {history}",
        )
        assert sorted(found.rows, key=repr) == sorted(map(tuple, log.versions), key=repr)
        assert {v[0]: v[1] for v in log.versions if v[3] is None} == shop.state
        # The source says that all this was long ago: before the table's first snapshot.
        for time in (30, 100, 200, 330):
            then = datetime.fromtimestamp((EPOCH_MS + time) / 1000, UTC)
            rows = answer(shop.settings.lake, f"SELECT id, name FROM {shop.current}", as_of=then).rows
            assert dict(rows) == log.at(time)


async def test_a_topic_whose_index_is_too_large_halts_alone(settings: Settings, tmp_path: Path) -> None:
    async with opened_shop(settings, tmp_path, max_index_bytes=1 << 20) as large:
        other = f"{large.prefix}b"
        connector = tmp_path / "connectors" / "debezium" / "other.json"
        connector.write_text(json.dumps({"name": other, "config": {"topic.prefix": other}}))
        small = Shop(large.settings, other, large.producer)
        await asyncio.to_thread(admin.ensure_topics, large.settings.kafka, {small.topic: TopicSpec(PARTITIONS)})
        await large.send([large.event("r", n, "x") for n in range(40_000)])
        await small.send([small.event("r", n, "x") for n in range(50)])
        async with running(large.settings) as lifecycle:
            await small.until_landed()
            await until(lambda: "max_index_bytes" in str(lifecycle.problems()))
            assert f"{large.topic}: " in str(lifecycle.problems())
            await small.send([small.event("u", n, "y") for n in range(50)])
            await small.until_landed()
