"""The CDC benchmarks run, small: every system has the right rows, and a database comes through Debezium whole."""

from __future__ import annotations

import pytest

from benchmarks.cdc import session
from benchmarks.cdc.peers import CONNECT, DUCKDB, PYICEBERG
from benchmarks.cdc.session import Session
from benchmarks.cdc.stream import Plan
from benchmarks.cdc.workloads import tpch
from stack.testing import SessionStack

ROWS, CHANGES = 20_000, 4_000


def test_every_system_has_the_right_rows_and_a_failure_is_told(
    stack: SessionStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("no such luck")

    # Kafka Connect's sink is slow to start and has its jars to fetch.
    monkeypatch.setitem(session.PEERS, CONNECT, failing)
    run = Session(stack.need("kafka", "registry"))
    run.backlog(ROWS, CHANGES)
    load, merge, *peers = run.report.merges
    assert (load.load, load.changes, load.rows_ok, load.error) == (True, ROWS, True, "")
    assert (merge.load, merge.changes, merge.rows_ok, merge.error) == (False, CHANGES, True, "")
    assert merge.index_mb
    assert merge.bytes_per_change
    assert "no such luck" in peers.pop().error
    assert {(p.system, p.changes, p.rows_ok, p.error) for p in peers} == {
        (PYICEBERG, CHANGES, True, ""),
        (DUCKDB, CHANGES, True, ""),
    }
    states = [(r.system, r.state) for r in run.report.reads]
    ours = [("headrace", state) for state in ("before", "right after", "compacted")]
    assert states == [*ours, (PYICEBERG, "before"), (PYICEBERG, "after")]
    assert run.report.reads[0].delete_files == 0
    assert run.report.right


def test_a_database_comes_through_debezium_whole(stack: SessionStack) -> None:
    run = Session(stack.need("kafka", "registry", "postgres", "connect"))
    run.stream(stack.home, tpch(500), Plan(burst=500, seconds=1.0, targets=(0.5, 1.0)))
    (found,) = run.report.streams
    assert found.error == ""
    assert found.rows_ok
    assert found.snapshot.records == 2_500
    assert found.burst.records >= 500
    assert [paced.target for paced in found.paced] == [0.5, 1.0]
    for paced in found.paced:
        assert paced.phase.records > 0
        assert 0 < paced.p50 <= paced.p99
    assert found.burst.connect_cpu > 0
