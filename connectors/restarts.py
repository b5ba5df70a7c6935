"""Whether to restart a failed connector: with exponential backoff and jitter, so often and no more. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

FIRST_SECONDS = 2.0
LONGEST_SECONDS = 300.0
MOST = 8
# One that fails again at once has not recovered: only after running so long does counting begin anew.
SETTLED_SECONDS = 60.0

Action = Literal["none", "restart"]


@dataclass(frozen=True)
class History:
    """Restarts since the connector last ran well. `due`: when the next one is, while it has failed; `running_since`:
    since when it runs, while it does. Times in seconds of one clock."""

    restarts: int = 0
    due: float | None = None
    running_since: float | None = None

    @property
    def given_up(self) -> bool:
        return self.restarts >= MOST and self.running_since is None


def decide(state: str, hopeless: bool, history: History, now: float, chance: float) -> tuple[Action, History]:
    """What to do with a connector in `state`, and the history after it has been done.

    `chance` in [0, 1) spreads restarts over the second half of their delay: many tasks that failed together do not
    start together. Nothing is restarted that is `hopeless` (changes are missing: it would fail again), nor after
    `MOST` restarts in a row.
    """
    if state == "RUNNING":
        since = now if history.running_since is None else history.running_since
        if now - since >= SETTLED_SECONDS:
            return "none", History(running_since=since)
        return "none", replace(history, due=None, running_since=since)
    if state != "FAILED":
        return "none", replace(history, running_since=None) if state != "RESTARTING" else history
    history = replace(history, running_since=None)
    if hopeless or history.restarts >= MOST:
        return "none", replace(history, due=None)
    if history.due is None:
        return "none", replace(history, due=now + delay(history.restarts, chance))
    if now < history.due:
        return "none", history
    return "restart", History(history.restarts + 1)


def delay(restarts: int, chance: float) -> float:
    """Seconds before the restart that follows so many others."""
    longest = min(LONGEST_SECONDS, FIRST_SECONDS * 2.0**restarts)
    return longest / 2 * (1 + chance)
