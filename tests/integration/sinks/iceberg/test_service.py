"""The sink against real Kafka, registry and a catalog in Postgres."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from sqlalchemy import make_url

from headrace.config import Settings
from headrace.errors import FencedError
from headrace.lake import query
from headrace.process import Lifecycle
from sinks.iceberg.current import CurrentTable
from sinks.iceberg.owned import Prepared
from sinks.iceberg.service import run
from sinks.iceberg.slices import Slice
from tests.integration.sinks.iceberg.shop import Proxy, Shop, envelope, opened_shop, running


async def test_bronze_and_current_state_of_a_change_topic(settings: Settings, tmp_path: Path) -> None:
    async with opened_shop(settings, tmp_path) as shop:
        await shop.send([shop.event("r", n, f"n{n}") for n in range(20)])
        async with running(shop.settings) as lifecycle:
            await shop.until_landed()
            for round_ in range(6):
                events = [shop.event("u", n, f"r{round_}") for n in range(round_, 12)]
                events += [shop.event("d", 20 - round_), shop.event("c", 100 + round_, "new")]
                await shop.send(events)
                await asyncio.sleep(0.4)
            await shop.send(
                [shop.event("c", 200, "wide", extra=1.5)],
                envelope(shop.topic, {"name": "extra", "type": ["null", "double"], "default": None}),
            )
            await shop.until_landed()
            assert lifecycle.problems() == {}
            await shop.send([shop.event("u", n, "last") for n in range(5)])
        # What was not read before the stop is read after it; the index is built anew.
        async with running(shop.settings):
            await shop.until_landed()
        assert (200, 1.5) in shop.rows(shop.current, "id", "extra")
        by_duckdb = query(shop.settings.lake, f"SELECT id, name FROM {shop.current}").fetchall()
        assert dict(by_duckdb) == shop.state


async def test_a_connector_file_that_comes_while_it_runs_is_found_and_a_wrong_one_is_said(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinks.iceberg.service.DISCOVERY_SECONDS", 0.2)
    async with opened_shop(settings, tmp_path) as shop:
        file = tmp_path / "connectors" / "debezium" / f"{shop.prefix}.json"
        said = file.read_text()
        file.unlink()
        await shop.send([shop.event("c", n, f"n{n}") for n in range(5)])
        async with running(shop.settings) as lifecycle:
            await asyncio.wait_for(_until(lambda: lifecycle.problems() == {}), 30)
            file.write_text(said[:-1])
            await asyncio.wait_for(_until(lambda: file.name in lifecycle.problems().get("topics", "")), 10)
            assert shop.rows(shop.current, "id") == []
            file.write_text(said)
            await shop.until_landed()
            # What was known goes on while a file is wrong, and when it is gone.
            other = file.with_name("other.json")
            other.write_text("{")
            await asyncio.wait_for(_until(lambda: other.name in lifecycle.problems().get("topics", "")), 10)
            await shop.send([shop.event("u", 1, "later")])
            await shop.until_landed()
            other.unlink()
            file.unlink()
            await asyncio.wait_for(_until(lambda: lifecycle.problems() == {}), 10)
            await shop.send([shop.event("u", 2, "later still")])
            await shop.until_landed()


async def test_undecodable_records_are_quarantined_once_and_others_flow(settings: Settings, tmp_path: Path) -> None:
    async with opened_shop(settings, tmp_path) as shop:
        await shop.send([shop.event("c", 1, "a")])
        await shop.send_raw(1, [b"\x00\x00\x00", b"hello", b"\x00\x7f\xff\xff\xffx"])
        await shop.send([shop.event("u", 1, "b")])
        async with running(shop.settings):
            await asyncio.wait_for(_until(lambda: len(shop.rows(shop.bronze, "_offset")) == 2), 30)
            await asyncio.wait_for(_until(lambda: len(_refused(shop)) == 3), 30)
        async with running(shop.settings):
            await asyncio.sleep(1.0)
        assert dict(shop.rows(shop.current, "id", "name")) == {1: "b"}
        assert _refused(shop) == [(1, 1, b"\x00\x00\x00"), (1, 2, b"hello"), (1, 3, b"\x00\x7f\xff\xff\xffx")]


def _refused(shop: Shop) -> list[tuple[object, ...]]:
    found = shop.rows("ops.quarantine", "source_topic", "source_partition", "source_offset", "value")
    return sorted(row[1:] for row in found if row[0] == shop.topic)


async def _until(true: Callable[[], bool]) -> None:
    while not await asyncio.to_thread(true):  # noqa: ASYNC110
        await asyncio.sleep(0.2)


async def test_an_error_that_nobody_foresaw_rests_its_topic_and_not_the_process(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinks.iceberg.service.RETRY_SECONDS", 0.2)
    prepare, faults = CurrentTable.prepare, [KeyError("n1"), ValueError("n2")]

    def faulty(table: CurrentTable, slices: Sequence[Slice]) -> Prepared:
        if faults:
            raise faults.pop()
        return prepare(table, slices)

    monkeypatch.setattr(CurrentTable, "prepare", faulty)
    async with opened_shop(settings, tmp_path) as shop:
        await shop.send([shop.event("c", n, f"n{n}") for n in range(5)])
        async with running(shop.settings) as lifecycle:
            await asyncio.wait_for(_until(lambda: not faults), 30)
            await shop.until_landed()
            await asyncio.wait_for(_until(lambda: lifecycle.problems() == {}), 30)


async def test_of_two_sinks_one_ends_with_a_reason(settings: Settings, tmp_path: Path) -> None:
    async with opened_shop(settings, tmp_path) as shop:
        await shop.send([shop.event("c", 1, "a")])
        sinks = [asyncio.create_task(run(shop.settings, Lifecycle())) for _ in range(2)]
        async with asyncio.timeout(40):
            while not any(task.done() for task in sinks):
                await shop.send([shop.event("u", 1, str(shop.sent))])
                await asyncio.sleep(0.2)
        lost = next(task for task in sinks if task.done())
        assert isinstance(lost.exception(), FencedError)
        await shop.until_landed()
        for task in sinks:
            task.cancel()
        await asyncio.gather(*sinks, return_exceptions=True)


async def test_the_catalog_goes_away_and_comes_back(settings: Settings, tmp_path: Path) -> None:
    """Connections refused, then commits whose answers are lost: their outcome is found out, nothing is doubled."""
    async with opened_shop(settings, tmp_path) as shop:
        uri = make_url(shop.settings.lake.uri)
        async with Proxy(uri.port or 5432) as proxy:
            through = uri.set(host="127.0.0.1", port=proxy.port).render_as_string(False)
            lake = shop.settings.lake.model_copy(update={"uri": through})
            await shop.send([shop.event("c", n, "first") for n in range(5)])
            async with running(shop.settings.model_copy(update={"lake": lake})) as lifecycle:
                await shop.until_landed()
                for mode in ("refuse", "pass", "swallow", "pass") * 2:
                    before = proxy.cut
                    proxy.set(mode)
                    for i in range(6):
                        await shop.send([shop.event("u", n, f"{mode}{i}") for n in range(5)])
                        await asyncio.sleep(0.2)
                    assert mode == "pass" or proxy.cut > before
                await shop.until_landed()
                assert lifecycle.problems() == {}


async def test_killed_at_random_moments_it_lands_everything_once(settings: Settings, tmp_path: Path) -> None:
    """SIGKILL under load, three times; afterwards both tables hold exactly what was sent."""
    async with opened_shop(settings, tmp_path) as shop:
        config = tmp_path / "home" / "endpoints.json"
        config.parent.mkdir(exist_ok=True)
        sections = {"content", "kafka", "registry", "postgres", "lake", "sink"}
        config.write_text(shop.settings.model_dump_json(include=sections))
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
        environment |= {"HEADRACE_HOME": str(config.parent), "HEADRACE_LOG_LEVEL": "WARNING"}
        number = 0
        for round_ in range(4):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "cli.main", "run", "sink", cwd=Path.cwd(), env=environment
            )
            waits = 3.0 + 0.7 * round_ if round_ < 3 else 0
            deadline = asyncio.get_running_loop().time() + waits
            while asyncio.get_running_loop().time() < deadline:
                events = []
                for _ in range(50):
                    number += 1
                    key = number * 7919 % 150
                    gone = number % 5 == 0 and key in shop.state
                    events.append(shop.event("d" if gone else "u", key, None if gone else str(number)))
                await shop.send(events)
                await asyncio.sleep(0.05)
            if round_ < 3:
                assert process.returncode is None
                process.kill()
                await process.wait()
        await shop.until_landed(60)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0
        assert shop.state_landed()
