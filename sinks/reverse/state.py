"""What a sync remembers, in one compacted topic of its own.

    planned   the changes that were about to be sent last, and how far the sources were read then
    offsets   how far the sources are read and everything of it is settled, the identities these offsets belong to
    row:KEY   what the sources said about a key, and the fingerprint of what the target has
    refused:N an event that the target will not take

Everything is written in transactions under one transactional id: who opens the log fences whoever had it open, and from
then on nothing of theirs is accepted.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from headrace.config import KafkaSettings
from headrace.errors import FencedError, UnavailableError
from headrace.kafka.admin import TopicSpec, ensure_topics
from headrace.kafka.client import confluent_options
from headrace.kafka.errors import from_client
from sinks.reverse.fold import Change, Refusal, Row
from sinks.reverse.sources import Watermark

T = TypeVar("T")
TIMEOUT_SECONDS = 30.0
PLANNED, OFFSETS, ROW, REFUSED, OPENED = "planned", "offsets", "row:", "refused:", "opened"

Partition = tuple[str, int]


@dataclass(frozen=True)
class Planned:
    """Changes that the target may have been told, or may yet be told by a process that was thought dead; the sources
    were read up to these offsets."""

    offsets: dict[Partition, int]
    version: int
    changes: list[Change]


@dataclass
class Settled:
    """Everything below these watermarks is settled. `version` and `refusals` are the highest numbers given so far,
    `quarantined` the highest refusal that has been reported to the quarantine."""

    marks: dict[Partition, Watermark] = field(default_factory=dict)
    declaration: str = ""
    key: list[str] = field(default_factory=list)
    cluster: str = ""
    topics: dict[str, str] = field(default_factory=dict)
    version: int = 0
    refusals: int = 0
    quarantined: int = 0


@dataclass
class State:
    """The log as read: rows by identity of their key, refused events by number."""

    settled: Settled | None = None
    planned: Planned | None = None
    rows: dict[str, Row] = field(default_factory=dict)
    refused: dict[int, tuple[str, Refusal]] = field(default_factory=dict)

    def take(self, key: str, value: bytes | None) -> None:
        """Fold one record of the log."""
        data = None if value is None else orjson.loads(value)
        if key.startswith(ROW):
            identity = key[len(ROW) :]
            if data is None:
                self.rows.pop(identity, None)
            else:
                self.rows[identity] = row_from_json(data)
        elif key.startswith(REFUSED):
            number = int(key[len(REFUSED) :])
            if data is None:
                self.refused.pop(number, None)
            else:
                self.refused[number] = (data["order"], Refusal(**data["refusal"]))
        elif key == PLANNED:
            self.planned = data and planned_from_json(data)
        elif key == OFFSETS:
            self.settled = data and Settled(**data | {"marks": _partitions(data["marks"], Watermark.from_json)})


def _partitions(data: Mapping[str, Any], read: Callable[[Any], T]) -> dict[Partition, T]:
    out = {}
    for name, value in data.items():
        topic, _, partition = name.rpartition("/")
        out[topic, int(partition)] = read(value)
    return out


def row_to_json(row: Row) -> dict[str, Any]:
    out: dict[str, Any] = {"key": row.key, "parts": row.parts, "at": row.at, "timestamp": row.timestamp}
    if row.ranks:
        out["ranks"] = row.ranks
    if row.sent is not None:
        out["sent"] = row.sent
    if row.refused is not None:
        out["refused"] = asdict(row.refused)
    return out


def row_from_json(data: Mapping[str, Any]) -> Row:
    return Row(
        tuple(data["key"]),
        data["parts"],
        {name: (rank[0], rank[1]) for name, rank in data.get("ranks", {}).items()},
        data["at"],
        data["timestamp"],
        data.get("sent"),
        Refusal(**data["refused"]) if "refused" in data else None,
    )


def planned_to_json(planned: Planned) -> dict[str, Any]:
    offsets = {f"{topic}/{partition}": offset for (topic, partition), offset in planned.offsets.items()}
    return asdict(planned) | {"offsets": offsets}


def planned_from_json(data: Mapping[str, Any]) -> Planned:
    changes = [Change(**change) for change in data["changes"]]
    return Planned(_partitions(data["offsets"], int), data["version"], changes)


def settled_to_json(settled: Settled) -> dict[str, Any]:
    marks = {f"{topic}/{partition}": mark.as_json() for (topic, partition), mark in settled.marks.items()}
    return asdict(settled) | {"marks": marks}


def state_topic(sync: str) -> str:
    return f"sync.{sync}.state"


def replay_topic(sync: str) -> str:
    return f"sync.{sync}.replay"


def create_topics(kafka: KafkaSettings, sync: str) -> None:
    """The sync's own topics, where they are missing. Blocks."""
    ensure_topics(
        kafka,
        {
            state_topic(sync): TopicSpec(1, {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.2"}),
            replay_topic(sync): TopicSpec(1, {"cleanup.policy": "delete", "retention.ms": str(7 * 86_400_000)}),
        },
    )


def read_state(kafka: KafkaSettings, sync: str, until: str | None = None) -> State:
    """The state as of now. Blocks. `until` is the id of an `opened` record to read up to; without it, up to the end.

    Raises `UnavailableError` when Kafka does not answer.
    """
    consumer = Consumer(
        confluent_options(kafka)
        | {
            "group.id": f"headrace-sync-{sync}-read",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    state = State()
    try:
        consumer.assign([TopicPartition(state_topic(sync), 0, 0)])
        while True:
            message = consumer.poll(TIMEOUT_SECONDS)
            if message is None:
                raise UnavailableError("does not answer", where=state_topic(sync))
            error = message.error()
            if error is None:
                key = message.key().decode()
                if key == OPENED and until is not None and orjson.loads(message.value()) == until:
                    return state
                state.take(key, message.value())
            elif error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
            elif until is None:
                return state
    except KafkaException as e:
        raise from_client(e, where=state_topic(sync)) from e
    finally:
        consumer.close()


class StateLog:
    """The log, open for writing by this process alone: see `open`. One call at a time."""

    def __init__(self, kafka: KafkaSettings, sync: str) -> None:
        self._kafka = kafka
        self._sync = sync
        self._producer: Producer | None = None

    async def open(self) -> State:
        """Fence every other writer, then read what they have left.

        Raises `UnavailableError` when Kafka does not answer.
        """
        return await asyncio.to_thread(self._open)

    def _open(self) -> State:
        create_topics(self._kafka, self._sync)
        self._producer = Producer(
            confluent_options(self._kafka)
            | {"transactional.id": f"headrace-sync-{self._sync}", "linger.ms": 5, "compression.type": "lz4"}
        )
        token = uuid.uuid4().hex
        try:
            self._producer.init_transactions(TIMEOUT_SECONDS)
        except KafkaException as e:
            raise self._error(e) from e
        self._write({OPENED: token})
        return read_state(self._kafka, self._sync, until=token)

    async def write(self, records: Mapping[str, Any]) -> None:
        """Key -> value (None deletes), all of them or none.

        Raises `FencedError` when another process has opened the log, `UnavailableError` when Kafka does not answer:
        then nothing is known, and the log must be opened anew.
        """
        await asyncio.to_thread(self._write, records)

    def _write(self, records: Mapping[str, Any]) -> None:
        assert self._producer is not None
        failed: list[KafkaError] = []
        try:
            self._producer.begin_transaction()
            for key, value in records.items():
                self._produce(key, None if value is None else orjson.dumps(value), failed)
            self._producer.flush(TIMEOUT_SECONDS)
            if failed:
                raise KafkaException(failed[0])
            self._producer.commit_transaction(TIMEOUT_SECONDS)
        except KafkaException as e:
            raise self._error(e) from e

    def _produce(self, key: str, data: bytes | None, failed: list[KafkaError]) -> None:
        assert self._producer is not None
        while True:
            try:
                self._producer.produce(
                    state_topic(self._sync),
                    key=key.encode(),
                    value=data,
                    partition=0,
                    on_delivery=lambda error, _: failed.append(error) if error is not None else None,
                )
                return
            except BufferError:
                self._producer.poll(0.1)

    def _error(self, e: KafkaException) -> Exception:
        error: KafkaError = e.args[0]
        where = f"sync {self._sync}"
        if error.code() in (KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.PRODUCER_FENCED):
            return FencedError("another process has taken the sync over", where=where)
        return UnavailableError(f"Kafka: {error.str()}", where=where)

    async def close(self) -> None:
        """Let go. What was not committed is not there."""
        self._producer = None
