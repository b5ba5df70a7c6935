"""What counts as finished, and how many events a system gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.system import Run, System, finished
from headrace.config import Settings
from headrace.errors import TerminalError, UnavailableError

RUN = Run(Settings(), "topic", 10, 2, Path(), {})


def system(error: Exception | None = None, share: int = 1) -> System:
    def done(_: Run) -> bool:
        if error is not None:
            raise error
        return True

    return System("x", lambda _: [], done, lambda _: True, share=share)


def test_what_cannot_be_told_now_is_not_finished() -> None:
    assert finished(system(), RUN)
    assert not finished(system(UnavailableError("no leader")), RUN)


def test_what_is_wrong_is_an_error() -> None:
    with pytest.raises(TerminalError):
        finished(system(TerminalError("no such table")), RUN)


@pytest.mark.parametrize(("of", "share", "events"), [(10**7, 1, 10**7), (10**7, 100, 10**5), (10**5, 100, 20_000)])
def test_a_slow_system_gets_a_share_but_not_too_few(of: int, share: int, events: int) -> None:
    assert system(share=share).events(of) == events


def test_no_system_gets_more_than_there_are() -> None:
    assert system(share=5).events(1_000) == 1_000
