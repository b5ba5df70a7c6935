"""Rows of incremental snapshots beside changes of their keys: what may be older changes nothing, the rest mends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from headrace.errors import UnavailableError
from headrace.keyindex import hash_keys
from schemas.envelope import UNAVAILABLE, UNSEEN_MS
from sinks.iceberg.current import CurrentTable
from sinks.iceberg.history import HistoryTable
from sinks.iceberg.recent import Recent, Sent
from tests.unit.sinks.iceberg.history_support import at, timed
from tests.unit.sinks.iceberg.support import (
    ROW,
    TOPIC,
    change,
    envelope_schema,
    faults,
    land,
    opened,
    read_again,
    rows_of,
    slice_of,
    thing,
)

LATER = UNSEEN_MS / 1000 + 1


@pytest.fixture(params=["one batch", "batches"])
def table(request, current):
    """Lands events together, or each in a batch of its own."""
    return current, request.param == "one batch"


def landed(table, *events, start=0, **more):
    current, together = table
    parts = [events] if together else [[event] for event in events]
    found = []
    for part in parts:
        found.append(land(current, slice_of(part, start, **more)))
        start += len(part)
    return found


def test_a_row_that_may_be_older_than_the_last_change_of_its_key_changes_nothing(table):
    prepared = landed(
        table,
        change("u", thing(1, "new"), 1, seconds=10),
        change("c", thing(2, "new"), 2, seconds=10),
        change("d", thing(3), 3, seconds=10),
        change("u", thing(4, "new"), 4, seconds=10),
        *(read_again(thing(n, "old"), 11) for n in (1, 3, 5)),
        read_again(thing(2, "old"), 10 + UNSEEN_MS / 1000),
        read_again(thing(4, "read"), 10 + LATER),
    )
    assert rows_of(table[0], "id", "name") == [(1, "new"), (2, "new"), (4, "read"), (5, "old")]
    assert sum(p.stale for p in prepared) == 3
    assert sum(p.dropped for p in prepared) == 0
    landed(table, change("u", thing(5, "after"), 5, seconds=12), start=9)
    assert (5, "after") in rows_of(table[0], "id", "name")


def test_a_clock_that_was_set_back_makes_nothing_lost(table):
    """The change of an hour later is the last one of its key all the same."""
    landed(
        table,
        change("u", thing(1, "new"), 1, seconds=3600),
        read_again(thing(1, "old"), 10),
        change("u", thing(2, "new"), 2, seconds=12),
        read_again(thing(2, "old"), 13),
    )
    assert rows_of(table[0], "id", "name") == [(1, "new"), (2, "new")]


def test_rows_of_full_snapshots_and_events_without_a_time_are_as_ever(table):
    landed(
        table,
        change("u", thing(1, "new"), 1, seconds=10),
        change("r", thing(1, "read"), 2, seconds=11),
        change("u", thing(2, "new"), 3),
        read_again(thing(2, "read"), 11),
    )
    assert rows_of(table[0], "id", "name") == [(1, "read"), (2, "read")]


def test_a_change_before_the_columns_changed_is_mended(current):
    """A snapshot fills in what no change says: the default of an added column that is computed."""
    old, new = {"name": "one"}, {"name": "two"}
    wide = envelope_schema(pa.struct([*ROW, ("note", pa.string())]))
    land(current, replace(slice_of([change("u", thing(1, "new"), 1, seconds=10)]), schema=old))
    read = slice_of([read_again({**thing(1, "new"), "note": "said"}, 11)], 1, schema=wide)
    land(current, replace(read, schema=new))
    assert rows_of(current, "id", "note") == [(1, "said")]


def test_what_was_not_applied_makes_nothing_stale(table):
    """Repeats of Connect's, and changes that lack a value which nobody knows: the snapshot's row has it."""
    prepared = landed(
        table,
        change("c", thing(1, "new"), 5, seconds=10),
        change("c", thing(1, "new"), 5, seconds=100),
        read_again(thing(1, "mended"), 101),
        change("u", thing(2, UNAVAILABLE, 1), 7, seconds=102),
        read_again(thing(2, "large"), 103),
        change("u", thing(2, UNAVAILABLE, 2), 8, seconds=104),
    )
    assert rows_of(table[0], "id", "name", "n") == [(1, "mended", 0), (2, "large", 2)]
    assert sum(p.stale for p in prepared) == 0
    assert sum(p.dropped for p in prepared) == 1


def test_a_large_value_is_that_of_the_last_change_not_of_a_stale_row(table):
    landed(
        table,
        change("u", thing(1, "new"), 1, seconds=10),
        read_again(thing(1, "old"), 11),
        change("u", thing(1, UNAVAILABLE, 7), 2, seconds=12),
    )
    assert rows_of(table[0], "id", "name", "n") == [(1, "new", 7)]


def test_changes_before_a_truncation_count(table):
    """A row of after it would have a change of its own."""
    landed(
        table,
        change("c", thing(1, "new"), 1, seconds=10),
        change("t", None, 2, seconds=11),
        read_again(thing(1, "old"), 12),
    )
    assert rows_of(table[0], "id") == []


def test_partitions_are_apart(catalog):
    """One is read hours ahead of the other."""
    table = opened(CurrentTable(catalog, "silver.things", TOPIC), 2)
    land(table, slice_of([change("u", thing(1, "new"), 1, seconds=10)]))
    land(table, slice_of([change("u", thing(2, "new"), 2, seconds=10_000)], partition=1))
    land(table, slice_of([read_again(thing(1, "old"), 11)], 1))
    assert rows_of(table, "id", "name") == [(1, "new"), (2, "new")]


def test_a_commit_that_failed_has_changed_nothing_that_is_known(current):
    land(current, slice_of([change("c", thing(9), 1, seconds=1)]))
    part = slice_of([change("u", thing(1, "new"), 2, seconds=10), read_again(thing(1, "old"), 11)], 1)
    prepared = current.prepare([part])
    with faults(1, after=False), pytest.raises(UnavailableError):
        current.commit(prepared)
    current.commit(current.prepare([part]))
    land(current, slice_of([read_again(thing(1, "old"), 12)], 3))
    assert rows_of(current, "id", "name") == [(1, "new"), (9, "x")]


def test_another_key_begins_anew(current):
    """The number of a row under the new key is that of another one under the old."""
    land(current, slice_of([change("c", {"id": 5, "name": "a", "n": 7}, 1, seconds=10)]))
    part = [change("c", {"id": 1, "name": "b", "n": 1}, 2, seconds=11), read_again({"id": 9, "name": "c", "n": 5}, 12)]
    land(current, slice_of(part, 1, key_fields=("n",), key_named=True))
    assert rows_of(current, "id", "name", "n") == [(1, "b", 1), (5, "a", 7), (9, "c", 5)]


def test_a_table_without_a_key_takes_every_row(catalog):
    table = opened(CurrentTable(catalog, "silver.rows", TOPIC))
    land(table, slice_of([change("c", thing(1), 1, seconds=10), read_again(thing(1), 11)], key_fields=()))
    assert rows_of(table, "id") == [(1,), (1,)]


@pytest.mark.parametrize("together", [True, False])
def test_a_history_has_no_version_of_a_stale_row(catalog, together):
    table = HistoryTable(catalog, "silver.things_history", TOPIC, of="silver.things")
    opened(table)
    events = [
        change("c", thing(1, "new"), 1, seconds=10),
        change("d", thing(2), 2, seconds=11),
        read_again(thing(1, "old"), 12),
        read_again(thing(2, "old"), 12),
        change("u", thing(3, UNAVAILABLE), 4, seconds=13),
        read_again(thing(3, "large"), 14),
        change("u", thing(3, UNAVAILABLE, 1), 5, seconds=15),
        read_again(thing(1, "read"), 10 + LATER),
    ]
    for event in events:
        event["source"]["ts_us"] = event["ts_ms"] * 1000
    landed((table, together), *events, schema=timed())
    assert rows_of(table, "id", "name", "n", "valid_to") == sorted(
        [
            (1, "new", 0, at(10 + int(LATER))),
            (1, "read", 0, None),
            (3, "large", 0, at(15)),
            (3, "large", 1, None),
        ],
        key=repr,
    )


def test_only_the_last_minute_is_kept():
    """However fast a backlog is read, and whatever another partition has."""
    recent = Recent()
    for step in range(50):
        times = np.arange(step * 10_000, (step + 1) * 10_000, 10)
        recent = recent.after(0, Sent(hash_keys([pa.array(times)]), times, None))
    kept = np.concatenate([one.times for one in recent.changes[0]])
    assert kept.min() == 430_000
    assert kept.max() == 499_990
    assert len(recent.after(1, Sent(hash_keys([pa.array([1])]), np.array([10**9]), None)).changes[0]) == 7
    long = np.arange(0, 10_000_000, 100)
    once = recent.after(0, Sent(hash_keys([pa.array(long)]), long, None))
    assert [len(one.times) for one in once.changes[0]] == [UNSEEN_MS // 100 + 1]
