"""Corners that random runs seldom meet, most about what compaction leaves."""

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from headrace.errors import IdentityError
from tests.property.streams.test_kpi_contributions import change
from tests.property.streams.test_kpi_state import COUNT, SPEND, Log, Source, advance, merged, worker
from tests.unit.streams.change_topic import ID, NAME, TOPIC, ChangeTopic, declared, envelope_of, event


def row(key, country="DE"):
    return {"id": key, "country": country, "amount": 1, "weight": None, "created_at": None}


def created(key, position):
    return change("c", None, row(key), position, 1)


def values(log, kpi=SPEND):
    return {p.key: p.value for p in merged(log, [kpi]).changed(0.0)}


def dropped(topic, rule):
    labels = {"flow": "kpi", "topic": topic, "rule": rule}
    return REGISTRY.get_sample_value("headrace_flow_rows_dropped_total", labels) or 0.0


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


@pytest.mark.parametrize(("produced", "identity"), [(2, "of another"), (1, "id")])
def test_a_source_that_was_made_anew_is_not_counted_on(produced, identity):
    events, log = [created(1, 1), created(2, 2)], Log(1000)
    source = Source(events, 2)
    advance(worker(source, log, [COUNT]), source, 2)
    with pytest.raises(IdentityError, match="created anew since this was counted"):
        worker(Source(events, produced, identity), log, [COUNT])


@pytest.mark.parametrize("lost", [0, 2])
def test_what_retention_took_before_it_was_counted_is_told_of_once(lost):
    source, log = Source([created(key, key) for key in range(1, 6)], 2), Log(1000)
    advance(worker(source, log, [COUNT]), source, 2)
    source.grow(3)
    source.retain(2 + lost)
    before = dropped("p.public.t", "retention gap")
    with capture_logs() as logs:
        owner = worker(source, log, [COUNT])
        assert owner.at == source.begin
        advance(owner, source, 1)
        advance(worker(source, log, [COUNT]), source, 2)
    assert [entry["records"] for entry in logs if entry["log_level"] == "error"] == [lost] * bool(lost)
    assert dropped("p.public.t", "retention gap") - before == lost
    assert worker(source, log, [COUNT])._partitions[0].shares["rows"].progress.lost == lost
    assert values(log, COUNT) == {(None, '{"country":"DE"}'): 5.0 - lost}


def read(key, lsn, transaction, kind="true"):
    return 1, event("r", None, {"id": key, "name": "n"}, lsn, txId=transaction, snapshot=kind)


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize(
    ("lsn", "transaction", "rows"), [(10, 5, 3.0), (10, 6, 1.0), (11, 4, 1.0), (10, 4, 2.0), (9, 6, 2.0)]
)
def test_a_later_snapshot_counts_anew_and_an_earlier_one_counts_nothing(lsn, transaction, rows, cut):
    topic = ChangeTopic({1: envelope_of(ID, NAME)})
    first, second = [read(1, 10, 5), read(2, 10, 5)], [read(3, lsn, transaction)]
    chunks = [topic.chunk(*first), topic.chunk(*second)] if cut else [topic.chunk(*first, *second)]
    assert topic.kpis(declared("count", name="rows"), chunks=chunks) == {"rows": {"{}": rows}}


def test_rows_of_incremental_snapshots_and_truncations_count_nothing_and_are_told_of_one_by_one():
    topic = ChangeTopic({1: envelope_of(ID, NAME)})
    again, truncation = read(1, 0, 9, "incremental"), (1, event("t", None, None, 20))
    chunks = [topic.chunk(read(1, 10, 5), again, truncation, read(1, 11, 6), again), topic.chunk(again)]
    before = dropped(TOPIC, "incremental snapshot or truncation")
    assert topic.kpis(declared("count", name="rows"), chunks=chunks) == {"rows": {"{}": 1.0}}
    assert dropped(TOPIC, "incremental snapshot or truncation") - before == 4
