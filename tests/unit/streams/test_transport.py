from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from faust.transport.drivers import aiokafka as stock
from faust.types.tuples import TP

from streams import transport
from streams.transport import BUSY_FETCH, BUSY_RATE, QUIET_FETCH, Consumer, ConsumerThread


def test_a_fetch_waits_for_more_while_much_comes_and_for_nothing_when_little_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(transport, "time", SimpleNamespace(monotonic=lambda: now))
    fetcher = SimpleNamespace(_fetch_max_wait_ms=None, _fetch_min_bytes=None)
    thread = ConsumerThread.__new__(ConsumerThread)
    for seconds, rows, wanted in (
        (1.0, 5, QUIET_FETCH),
        (0.5, int(BUSY_RATE), BUSY_FETCH),
        (0.02, 100, BUSY_FETCH),
        (0.5, int(BUSY_RATE / 4), QUIET_FETCH),
        (0.5, 0, QUIET_FETCH),
    ):
        now += seconds
        thread._linger(SimpleNamespace(_fetcher=fetcher), rows)
        assert (fetcher._fetch_max_wait_ms, fetcher._fetch_min_bytes) == wanted
    assert QUIET_FETCH[1] == 1, "one record is not waited upon"
    assert BUSY_FETCH[0] < QUIET_FETCH[0]


async def test_fetching_goes_on_as_soon_as_an_agent_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    partitions = {TP("t", 0), TP("t", 1)}

    async def fetched(self: Any, timeout: float) -> tuple[dict[TP, Any], set[TP]]:
        return {}, self._active_partitions

    async def wait(event: asyncio.Event, timeout: float) -> SimpleNamespace:
        await event.wait()
        return SimpleNamespace(stopped=False)

    monkeypatch.setattr(stock.Consumer, "_wait_next_records", fetched)
    consumer = Consumer.__new__(Consumer)
    consumer.__dict__.update(
        app=SimpleNamespace(in_recovery=False), flow_active=True, wait=wait, _room=asyncio.Event(),
        _active_partitions=set(partitions), _buffered_partitions=set(), _paused_partitions=set(),
    )  # fmt: skip
    assert await consumer._wait_next_records(1.0) == ({}, partitions)
    consumer.on_buffer_full(TP("t", 0))
    waiting = asyncio.ensure_future(consumer._wait_next_records(1.0))
    await asyncio.sleep(0)
    assert not waiting.done()
    consumer.on_buffer_drop(TP("t", 1))
    async with asyncio.timeout(0.5):
        assert await waiting == ({}, partitions)
