"""What stays bounded however long a table lives: the index, delete files, dead rows, snapshots, work of a commit."""

from __future__ import annotations

import threading
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from pyiceberg.table import DataScan

from headrace.errors import IndexLimitError
from headrace.keyindex import KeyIndex, hash_keys, slots_for
from sinks.iceberg.budget import IndexBudget
from sinks.iceberg.build import in_threads
from sinks.iceberg.compact import DEAD_SHARE, EXPIRE_EVERY, KEEP_SNAPSHOTS, KEPT_OVER_AGE, dead_rows, superseded
from sinks.iceberg.current import CurrentTable
from sinks.iceberg.keyed import DELETE_FILES_TO_MERGE
from sinks.iceberg.locations import file_of, position_of
from tests.unit.sinks.iceberg.support import TOPIC, catalog_in, change, land, rows_of, slice_of, source


def opened(folder, **options):
    table = CurrentTable(catalog_in(folder), "silver.things", TOPIC, **options)
    table.open(source())
    return table


def upserts(table, numbers, op="r"):
    at = table.offsets.get(0, 0)
    rows = [change(op, {"id": int(n), "name": f"{at}", "n": int(n)}, at + i + 1) for i, n in enumerate(numbers)]
    land(table, slice_of(rows, at))


def test_reading_stays_bounded_over_many_random_commits(tmp_path):
    """Delete files of a data file, dead rows and small files, after each of many commits to rows all over the table."""
    table, random = opened(tmp_path, compact_every=10, file_bytes=32 << 10), np.random.default_rng(5)
    upserts(table, range(4000))
    alive = set(range(4000))
    shares = []
    for _ in range(40):
        numbers = random.integers(0, 4000, 60)
        upserts(table, numbers)
        alive |= set(numbers.tolist())
        table.care()
        tasks = list(table.table.scan().plan_files())
        assert max(len(task.delete_files) for task in tasks) < DELETE_FILES_TO_MERGE
        known = {t.file.file_path: {f.file_path for f in t.delete_files} for t in table._files}
        assert known == {t.file.file_path: {f.file_path for f in t.delete_files} for t in tasks}
        shares.append(sum(map(dead_rows, tasks)) / sum(task.file.record_count for task in tasks))
        assert len(tasks) <= 2 * 10 + 10
    # A file is rewritten at a fifth of dead rows, and ten commits may pass until then.
    assert max(shares) < DEAD_SHARE + 10 * 60 / 4000
    assert len({n for n, _ in rows_of(table, "id", "n")}) == len(table.index) == 4000
    deletes = [m for m in table.table.current_snapshot().manifests(table.table.io) if m.content == 1]
    assert len(deletes) <= 31


def test_a_commit_and_its_care_read_no_file_list(tmp_path):
    table = opened(tmp_path, compact_every=2)
    upserts(table, range(100))
    with patch.object(DataScan, "plan_files", side_effect=AssertionError("all manifests are read")):
        for _ in range(12):
            upserts(table, range(0, 100, 7))
            table.care()
    assert len(rows_of(table, "id")) == 100


def test_all_that_died_is_rewritten_even_when_more_than_a_file_holds(tmp_path):
    """Updates of all rows: the compaction may read in proportion to what died, not one file's size alone."""
    table = opened(tmp_path, compact_every=4, file_bytes=8 << 10)
    for _ in range(12):
        upserts(table, range(3000))
        table.care()
    tasks = list(table.table.scan().plan_files())
    assert sum(task.file.record_count for task in tasks) <= 5 * 3000
    assert len(rows_of(table, "id")) == 3000


def test_an_index_beyond_its_limit_is_refused_with_the_numbers(tmp_path):
    upserts(opened(tmp_path), range(5000))
    budget = IndexBudget(1 << 20)
    budget.claim("silver.other", 900_000)
    with pytest.raises(IndexLimitError, match=r"silver\.things.*0 MB.*5,\d\d\d keys.*1 MB.*max_index_bytes"):
        opened(tmp_path, budget=budget)
    budget.claim("silver.other", 0)
    assert len(opened(tmp_path, budget=budget).index) == 5000


def test_an_index_that_may_not_grow_stops_the_commit_before_it_writes(tmp_path):
    budget = IndexBudget(100_000)
    table = opened(tmp_path, budget=budget)
    upserts(table, range(1000))
    with pytest.raises(IndexLimitError):
        upserts(table, range(1000, 9000))
    assert len(rows_of(table, "id")) == 1000
    assert table.offsets == {0: 1000}


def test_an_index_made_for_its_keys_does_not_grow():
    claims: list[int] = []
    index = KeyIndex(slots_for(100_000), claim=claims.append)
    keys = _keys(100_000)
    index.put(keys, np.arange(100_000))
    assert len(claims) == 1
    assert index.nbytes / len(index) == pytest.approx(32, rel=0.01)
    index.put(keys, np.arange(100_000))
    assert len(claims) == 1


def _keys(n):
    return hash_keys([pa.array(np.arange(n))])


def test_the_index_is_built_from_many_files_with_dead_rows(tmp_path):
    table = opened(tmp_path, compact_every=1000)
    for start in range(0, 2000, 100):
        upserts(table, range(start, start + 150))
    again = opened(tmp_path)
    numbers = _keys(2050)
    found, expected = again.index.locations(numbers), table.index.locations(numbers)
    assert len(again.index) == 2050
    rows = {row: i for i, row in enumerate(zip(*_places(table, expected), strict=True))}
    assert [rows[place] for place in zip(*_places(again, found), strict=True)] == list(range(2050))


def _places(table, locations):
    paths = [table._files[int(n)].file.file_path for n in file_of(locations)]
    return paths, position_of(locations).tolist()


def test_what_a_reading_thread_raises_is_raised_and_all_threads_end():
    def read(number):
        yield number
        if number == 7:
            raise OSError("gone")

    before = threading.active_count()
    with pytest.raises(OSError, match="gone"):
        list(in_threads(range(1000), read, 4))
    assert threading.active_count() == before
    given_up = in_threads(range(1000), read, 4)
    next(given_up)
    given_up.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("age", [0, 60_000, 3_600_000, 7 * 86_400_000])
def test_snapshots_that_stay_are_few_and_cover_the_age_evenly(age):
    now, kept = 10 * 86_400_000, []
    for i in range(40_000):
        at = now + i * 2_000
        kept.append((i, at))
        if len(kept) >= KEEP_SNAPSHOTS + KEPT_OVER_AGE + 2 * EXPIRE_EVERY:
            gone = set(superseded(kept, at, age=age))
            kept = [entry for entry in kept if entry[0] not in gone]
    kept = [entry for entry in kept if entry[0] not in set(superseded(kept, at, age=age))]
    assert kept[-KEEP_SNAPSHOTS:] == [(i, now + i * 2_000) for i in range(40_000 - KEEP_SNAPSHOTS, 40_000)]
    assert len(kept) <= KEEP_SNAPSHOTS + KEPT_OVER_AGE + 1
    old = [at for _, at in kept[:-KEEP_SNAPSHOTS]]
    if age:
        reach = min(age, 40_000 * 2_000)
        slot = age / KEPT_OVER_AGE
        assert max(np.diff([at - reach, *old])) <= 2 * slot + 4_000
        assert all(t > at - age for t in old)
    else:
        assert old == []


def test_a_backlog_is_landed_first_and_compacted_once(tmp_path):
    table = opened(tmp_path, compact_every=2)
    upserts(table, range(10))
    table.care()
    counts = []
    for n in range(8):
        upserts(table, range(100 * n, 100 * n + 10))
        table.care(busy=True)
        counts.append(len(list(table.table.scan().plan_files())))
    assert max(counts) > 4, "put off while rows wait"
    assert counts[-1] < max(counts), "but not for ever"
    for n in range(4):
        upserts(table, range(5000 + 100 * n, 5010 + 100 * n))
    before = len(list(table.table.scan().plan_files()))
    table.care()
    assert len(list(table.table.scan().plan_files())) < before
