from __future__ import annotations

from types import SimpleNamespace

import pytest

from streams import transport
from streams.transport import BUSY_FETCH, BUSY_RATE, QUIET_FETCH, ConsumerThread


def test_a_fetch_waits_for_more_while_much_comes_and_for_nothing_when_little_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(transport, "time", SimpleNamespace(monotonic=lambda: now))
    fetcher = SimpleNamespace(_fetch_max_wait_ms=None, _fetch_min_bytes=None)
    thread = ConsumerThread.__new__(ConsumerThread)
    for seconds, rows, wanted in (
        (1.0, 5, QUIET_FETCH),
        (0.5, int(BUSY_RATE), BUSY_FETCH),
        (0.02, 100, BUSY_FETCH),
        (0.5, int(BUSY_RATE / 4), QUIET_FETCH),
        (0.5, 0, QUIET_FETCH),
    ):
        now += seconds
        thread._linger(SimpleNamespace(_fetcher=fetcher), rows)
        assert (fetcher._fetch_max_wait_ms, fetcher._fetch_min_bytes) == wanted
    assert QUIET_FETCH[1] == 1, "one record is not waited upon"
    assert BUSY_FETCH[0] < QUIET_FETCH[0]
