"""Corners that random runs seldom meet, most about what compaction leaves."""

from tests.property.streams.test_kpi_contributions import change
from tests.property.streams.test_kpi_state import COUNT, SPEND, Log, Source, advance, merged, worker
from tests.unit.streams.change_topic import ID, NAME, ChangeTopic, declared, envelope_of, event


def row(key, country="DE"):
    return {"id": key, "country": country, "amount": 1, "weight": None, "created_at": None}


def created(key, position):
    return change("c", None, row(key), position, 1)


def values(log, kpi=SPEND):
    return {p.key: p.value for p in merged(log, [kpi]).changed(0.0)}


def test_what_a_stale_writer_wrote_over_is_repaired_before_it_is_compacted():
    source, log = Source([created(key, key) for key in range(1, 7)], 0), Log(1000)
    stale = worker(source, log, [SPEND])
    source.grow(2)
    advance(stale, source, 1)
    owner = worker(source, log, [SPEND])
    source.grow(1)
    advance(owner, source, 2)
    # It holds its partition no longer, and writes the second record's value over the third's.
    advance(stale, source, 1)
    assert values(log) == {(None, '{"country":"DE"}'): 3.0}
    source.events[3] = change("c", None, row(4, "FR"), 4, 1)
    source.grow(1)
    # Another group changes: only the repair says again what the first group is.
    advance(owner, source, 1)
    source.events[4] = change("c", None, row(5, "FR"), 5, 1)
    source.grow(1)
    advance(owner, source, 1)
    log.compact()
    assert values(log) == {(None, '{"country":"DE"}'): 3.0, (None, '{"country":"FR"}'): 2.0}


def test_a_repeat_whose_original_was_compacted_counts():
    events = [created(1, 5), created(2, 6), created(1, 5), created(2, 6)]
    source, log = Source(events, 4), Log(1000)
    source.compact(3)
    assert source.offsets == [1, 2, 3]
    owner = worker(source, log, [COUNT])
    advance(owner, source, 4)
    assert values(log, COUNT) == {(None, '{"country":"DE"}'): 2.0}


def test_a_kpi_that_begins_on_a_compacted_topic_reads_on_over_a_chunk_of_nothing_but_tombstones():
    rows, topic = declared("count", name="rows"), ChangeTopic({1: envelope_of(ID, NAME)}, unregistered=[1])
    past = {"id": 1, "name": "n"}
    chunks = [topic.chunk(None), topic.chunk((1, event("u", past, past, 20))), topic.chunk(None, None)]
    assert topic.kpis(rows, chunks=chunks, there=4) == {"rows": {"{}": 1.0}}
