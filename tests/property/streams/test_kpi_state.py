"""Workers that are killed, that don't know they are replaced, a changelog that is compacted, a merger that restarts:
whatever happens, the values are those of the table."""

import asyncio
import contextlib
from decimal import Decimal
from unittest.mock import AsyncMock, patch

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.config import Settings
from headrace.kafka import BatchTooLargeError, Chunk
from schemas.codec import Decoded
from schemas.registry import Registry
from streams.kpi import state
from streams.kpi.state import KpiProcessor
from streams.kpi.totals import Totals
from tests.property.streams.test_kpi_contributions import ENVELOPE, by_country, change, histories, kpi

SETTINGS, REGISTRY = Settings(), Registry("http://127.0.0.1:9")
SPEND = kpi(name="spend", dimensions=["country"])
COUNT = kpi("count", "", name="rows", dimensions=["country"], filter="amount > 0")


class Log:
    """One partition of a changelog: (offset, key, value); a batch is appended whole or refused."""

    def __init__(self, largest):
        self.records, self.end, self.largest = [], 0, largest

    def append(self, keys, values):
        if len(keys) > self.largest:
            raise BatchTooLargeError("too large")
        first = self.end
        for key, value in zip(keys.to_pylist(), values.to_pylist(), strict=True):
            self.records.append((self.end, key, value))
            self.end += 1
        return first

    def compact(self):
        last = {key: offset for offset, key, _ in self.records}
        self.records = [r for r in self.records if last[r[1]] == r[0]]

    def columns(self):
        return pa.array([k for _, k, _ in self.records], pa.binary()), pa.array(
            [v for _, _, v in self.records], pa.binary()
        )


class Source:
    """One partition of a change topic; compaction leaves the last record of each key, and none of a deleted one."""

    def __init__(self, log, end, identity="id"):
        self.events, self.offsets, self.begin, self.end = log, list(range(end)), 0, end
        self.identity = identity

    def grow(self, size):
        end = min(self.end + size, len(self.events))
        self.offsets += range(self.end, end)
        self.end = end

    def key(self, offset):
        event = self.events[offset]
        return (event["after"] or event["before"])["id"]

    def compact(self, upto):
        last = {self.key(o): o for o in self.offsets if o < upto}
        kept = {o for o in last.values() if self.events[o]["op"] != "d"}
        self.offsets = [o for o in self.offsets if o >= upto or o in kept]

    def retain(self, begin):
        self.offsets, self.begin = [o for o in self.offsets if o >= begin], begin


class FakeChangelog:
    """A worker's view of the log; `lose` makes the next acknowledgement get lost with the process."""

    topic = "changelog"

    def __init__(self, log):
        self.log, self.lose = log, False

    async def ensure(self):
        pass

    async def write(self, partition, keys, values):
        at = self.log.append(keys, values)
        if self.lose:
            raise ConnectionError
        return at

    async def read(self, partition):
        from streams.kpi.changelog import Fold

        fold = Fold()
        fold.feed(*self.log.columns())
        return fold, self.log.end

    async def only_tombstones(self, partition, start, stop):
        return all(value is None for offset, _, value in self.log.records if start <= offset < stop)


class FakeDecoder:
    def __init__(self, source):
        self.source = source

    def decode(self, values):
        rows = np.arange(len(values))
        batch = pa.RecordBatch.from_pylist([self.source.events[int(v)] for v in values.to_pylist()], schema=ENVELOPE)
        return Decoded(batch, rows, rows[:0], [], rows[:0], rows[:0])


def worker(source, log, kpis):
    processor = KpiProcessor(SETTINGS, "p.public.t", kpis, REGISTRY)
    processor._changelog, processor._decoder = FakeChangelog(log), FakeDecoder(source)
    processor._bounds = AsyncMock(side_effect=lambda partition: (source.begin, source.end))
    with (
        patch.object(state, "topic_ids", lambda *_: {"p.public.t": source.identity}),
        patch.object(state, "after_last_record", AsyncMock(return_value=source.end)),
    ):
        processor.at = asyncio.run(processor.assigned(0, None))
    return processor


def advance(processor, source, size):
    found = [o for o in source.offsets if o >= processor.at][:size]
    if not found:
        return
    keys = pa.array([str(source.key(o)).encode() for o in found])
    values = pa.array([str(o).encode() for o in found])
    following = found[-1] + 1
    chunk = Chunk("p.public.t", 0, keys, values, np.array(found), np.full(len(found), 4_000_000_000_000), following)
    asyncio.run(processor.process(chunk))
    processor.at = following


def merged(log, kpis):
    totals = Totals(kpis)
    totals.ends({("p.public.t", 0): 0})
    totals.feed("p.public.t", 0, *log.columns(), 0.0)
    return totals


@settings(max_examples=60, deadline=None)
@given(histories(), st.integers(8, 40), st.data())
def test_values_are_those_of_the_table_whatever_happens(made, largest, data):
    events, table = made
    source = Source(events, data.draw(st.integers(0, len(events))))
    log, kpis = Log(largest), [SPEND]
    owner, zombies, running, read = worker(source, log, kpis), [], Totals([SPEND, COUNT]), 0
    running.ends({("p.public.t", 0): 0})
    published = {}
    for _ in range(data.draw(st.integers(1, 12))):
        happens = data.draw(st.sampled_from(["work"] * 3 + ["die", "lose", "zombie", "compact", "declare", "merge"]))
        if happens == "work":
            source.grow(data.draw(st.integers(0, 5)))
            advance(owner, source, data.draw(st.integers(1, 8)))
        elif happens == "die":
            owner = worker(source, log, kpis)
        elif happens == "lose":
            owner._changelog.lose = True
            with contextlib.suppress(ConnectionError):
                advance(owner, source, 3)
            owner = worker(source, log, kpis)
        elif happens == "zombie":
            zombies.append(owner)
            owner = worker(source, log, kpis)
        elif happens == "compact":
            # Only what has lain for an hour is compacted: by then the owner has repaired what a zombie wrote over.
            advance(owner, source, 1)
            owner = worker(source, log, kpis)
            advance(owner, source, 1)
            if not zombies:
                log.compact()
                read = 0
                running = Totals([SPEND, COUNT])
                running.ends({("p.public.t", 0): 0})
                for key, value in published.items():
                    running.recall(*key, value, final=False)
        elif happens == "declare":
            kpis = [SPEND, COUNT]
            owner = worker(source, log, kpis)
        elif happens == "merge":
            read = merge(log, running, read, published)
        for zombie in zombies:
            if data.draw(st.booleans()):
                advance(zombie, source, data.draw(st.integers(1, 8)))
    source.grow(len(events))
    while owner.at < source.end:
        advance(owner, source, 5)
    merge(log, running, read, published)
    groups = by_country(table)
    sums = {k: sum((r["amount"] for r in rows if r["amount"] is not None), Decimal(0)) for k, rows in groups.items()}
    assert {k: v for (name, k), v in published.items() if name == "spend" and k in sums} == {
        k: float(v) for k, v in sums.items()
    }
    assert not any(v for (name, k), v in published.items() if name == "spend" and k not in sums)
    for name in (k.name for k in kpis):
        again = merged(log, [SPEND, COUNT])
        assert {p.key: p.value for p in again.changed(0) if p.kpi.name == name} == {
            k: v for (n, k), v in published.items() if n == name
        }
    counts = {k: sum(r["amount"] is not None and r["amount"] > 0 for r in rows) for k, rows in groups.items()}
    if COUNT in kpis:
        assert {k: v for (name, k), v in published.items() if name == "rows" and v} == {
            k: v for k, v in counts.items() if v
        }


def test_repeats_of_which_compaction_took_the_first_copies_are_counted_once():
    """Connect repeats four changes; compaction has taken the first ones of a key, and met the repeat of one."""
    row = {"country": "DE", "amount": None, "weight": 0.0, "created_at": None}
    one, two, paid = {"id": 1, **row}, {"id": 2, **row}, {"id": 1, **row, "amount": Decimal("0.01")}
    changes = [
        change("c", None, one, 10, 1),
        change("u", one, paid, 11, 1),
        change("c", None, two, 12, 1),
        change("u", paid, one, 13, 1),
    ]
    rest = change("r", None, {"id": 0, **row, "amount": Decimal("1.00")}, 1, None, snapshot="true")
    events = [rest, *changes, *changes]
    for produced in range(6, len(events) + 1):
        source, log, published = Source(events, produced), Log(1000), {}
        source.compact(6)
        assert source.offsets[:3] == [0, 3, 5]
        owner = worker(source, log, [SPEND])
        while owner.at < len(events):
            advance(owner, source, 1)
            source.grow(1)
        merge(log, Totals([SPEND]), 0, published)
        assert published == {("spend", (None, '{"country":"DE"}')): 1.0}


@settings(max_examples=150, deadline=None)
@given(histories(), st.data())
def test_a_kpi_that_begins_on_a_compacted_log_counts_the_table(made, data):
    events, table = made
    produced = data.draw(st.integers(len(events) // 2, len(events)))
    source, log, published = Source(events, produced), Log(1000), {}
    source.compact(data.draw(st.integers(produced // 2, produced)))
    owner = worker(source, log, [SPEND, COUNT])
    while owner.at < len(events):
        advance(owner, source, data.draw(st.integers(1, 10)))
        if data.draw(st.integers(0, 4)) == 4:
            owner = worker(source, log, [SPEND, COUNT])
        source.grow(data.draw(st.integers(1, 10)))
    merge(log, Totals([SPEND, COUNT]), 0, published)
    groups = by_country(table)
    assert {k: v for (n, k), v in published.items() if n == "spend" and v} == {
        k: v for k, rows in groups.items() if (v := float(sum(r["amount"] or 0 for r in rows)))
    }
    assert {k: v for (n, k), v in published.items() if n == "rows" and v} == {
        k: v for k, rows in groups.items() if (v := sum(r["amount"] is not None and r["amount"] > 0 for r in rows))
    }


def merge(log, totals, read, published):
    new = [r for r in log.records if r[0] >= read]
    totals.feed(
        "p.public.t", 0, pa.array([k for _, k, _ in new], pa.binary()), pa.array([v for *_, v in new], pa.binary()), 0.0
    )
    changed = totals.changed(0.0)
    totals.keep(changed)
    published.update({(p.kpi.name, p.key): p.value for p in changed})
    return log.end
