"""The window of bits against a plain set."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.keyindex import hash_keys
from streams.steps.window import NEW, OLD, SEEN, Seen

rows = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(-200, 200)), max_size=300)


@given(rows, st.integers(1, 130), st.lists(st.integers(1, 40), max_size=20))
@settings(max_examples=200, deadline=None)
def test_verdicts_are_those_of_a_set(events: list[tuple[str, int]], window: int, cuts: list[int]) -> None:
    seen = Seen(window)
    span = seen.words * 64
    numbers: dict[str, set[int]] = {}
    at = 0
    for size in [*cuts, len(events) or 1]:
        part, at = events[at : at + size], at + size
        expected = []
        for key, number in part:
            had = numbers.setdefault(key, set())
            if had and max(had) - number >= span:
                expected.append(OLD)
            else:
                expected.append(SEEN if number in had else NEW)
                had.add(number)
        keys = hash_keys([pa.array([key for key, _ in part], pa.string())])
        got = seen.judge(keys, np.array([number for _, number in part], np.int64))
        assert got.tolist() == expected


def test_many_keys_grow_the_memory() -> None:
    seen = Seen(64)
    keys = hash_keys([pa.array([f"k{i}" for i in range(1000)])])
    ones = np.ones(1000, np.int64)
    assert (seen.judge(keys, ones) == NEW).all()
    assert (seen.judge(keys, ones) == SEEN).all()


def test_the_ends_of_the_number_line() -> None:
    seen = Seen(64)
    keys = hash_keys([pa.array(["a", "a", "a", "a"])])
    numbers = np.array([-(2**62), 2**62, 2**62, -(2**62)], np.int64)
    assert seen.judge(keys, numbers).tolist() == [NEW, NEW, SEEN, OLD]
