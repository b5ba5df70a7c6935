"""How fast a target is asked, and how long it is left alone after it failed."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random


class TokenBucket:
    """`rate` tokens a second, at most one second's worth (and at least one) kept. Debts are allowed: who takes more
    than there is waits longer the next time, so that a batch larger than the bucket passes too."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._most = max(rate, 1.0)
        self._tokens = self._most
        self._at = clock()

    def take(self, n: int) -> float:
        """Take `n` tokens; the seconds to wait before using them."""
        now = self._clock()
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._rate) - n
        self._at = now
        return max(0.0, -self._tokens / self._rate)


class Backoff:
    """Exponential, with full jitter above half: several clients of a target that comes back do not meet."""

    def __init__(self, first: float = 0.25, most: float = 30.0, random: Random | None = None) -> None:
        self._first, self._most = first, most
        self._random = random or Random()
        self.failures = 0

    def next(self, at_least: float = 0.0) -> float:
        """Seconds to wait after one more failure; never less than the target asked for."""
        delay = min(self._most, self._first * 2.0 ** min(self.failures, 32))
        self.failures += 1
        return max(at_least, delay * self._random.uniform(0.5, 1.0))

    def reset(self) -> None:
        self.failures = 0
