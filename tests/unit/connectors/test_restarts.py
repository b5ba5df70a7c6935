from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from connectors.restarts import FIRST_SECONDS, LONGEST_SECONDS, MOST, SETTLED_SECONDS, History, decide, delay

STATES = st.sampled_from(["RUNNING", "FAILED", "PAUSED", "STARTING", "RESTARTING", "UNASSIGNED"])
LOOKS = st.lists(st.tuples(STATES, st.booleans(), st.floats(0.1, 400), st.floats(0, 0.999)), max_size=200)


@given(LOOKS)
def test_restarts_are_few_apart_and_only_of_what_failed_and_may_recover(looks) -> None:
    history, now = History(), 0.0
    restarted: list[float] = []
    settled, since = 0.0, None
    for state, hopeless, passed, chance in looks:
        now += passed
        before = history
        action, history = decide(state, hopeless, history, now, chance)
        since = (since if since is not None else now) if state == "RUNNING" else None
        if since is not None and now - since >= SETTLED_SECONDS:
            settled = now
            assert history.restarts == 0
        if action == "restart":
            assert (state, hopeless) == ("FAILED", False)
            assert before.due is not None
            assert history.restarts == before.restarts + 1
            if restarted:
                assert now - restarted[-1] >= FIRST_SECONDS / 2
            restarted.append(now)
        assert len([at for at in restarted if at > settled]) <= MOST
        assert history.restarts <= MOST


@given(st.integers(0, 100), st.floats(0, 0.999))
def test_delays_grow_are_spread_and_bounded(restarts, chance) -> None:
    longest = min(LONGEST_SECONDS, FIRST_SECONDS * 2**restarts)
    assert longest / 2 <= delay(restarts, chance) < longest
    assert delay(restarts + 1, chance) >= delay(restarts, chance)


def test_one_that_fails_for_good_is_given_up_and_comes_back_when_it_runs() -> None:
    history, now, restarts = History(), 0.0, 0
    for _ in range(100):
        now += LONGEST_SECONDS
        action, history = decide("FAILED", False, history, now, 0.5)
        restarts += action == "restart"
    assert (restarts, history.given_up) == (MOST, True)
    _, history = decide("RUNNING", False, history, now, 0.5)
    assert not history.given_up
    assert history.restarts == MOST, "not well yet"
    _, history = decide("RUNNING", False, history, now + SETTLED_SECONDS, 0.5)
    assert history.restarts == 0


def test_what_cannot_recover_is_never_restarted() -> None:
    history = History()
    for now in range(0, 10_000, 100):
        action, history = decide("FAILED", True, history, now, 0.0)
        assert (action, history.restarts) == ("none", 0)
