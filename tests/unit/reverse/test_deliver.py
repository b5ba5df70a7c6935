from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sinks.reverse.deliver import Delivery
from sinks.reverse.fold import Change
from sinks.reverse.pace import TokenBucket
from sinks.reverse.targets import Done, Failed, Outcome, Refused
from tests.property.reverse.model import UPSERTS


def change(number: int, key: str = "") -> Change:
    return Change(str(number), "upsert", {"id": number}, {"id": number}, 1, key or str(number), "f", "t-0-1", 0)


@dataclass
class Scripted:
    """`script` says what comes of a change at its n-th attempt."""

    script: Callable[[int, int], Outcome]
    tries: dict[str, int] = field(default_factory=dict)
    sent: list[list[str]] = field(default_factory=list)

    async def open(self) -> None: ...
    async def close(self) -> None: ...

    async def send(self, changes: Sequence[Change]) -> list[Outcome]:
        self.sent.append([c.id for c in changes])
        out = []
        for c in changes:
            self.tries[c.id] = self.tries.get(c.id, 0) + 1
            out.append(self.script(int(c.id), self.tries[c.id]))
        return out


async def deliver(
    target: Scripted, changes: list[Change], most_waits: int = 1000
) -> tuple[dict[str, Outcome], list[float]]:
    waits: list[float] = []

    async def sleep(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) > most_waits

    delivery = Delivery(UPSERTS, target, sleep, lambda _: None, TokenBucket(1e9))
    return {c.id: outcome for c, outcome in await delivery.run(changes)}, waits


async def test_a_target_that_asks_to_wait_is_obeyed_for_ever() -> None:
    target = Scripted(lambda n, tries: Failed("429", after=7.0) if tries < 50 else Done())
    settled, waits = await deliver(target, [change(1)])
    assert settled == {"1": Done()}
    assert len(waits) == 49
    assert min(waits) >= 7


async def test_a_row_that_breaks_the_target_is_refused_while_others_pass() -> None:
    target = Scripted(lambda n, tries: Failed("500", counts=True) if n == 2 else Done())
    settled, _ = await deliver(target, [change(n) for n in range(6)])
    assert isinstance(settled["2"], Refused)
    assert sum(isinstance(outcome, Done) for outcome in settled.values()) == 5
    assert target.tries["2"] == UPSERTS.retries + 1


async def test_a_target_that_breaks_on_everything_is_away_not_refusing() -> None:
    target = Scripted(lambda n, tries: Failed("500", counts=True))
    settled, waits = await deliver(target, [change(n) for n in range(20)], most_waits=200)
    assert len(settled) <= 4
    assert len(waits) == 201


async def test_a_batch_is_no_larger_than_declared_and_its_order_is_kept() -> None:
    target = Scripted(lambda n, tries: Failed("503") if n == 1 and tries == 1 else Done())
    await deliver(target, [change(n) for n in range(5)])
    assert target.sent == [["0", "1"], ["1", "2"], ["3", "4"]]
