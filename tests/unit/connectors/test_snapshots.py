"""What Debezium tells of its snapshots, and what is lost with a replication slot."""

from __future__ import annotations

import pytest

from connectors.notices import Notice, Scan, Snapshot, fold
from connectors.postgres import PostgresSource
from connectors.source import LogState
from connectors.watch import progress

TABLE = "public.things"


def folded(*notices: Notice) -> dict[str, Snapshot]:
    known: dict[str, Snapshot] = {}
    for notice in notices:
        known = fold(known, notice)
    return known


def note(type_: str, at: int, id_: str = "s1", kind: str = "incremental", **data: str) -> Notice:
    return Notice(id_, type_, kind, data, at)  # type: ignore[arg-type]


def chunk(at: int, last: str, **more: str) -> Notice:
    return note("IN_PROGRESS", at, current_collection_in_progress=TABLE, last_processed_key=last, **more)


def scanned(at: int, rows: str, kind: str = "incremental", status: str = "SUCCEEDED") -> Notice:
    return note("TABLE_SCAN_COMPLETED", at, kind=kind, scanned_collection=TABLE, total_rows_scanned=rows, status=status)


def test_chunks_add_up_and_one_read_again_counts_once() -> None:
    chunks = [chunk(2, "10"), chunk(3, "20"), chunk(4, "25", maximum_key="25"), chunk(9, "20", maximum_key="25")]
    known = folded(note("STARTED", 1), *chunks, note("PAUSED", 10))
    assert known["s1"].state == "paused"
    assert known["s1"].tables[TABLE] == Scan(2, 9, frozenset({"10", "20"}))
    known = fold(fold(fold(known, note("RESUMED", 11)), scanned(12, "25")), note("COMPLETED", 13))
    assert (known["s1"].state, known["s1"].tables[TABLE].rows) == ("completed", 25)


def test_one_that_is_stopped_is_told_from_one_that_is_complete() -> None:
    known = folded(note("STARTED", 1), chunk(2, "10"), note("COMPLETED", 3), note("ABORTED", 4, "another"))
    assert {id_: s.state for id_, s in known.items()} == {"s1": "aborted"}


def test_a_table_that_cannot_be_read_has_failed() -> None:
    known = folded(note("STARTED", 1), scanned(2, "0", status="SQL_EXCEPTION"), note("COMPLETED", 3))
    assert progress(known["s1"], TABLE, known["s1"].tables[TABLE], 0, None, 9.0).state == "failed"


def test_an_initial_snapshot_begun_again_takes_the_place_of_all() -> None:
    first = [note("STARTED", 1, "a", "initial"), scanned(2, "5", "initial"), note("COMPLETED", 3, "b", "initial")]
    known = folded(*first, note("STARTED", 4), chunk(5, "10"), note("SKIPPED", 6, "c", "initial"))
    assert (known["initial"].repeated, known["s1"].state) == (False, "running")
    known = fold(known, note("STARTED", 7, "d", "initial"))
    assert (known["initial"].repeated, known["initial"].started, known["initial"].tables) == (True, 7, {})
    assert known["s1"].state == "aborted"


def test_time_left_is_told_only_where_a_total_is_known() -> None:
    snapshot = Snapshot("s1", "incremental", "running", 0, 10_000)
    known = progress(snapshot, TABLE, Scan(0, 10_000), 500, 2000, 12.0)
    assert (known.rows_per_second, known.seconds_left) == (50.0, 30.0)
    assert progress(snapshot, TABLE, Scan(0, 10_000), 500, None, 12.0).seconds_left is None
    assert progress(snapshot, TABLE, Scan(0, 10_000), 3000, 2000, 12.0).seconds_left == 0
    assert progress(snapshot, TABLE, Scan(5, 5), 0, 2000, 12.0).seconds_left is None


@pytest.mark.parametrize(
    ("log", "offset", "words"),
    [
        (LogState(0, 0, None, "reserved", 100), {"lsn_proc": 100}, ""),
        (LogState(0, 0, None, "reserved", 100), {"lsn_proc": 900}, ""),
        (LogState(0, 0, None, "reserved", 100), {}, ""),
        (LogState(status="missing"), {}, ""),
        (LogState(status="missing"), {"lsn_proc": 100}, "is gone"),
        (LogState(None, None, None, "lost", None), {"lsn_proc": 100}, "is lost"),
        (LogState(9, 9, -5, "unreserved", 100), {"lsn_proc": 100}, ""),
        (LogState(0, 0, None, "reserved", 101), {"lsn_proc": 100}, "made anew"),
        (LogState(0, 0, None, "reserved", 101), {"lsn": 100}, "made anew"),
    ],
)
def test_a_slot_that_lacks_changes_is_told_in_a_sentence(log: LogState, offset: dict[str, int], words: str) -> None:
    said = PostgresSource("postgresql://nobody@127.0.0.1:1/x", "mine", "mine").missing(log, offset)
    assert bool(said) == bool(words)
    assert words in said
