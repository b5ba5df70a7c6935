"""Changes to a target until each is done or refused: paced, patient, in order per key.

A target that is away is waited for, however long. A row that the target fails on again and again while it takes others
is refused in its name; when nothing else gets through either, only a few rows are, and then the target counts as away.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from prometheus_client import Counter

from sinks.reverse.declaration import Sync
from sinks.reverse.fold import Change
from sinks.reverse.pace import Backoff, TokenBucket
from sinks.reverse.targets import Done, Failed, Refused, Target

ALONE = 3
"""Rows in a row that may be given up without any other having got through."""

REQUESTS = Counter("headrace_sync_changes", "Changes sent to a target, by outcome", ("sync", "outcome"))


@dataclass
class Delivery:
    """Feeds one target. `sleep` waits, and is true when the process is to stop; `note` hears why nothing moves."""

    sync: Sync
    target: Target
    sleep: Callable[[float], Awaitable[bool]]
    note: Callable[[str | None], None]
    bucket: TokenBucket
    backoff: Backoff = field(default_factory=Backoff)
    _successes: int = 0
    _given_up_in_a_row: int = 0

    async def run(self, changes: Sequence[Change]) -> list[tuple[Change, Done | Refused]]:
        """The settled changes, all of them unless the process is asked to stop meanwhile."""
        waiting, settled = list(changes), list[tuple[Change, Done | Refused]]()
        attempts: dict[str, tuple[int, int]] = {}
        while waiting:
            batch, rest = waiting[: self.sync.batch_size], waiting[self.sync.batch_size :]
            if await self._pause(self.bucket.take(len(batch))):
                return settled
            outcomes = await self.target.send(batch)
            again: list[Change] = []
            failures: list[Failed] = []
            for change, outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, Failed):
                    given_up = self._give_up(change, outcome, attempts)
                    if given_up is None:
                        again.append(change)
                        failures.append(outcome)
                        continue
                    outcome = given_up
                elif isinstance(outcome, Done):
                    self._successes += 1
                    self._given_up_in_a_row = 0
                settled.append((change, outcome))
                REQUESTS.labels(self.sync.name, type(outcome).__name__.lower()).inc()
            if len(again) < len(batch):
                self.backoff.reset()
                self.note(None)
            if failures:
                REQUESTS.labels(self.sync.name, "failed").inc(len(failures))
                if len(again) == len(batch):
                    self.note(failures[0].reason)
                if await self._pause(self.backoff.next(max(f.after for f in failures))):
                    return settled
            waiting = again + rest
        return settled

    async def _pause(self, seconds: float) -> bool:
        return seconds > 0 and await self.sleep(seconds)

    def _give_up(self, change: Change, failed: Failed, attempts: dict[str, tuple[int, int]]) -> Refused | None:
        if not failed.counts:
            return None
        tried, since = attempts.get(change.id, (0, self._successes))
        attempts[change.id] = (tried + 1, since)
        if tried < self.sync.retries:
            return None
        if self._successes == since and self._given_up_in_a_row >= ALONE:
            return None
        if self._successes == since:
            self._given_up_in_a_row += 1
        return Refused(f"given up after {tried + 1} attempts: {failed.reason}")
