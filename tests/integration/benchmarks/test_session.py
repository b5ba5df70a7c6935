"""The benchmarks run: every row is found, and a system that fails loses its own row only."""

from __future__ import annotations

import sys

import pytest

from benchmarks import hops
from benchmarks.hops import HOPS, Hop
from benchmarks.session import Session
from benchmarks.system import Run, System
from stack.testing import SessionStack

EVENTS = 2_000


def failing(run: Run) -> list[str]:
    return [sys.executable, "-c", "raise SystemExit('no such luck')"]


def test_rows_are_counted_and_a_failure_is_told(stack: SessionStack, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = stack.need("kafka", "registry")
    append = HOPS["append"]
    broken = System("broken", failing, lambda _: False, lambda _: False)
    systems = (broken, append.systems[0])
    monkeypatch.setitem(hops.HOPS, "append", Hop(append.title, append.topic, systems, append.schema))
    session = Session(settings, EVENTS, [], quick=True)
    try:
        session.run("append")
    finally:
        session.close()
    told, found = session.rows
    assert "no such luck" in told.error
    assert (found.system, found.events, found.rows_ok, found.error) == ("headrace", EVENTS, True, "")
    assert found.cpu_us_per_event > 0
    assert found.peak_rss_mb > 0
