from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from headrace.errors import HeadraceError
from schemas.contracts import Threshold, load_contracts
from streams.thresholds import EXCEEDED, SHARE, Thresholds

CONTRACT = next(iter(load_contracts([Path(__file__).parents[3]])))


def watched(alert: float | None, stop: float | None) -> Thresholds:
    return Thresholds("agent:t", "src", replace(CONTRACT, thresholds={"quarantined": Threshold(alert, stop)}))


def exceeded() -> float:
    return float(EXCEEDED.labels("agent:t", "src", "quarantined")._value.get())


def test_a_few_rows_are_no_share_yet_and_a_lasting_one_is_told() -> None:
    limits = watched(0.05, None)
    limits.count(10, {"quarantined": 10})
    assert exceeded() == 0
    limits.count(990, {"quarantined": 50, "dropped": 900})
    assert exceeded() == 1
    assert SHARE.labels("agent:t", "src", "quarantined")._value.get() == pytest.approx(0.06)
    limits.count(2000, {"quarantined": 0})
    assert exceeded() == 0


def test_above_stop_the_flow_halts() -> None:
    limits = watched(None, 0.5)
    with pytest.raises(HeadraceError, match=r"60\.0% of the last 1000 rows are quarantined, the contract stops at 50"):
        limits.count(1000, {"quarantined": 600})


def test_nothing_is_watched_without_limits() -> None:
    Thresholds("agent:t", "src", None).count(5000, {"quarantined": 5000})
