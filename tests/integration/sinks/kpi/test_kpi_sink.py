"""The store against a real Redis: nothing lower over higher, one place, and what happens when Redis forgets."""

from datetime import UTC, datetime, timedelta

import pytest
from redis.asyncio import Redis

from schemas.kpis import Kpi
from sinks.kpi import store
from sinks.kpi.store import CHANGES, Place, Store, Value

START = datetime(2026, 1, 1, tzinfo=UTC)
KPI = Kpi(name="spend", title="Spend", source="t", measure="count", unit="EUR")


@pytest.fixture
async def redis(redis_url):
    client = Redis.from_url(redis_url.rpartition("/")[0] + "/15")
    await client.flushdb()
    yield client
    await client.flushdb()
    await client.aclose()


def value(minute, number, revision, group='{"country":"DE"}'):
    start = START + timedelta(minutes=minute)
    end = start + timedelta(minutes=1)
    return Value("spend", start, end, group, number, "EUR", False, revision, '{"t":{"0":7}}', START)


def numbers(values):
    return {v.window_start.minute: v.value for v in values}


async def test_what_is_written_is_read_back_with_its_place(redis):
    kept = Store(redis)
    assert await kept.place() == Place()
    written = value(0, 1.5, 10, '{"country":"{\\"revision\\":99|x"}')
    assert await kept.write(Place(), Place(3, "id"), [written])
    assert await kept.values("spend") == [written]
    assert await kept.place() == Place(3, "id")
    # Another writer, or a Redis that lost its memory: nothing is written.
    assert not await kept.write(Place(), Place(4, "id"), [value(0, 2.0, 11)])
    assert await kept.values("spend") == [written]


async def test_a_lower_revision_never_replaces_a_higher_one(redis):
    kept = Store(redis)
    last = 2**62
    await kept.write(Place(), Place(1, "id"), [value(0, 2.0, last)])
    await kept.write(Place(1, "id"), Place(2, "id"), [value(0, 1.0, 99), value(0, 1.0, last), value(1, 5.0, last)])
    assert numbers(await kept.values("spend")) == {0: 2.0, 1: 5.0}
    assert await redis.xlen(CHANGES) == 2
    await kept.write(Place(2, "id"), Place(3, "id"), [value(0, 3.0, last + 1)])
    assert numbers(await kept.values("spend")) == {0: 3.0, 1: 5.0}


async def test_old_windows_are_trimmed(redis, monkeypatch):
    monkeypatch.setattr(store, "WINDOWS_KEPT", 3)
    kept = Store(redis)
    await kept.write(Place(), Place(1, "id"), [value(m, float(m), m + 1) for m in range(5)])
    assert numbers(await kept.values("spend")) == {2: 2.0, 3: 3.0, 4: 4.0}
    await kept.write(Place(1, "id"), Place(2, "id"), [value(0, 9.0, 50), value(4, 8.0, 51)])
    assert numbers(await kept.values("spend")) == {2: 2.0, 3: 3.0, 4: 8.0}
    assert await redis.zcard("kpi:spend:windows") == 3


async def test_declarations_and_alerts(redis):
    kept = Store(redis)
    await kept.declare([KPI, KPI.model_copy(update={"name": "other"})])
    await kept.declare([KPI])
    assert {k: v["unit"] for k, v in (await kept.declared()).items()} == {"spend": "EUR"}
    await kept.record_alerts({"spend|{}|0": {"state": "fired", "value": 3.0}}, {})
    assert await kept.alerting() == {"spend|{}|0": {"state": "fired", "value": 3.0}}
    await kept.record_alerts({}, {"spend|{}|0": {"state": "resolved", "value": 3.0}})
    assert await kept.alerting() == {}
    assert [entry[b"state"] for _, entry in await redis.xrange("kpi:alerts")] == [b"fired", b"resolved"]
