"""What a target promises to the engine that feeds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sinks.reverse.fold import Change

RESPONSE_LENGTH = 500


@dataclass(frozen=True)
class Done:
    """The target has the change."""


@dataclass(frozen=True)
class Refused:
    """The target will never take the change as it is; `response` says why, in its words."""

    response: str


@dataclass(frozen=True)
class Failed:
    """Nothing is known, or the target asks to come again, after `after` seconds at least.

    `counts` when the target answered, and failed on this change: after some of these it is taken for refused.
    """

    reason: str
    after: float = 0.0
    counts: bool = False


Outcome = Done | Refused | Failed


class Target(Protocol):
    """Takes changes. A change that comes again with the same id has no further effect."""

    async def open(self) -> None:
        """Connect. Raises `UnavailableError` while the target is away, other errors when it cannot be used at all."""

    async def send(self, changes: Sequence[Change]) -> list[Outcome]:
        """One outcome for each change. Changes of one key (`order`) are applied in their order, or not at all.

        Raises `FencedError` when another process has written later changes; other errors when the declaration does not
        fit the target, whatever the row.
        """

    async def close(self) -> None: ...
