"""A topic's flow when its servers come and go: what was fed is landed once, in order, or the flow says why not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.errors import FencedError, UnavailableError
from headrace.kafka import Chunk
from schemas.codec import Encoder
from sinks.iceberg import gather
from sinks.iceberg.append import AppendTable
from sinks.iceberg.flow import TableFlow, TopicFlow, Workers
from sinks.iceberg.reader import TopicReader
from sinks.iceberg.slices import Reject
from tests.unit.sinks.iceberg.support import catalog_in, rows_of, source

VALUE = {"type": "record", "name": "V", "fields": [{"name": "v", "type": "long"}]}


class Away:
    """Answers only after a number of calls."""

    def __init__(self, calls: int = 0, error: Exception | None = None) -> None:
        self.calls, self.error = calls, error or UnavailableError("away")

    def ask(self) -> None:
        if self.calls:
            self.calls -= 1
            raise self.error


class Registry(Away):
    def schema(self, _: int) -> dict[str, Any]:
        self.ask()
        return VALUE


class Table(AppendTable):
    away = Away()

    def commit(self, prepared: Any) -> None:
        self.away.ask()
        super().commit(prepared)


class Quarantine(Away):
    def __init__(self, calls: int = 0) -> None:
        super().__init__(calls)
        self.sent: list[int] = []

    async def send(self, rejects: Sequence[Reject], topic_id: str) -> None:
        assert topic_id == "to/pic"
        self.ask()
        self.sent += [int(o) for r in rejects for o in r.slice.offsets[r.rows]]


class Setup:
    def __init__(self, folder: Path) -> None:
        self.table = Table(catalog_in(folder), "bronze.t", "t")
        self.registry, self.quarantine = Registry(), Quarantine()
        self.failures: list[BaseException] = []
        self.workers = Workers(ThreadPoolExecutor(1), ThreadPoolExecutor(1))
        self.at = 0

    async def flow(self, **options: Any) -> TopicFlow:
        table = TableFlow(self.table, **({"freshness": 0.05, "max_rows": 1000} | options))
        reader = TopicReader(self.registry.schema)
        flow = TopicFlow(
            "t", [table], reader, self.quarantine, self.workers, lambda _, error: self.failures.append(error)
        )
        await flow.open(source())
        return flow

    def chunk(self, *values: int | None) -> Chunk:
        """None does not decode."""
        encoded = Encoder(VALUE, 1).encode(pa.RecordBatch.from_pydict({"v": [v or 0 for v in values]})).to_pylist()
        raw = [b"bad" if v is None else e for v, e in zip(values, encoded, strict=True)]
        start, n = self.at, len(values)
        self.at += n
        return Chunk(
            "t", 0, pa.nulls(n, pa.binary()), pa.array(raw), np.arange(start, self.at), np.ones(n, int), self.at
        )

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        return rows_of(self.table, "_offset", "v")


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.setattr("sinks.iceberg.flow.FIRST_WAIT", 0.01)
    return Setup(tmp_path)


async def until(true: Any) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_everything_is_away_for_a_while(setup: Setup) -> None:
    setup.registry.calls, setup.quarantine.calls, setup.table.away = 3, 2, Away(3)
    flow = await setup.flow()
    flow.feed(setup.chunk(1, None, 2))
    await until(lambda: flow.problems)
    flow.feed(setup.chunk(3))
    await until(lambda: setup.table.offsets == {0: 4})
    await flow.close(5)
    assert setup.rows == [(0, 1), (2, 2), (3, 3)]
    assert setup.quarantine.sent == [1]
    assert (flow.problems, flow.nbytes, flow.landed(), setup.failures) == ([], 0, {0: 4}, [])


async def test_no_more_is_decoded_than_there_is_room_for(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "LARGE_BYTES", 0)
    flow = await setup.flow(freshness=60)
    flow.limit(2_000)
    setup.table.away = Away(10**6)
    for _ in range(100):
        flow.feed(setup.chunk(*range(10)))
    await until(lambda: flow.problems)
    held = flow.tables[0].nbytes
    assert 2_000 <= held < 4_000
    setup.table.away = Away()
    await flow.close(60)
    assert len(setup.rows) == 1000


async def test_what_is_full_does_not_wait_for_its_freshness(setup: Setup) -> None:
    """Whoever feeds it stops then: nothing else would ever come, and what waits for more would wait for nothing."""
    flow = await setup.flow(freshness=60)
    flow.limit(40_000)
    assert flow.hungry
    assert not flow.full
    fed = 0
    while not flow.full:
        assert not flow.tables[0].nbytes
        flow.feed(setup.chunk(*range(100)))
        fed += 100
    assert not flow.hungry
    await until(lambda: flow.hungry)
    await flow.close(5)
    assert len(setup.rows) == fed


async def test_the_table_is_told_whether_more_waits_in_kafka(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    monkeypatch.setattr(setup.table, "care", lambda *, busy: told.append(busy))
    flow = await setup.flow()
    for unread in (3, 2, 0):
        flow.unread = unread
        flow.feed(setup.chunk(1, 2))
        await until(lambda: flow.landed() == {0: setup.at} and len(told) == setup.at // 2)
    await flow.close(5)
    assert told == [True, False, False]


async def test_close_lands_what_waits(setup: Setup) -> None:
    flow = await setup.flow(freshness=60)
    flow.feed(setup.chunk(1, 2))
    await flow.close(5)
    assert setup.rows == [(0, 1), (1, 2)]


async def test_close_gives_up_when_nothing_moves_and_the_next_one_goes_on(setup: Setup) -> None:
    flow = await setup.flow(freshness=60)
    setup.table.away = Away(10**6)
    flow.feed(setup.chunk(1, 2))
    await flow.close(0.2)
    assert setup.rows == []
    setup.table.away = Away()
    setup.at = 0
    flow = await setup.flow()
    flow.feed(setup.chunk(1, 2))
    await flow.close(5)
    assert setup.rows == [(0, 1), (1, 2)]


async def test_enough_rows_are_landed_before_they_are_due(setup: Setup) -> None:
    flow = await setup.flow(freshness=60, max_rows=3)
    flow.feed(setup.chunk(1, 2))
    await asyncio.sleep(0.1)
    assert setup.table.offsets == {}
    flow.feed(setup.chunk(3))
    await until(lambda: setup.table.offsets == {0: 3})
    await flow.close(5)


async def test_losing_the_table_is_reported(setup: Setup) -> None:
    setup.table.away = Away(1, FencedError("taken"))
    flow = await setup.flow()
    flow.feed(setup.chunk(1))
    await until(lambda: setup.failures)
    assert isinstance(setup.failures[0], FencedError)
    await flow.cancel()


async def test_a_new_partition_is_read_from_its_beginning(setup: Setup) -> None:
    flow = await setup.flow()
    flow.admit({1: 7})
    assert flow.fed == {0: 0, 1: 7}
    await flow.close(1)
