"""What a baseline removes from the current state: rows of before a snapshot that took the place of all."""

from __future__ import annotations

import pytest

from sinks.iceberg.current import CurrentTable
from tests.unit.sinks.iceberg.support import (
    TOPIC,
    change,
    land,
    opened,
    rows_of,
    slice_of,
    thing,
)


def test_a_baseline_removes_the_rows_of_its_partition_that_a_new_snapshot_lacks(catalog):
    table = opened(CurrentTable(catalog, "silver.again", TOPIC), 2)
    land(
        table,
        slice_of([change("c", thing(n), n) for n in (2, 4, 6)], partition=0),
        slice_of([change("c", thing(n), n) for n in (1, 3)], partition=1),
    )
    # 4 was deleted and 8 written unseen; 6 changes while the snapshot runs. Partition 1 has had no snapshot.
    again = [change("r", thing(2, "new"), 0), change("r", thing(8), 0), change("u", thing(6, "late"), 20)]
    land(table, slice_of(again, 3, partition=0))
    assert [row[0] for row in rows_of(table, "id")] == [1, 2, 3, 4, 6, 8]
    land(table, slice_of([None, change("c", thing(10), 21)], 6, partition=0, baseline=3))
    expected = [(1, "x"), (2, "new"), (3, "x"), (6, "late"), (8, "x"), (10, "x")]
    assert sorted(rows_of(table, "id", "name")) == expected
    assert len(table.index) == 6
    # The same once more changes nothing, and an index built anew agrees.
    land(table, slice_of([None], 8, partition=0, baseline=3))
    fresh = opened(CurrentTable(catalog, "silver.again", TOPIC), 2)
    land(fresh, slice_of([change("d", thing(8), 30)], 9, partition=0))
    assert sorted(rows_of(fresh, "id", "name")) == [row for row in expected if row[0] != 8]


def test_a_baseline_counts_for_rows_of_its_own_batch_too(current):
    """The sink was away: old changes, the new snapshot and the baseline arrive together, in either table state."""
    events = [change("c", thing(1), 1), change("c", thing(2), 2), change("r", thing(2, "new"), 0), None]
    land(current, slice_of(events, baseline=2))
    assert rows_of(current, "id", "name") == [(2, "new")]
    land(current, slice_of([change("c", thing(5), 3), change("u", thing(2, "z"), 4), None], 4, baseline=5))
    assert rows_of(current, "id", "name") == [(2, "z")]


@pytest.mark.parametrize("baselines", [(2, 3), (3, 2)])
def test_of_two_baselines_in_one_batch_the_higher_counts(catalog, baselines):
    table = opened(CurrentTable(catalog, "silver.again", TOPIC))
    land(table, slice_of([change("c", thing(n), n) for n in (1, 2, 3, 4)]))
    land(table, *(slice_of([None], 4 + n, baseline=baseline) for n, baseline in enumerate(baselines)))
    assert rows_of(table, "id") == [(4,)]


def test_a_baseline_of_one_partition_removes_no_row_of_another_in_its_batch(catalog):
    table = opened(CurrentTable(catalog, "silver.again", TOPIC), 2)
    again = [change("c", thing(2), 1), change("c", thing(4), 2), change("r", thing(2, "new"), 0), None]
    land(table, slice_of(again, baseline=2), slice_of([change("c", thing(1), 3)], partition=1))
    assert rows_of(table, "id", "name") == [(1, "x"), (2, "new")]


def test_a_baseline_of_a_table_without_a_key_leaves_the_new_snapshot_alone(catalog):
    table = opened(CurrentTable(catalog, "silver.events", TOPIC))
    land(table, slice_of([change("r", thing(1), 0), change("r", thing(2), 0)], key_fields=()))
    land(table, slice_of([change("r", thing(2), 0), change("c", thing(3), 9)], 2, key_fields=()))
    land(table, slice_of([None], 4, key_fields=(), baseline=2))
    assert rows_of(table, "id", "_offset") == [(2, 2), (3, 3)]
    land(table, slice_of([None, change("c", thing(4), 11)], 5, key_fields=(), baseline=2))
    assert rows_of(table, "id") == [(2,), (3,), (4,)]
