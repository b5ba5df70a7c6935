"""How a sync stands, from what it has written down: rows proved in the target, rows due, rows refused, lag."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import Producer

from headrace.config import KafkaSettings, Settings
from headrace.errors import ConfigError, UnavailableError
from headrace.kafka import admin
from headrace.kafka.client import confluent_options
from sinks.reverse.declaration import Sync
from sinks.reverse.fold import Refusal, Table
from sinks.reverse.service import request
from sinks.reverse.state import OFFSETS, State, StateLog, read_state, replay_topic, settled_to_json, state_topic

TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Refused:
    """A change that waits for a replay. `key` is what `replay` takes."""

    key: str
    number: int
    op: str
    at: str
    response: str
    attempts: int


@dataclass(frozen=True)
class SyncStatus:
    """`rows` the target has by the sync's account, `due` are to be sent, `lag` counts records not settled yet.

    `settled_at` is when something was last sent and settled; None when nothing ever was.
    """

    name: str
    target: str
    mode: str
    started: bool
    rows: int = 0
    due: int = 0
    lag: int = 0
    settled_at: datetime | None = None
    refused: tuple[Refused, ...] = field(default=())

    def reasons(self) -> dict[str, int]:
        """Refusals by what the target said, most frequent first."""
        return dict(Counter(one.response for one in self.refused).most_common())


def sync_status(sync: Sync, kafka: KafkaSettings) -> SyncStatus:
    """Blocks. Raises `UnavailableError` when Kafka does not answer."""
    known = admin.partitions(kafka)
    if state_topic(sync.name) not in known:
        return SyncStatus(sync.name, sync.target, sync.mode, started=False)
    state = read_state(kafka, sync.name)
    table = Table(sync)
    current = state.settled is not None and state.settled.declaration == sync.fingerprint
    table.rows = state.rows
    refused = refusals(state)
    return SyncStatus(
        sync.name,
        sync.target,
        sync.mode,
        state.settled is not None,
        rows=sum(row.sent is not None for row in table.rows.values()),
        due=sum(table.due(identity, 0) is not None for identity in list(table.rows)) if current else 0,
        lag=_lag(sync, kafka, state, known),
        settled_at=_moment(state.settled.version) if state.settled and state.settled.version else None,
        refused=tuple(refused),
    )


def refusals(state: State) -> list[Refused]:
    """Everything that waits for a replay, oldest first."""
    rows = [(key, row.refused) for key, row in state.rows.items() if row.refused is not None]
    found = [_refused(key, one) for key, one in rows]
    found += [_refused(str(number), one) for number, (_, one) in state.refused.items()]
    return sorted(found, key=lambda one: one.number)


def _refused(key: str, one: Refusal) -> Refused:
    return Refused(key, one.number, one.op, one.at, one.response, one.attempts)


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _lag(sync: Sync, kafka: KafkaSettings, state: State, known: dict[str, int]) -> int:
    topics = [topic for topic in sync.topics if topic in known]
    marks = state.settled.marks if state.settled else {}
    ends = admin.end_offsets(kafka, topics)
    begins = admin.begin_offsets(kafka, topics)
    return sum(end - (marks[p].offset if p in marks else begins[p]) for p, end in ends.items())


def ask_replay(sync: Sync, kafka: KafkaSettings, keys: list[str] | None) -> None:
    """Ask the sync's process to try refused changes again, all of them when `keys` is None.

    Blocks until Kafka has the request. Raises `UnavailableError` when it does not take it, `ConfigError` when the sync
    has never run.
    """
    if replay_topic(sync.name) not in admin.partitions(kafka):
        raise ConfigError("has never run", where=f"sync {sync.name}", hint="headrace run sync")
    producer = Producer(confluent_options(kafka) | {"enable.idempotence": True})
    failed: list[Any] = []
    for key in [None] if keys is None else keys:
        producer.produce(
            replay_topic(sync.name), request(key), on_delivery=lambda e, _: failed.append(e) if e is not None else None
        )
    if producer.flush(TIMEOUT_SECONDS) or failed:
        raise UnavailableError("did not take the request", where=replay_topic(sync.name))


def reset(sync: Sync, settings: Settings) -> None:
    """Forget how far the sources were read, not what the target has: all is read anew, and only differences are sent.

    A process that runs the sync is fenced and starts over.
    """

    async def forget() -> None:
        log = StateLog(settings.kafka, sync.name)
        settled = (await log.open()).settled
        if settled is not None:
            settled.marks, settled.cluster, settled.topics = {}, "", {}
            await log.write({OFFSETS: settled_to_json(settled)})
        await log.close()

    asyncio.run(forget())
