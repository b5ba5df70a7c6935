"""What Headrace asks of a cluster beside records: topics, offsets, identities.

All functions block until the broker answers (at most TIMEOUT_SECONDS a request): from a coroutine, call them through
`asyncio.to_thread`. They raise `UnavailableError` when the cluster does not answer, `TerminalError` when it refuses,
`SecurityError` when TLS or SASL does.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic, OffsetSpec, TopicMetadata

from headrace.config import KafkaSettings
from headrace.errors import TerminalError, UnavailableError
from headrace.kafka.client import confluent_options
from headrace.kafka.errors import SecurityError, from_client, refusal_of_confluent

TIMEOUT_SECONDS = 30.0
REFUSAL_SECONDS = 1.0
# How long what passes by itself within moments of a topic's making is waited for.
SETTLING_SECONDS = 5.0
_SETTLING = {"NOT_LEADER_FOR_PARTITION", "LEADER_NOT_AVAILABLE", "UNKNOWN_TOPIC_OR_PART"}

# (topic, partition)
Partition = tuple[str, int]


@dataclass(frozen=True)
class TopicSpec:
    """A topic to create; 0 partitions takes the number of the settings."""

    partitions: int = 0
    config: Mapping[str, str] = field(default_factory=dict)


@lru_cache(maxsize=8)
def _connection(kafka: KafkaSettings) -> tuple[AdminClient, deque[KafkaError]]:
    """The client, and what it told beside its answers since it was asked, the newest last."""
    told: deque[KafkaError] = deque(maxlen=16)
    # What the library would print each second while the cluster is away, callers get as errors.
    return AdminClient({**confluent_options(kafka), "log_level": 2, "error_cb": told.append}), told


def _client(kafka: KafkaSettings) -> AdminClient:
    client, told = _connection(kafka)
    client.poll(0)
    told.clear()
    return client


def _refusal(kafka: KafkaSettings) -> SecurityError | None:
    """Why the cluster does not answer, when TLS or SASL is why."""
    client, told = _connection(kafka)
    client.poll(0)
    found = [refused for error in list(told) if (refused := refusal_of_confluent(error))]
    return found[-1] if found else None


@contextmanager
def _errors(kafka: KafkaSettings, where: str) -> Iterator[None]:
    try:
        yield
    except (KafkaException, TimeoutError) as e:
        raise _refusal(kafka) or from_client(e, where=where) from e


def _settled(future: Any, again: Callable[[], Any]) -> Any:
    """The result of a request, or of the same request made again while a leader is not there yet."""
    deadline = time.monotonic() + SETTLING_SECONDS
    while True:
        try:
            return future.result(TIMEOUT_SECONDS)
        except KafkaException as e:
            if e.args[0].name() not in _SETTLING or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
            future = again()


def _topics(kafka: KafkaSettings) -> dict[str, TopicMetadata]:
    with _errors(kafka, "kafka"):
        try:
            found = _client(kafka).list_topics(timeout=min(REFUSAL_SECONDS, TIMEOUT_SECONDS))
        except KafkaException:
            # The library would try for the whole time what cannot succeed.
            if refused := _refusal(kafka):
                raise refused from None
            found = _client(kafka).list_topics(timeout=TIMEOUT_SECONDS)
    topics: dict[str, TopicMetadata] = found.topics
    return topics


def partitions(kafka: KafkaSettings) -> dict[str, int]:
    """Number of partitions of every topic; Kafka's internal topics are left out."""
    return {name: len(topic.partitions) for name, topic in _topics(kafka).items() if not name.startswith("__")}


def ensure_topics(kafka: KafkaSettings, topics: Mapping[str, TopicSpec]) -> set[str]:
    """Create the topics that are missing, and wait until they can be written to; returns those created.

    A topic that exists is left as it is, whatever its partitions and configuration: adding partitions would move keys.
    """
    known = partitions(kafka)
    missing = {name: spec for name, spec in topics.items() if name not in known}
    created = set()
    new = [
        NewTopic(name, spec.partitions or kafka.partitions, kafka.replication_factor, config=dict(spec.config))
        for name, spec in missing.items()
    ]
    for name, future in (_client(kafka).create_topics(new) if new else {}).items():
        try:
            future.result(TIMEOUT_SECONDS)
            created.add(name)
        except KafkaException as e:
            if e.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise from_client(e, where=name) from e
    if missing:
        _await_leaders(kafka, dict.fromkeys(missing, 1))
    return created


def add_partitions(kafka: KafkaSettings, wanted: Mapping[str, int]) -> set[str]:
    """Give topics that have fewer partitions than wanted the missing ones; returns the topics that grew.

    For topics whose partitions follow another topic's, not its keys. Topics that do not exist are left out.
    """
    known = partitions(kafka)
    grown = {topic: count for topic, count in wanted.items() if 0 < known.get(topic, 0) < count}
    asked = [NewPartitions(topic, count) for topic, count in grown.items()]
    for topic, future in (_client(kafka).create_partitions(asked) if asked else {}).items():
        with _errors(kafka, topic):
            future.result(TIMEOUT_SECONDS)
    if grown:
        _await_leaders(kafka, grown)
    return set(grown)


def _await_leaders(kafka: KafkaSettings, wanted: Mapping[str, int]) -> None:
    """Wait until each topic has this many partitions, and every partition a leader."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        ready = {
            name
            for name, topic in _topics(kafka).items()
            if len(topic.partitions) >= wanted.get(name, 1)
            and all(partition.leader >= 0 for partition in topic.partitions.values())
        }
        if set(wanted) <= ready:
            return
        if time.monotonic() > deadline:
            raise UnavailableError("no leader after creation", where=", ".join(sorted(set(wanted) - ready)))
        time.sleep(0.05)


def cluster_id(kafka: KafkaSettings) -> str:
    """Identity of the cluster, which offsets kept elsewhere belong to."""
    with _errors(kafka, "kafka"):
        return str(_client(kafka).describe_cluster().result(TIMEOUT_SECONDS).cluster_id)


def topic_ids(kafka: KafkaSettings, topics: Iterable[str]) -> dict[str, str]:
    """Identity of each topic: another one once it was deleted and created again. Unknown topics are left out."""
    names = list(topics)
    ids: dict[str, str] = {}
    for name, future in (_client(kafka).describe_topics(TopicCollection(names)) if names else {}).items():
        try:
            ids[name] = str(future.result(TIMEOUT_SECONDS).topic_id)
        except KafkaException as e:
            if e.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise from_client(e, where=name) from e
    return ids


def group_members(kafka: KafkaSettings, protocol: str) -> dict[str, list[bytes]]:
    """What the members of each group of this protocol tell their leader, by group; nothing while it rebalances."""
    with _errors(kafka, "groups"):
        # The calls that replace this one leave the members' metadata out.
        found = _client(kafka).list_groups(timeout=TIMEOUT_SECONDS)
    return {group.id: [m.metadata for m in group.members] for group in found if group.protocol_type == protocol}


def begin_offsets(kafka: KafkaSettings, topics: Iterable[str]) -> dict[Partition, int]:
    """First offset that is still there, of every partition of these topics."""
    return _offsets(kafka, topics, OffsetSpec.earliest())


def end_offsets(kafka: KafkaSettings, topics: Iterable[str]) -> dict[Partition, int]:
    """The offset that the next record gets, of every partition of these topics."""
    return _offsets(kafka, topics, OffsetSpec.latest())


def offsets_at(kafka: KafkaSettings, topics: Iterable[str], timestamp_ms: int) -> dict[Partition, int]:
    """The first offset whose record is not older than a time, of every partition; the end where none is as young."""
    names = list(topics)
    found = _offsets(kafka, names, OffsetSpec.for_timestamp(timestamp_ms))
    ends = end_offsets(kafka, names) if -1 in found.values() else {}
    return {place: ends[place] if offset < 0 else offset for place, offset in found.items()}


def newest_timestamps(kafka: KafkaSettings, topics: Iterable[str]) -> dict[str, int]:
    """Time (ms since the epoch) of the youngest record of each topic that has one."""
    newest: dict[str, int] = {}
    there = set(topics) & _topics(kafka).keys()
    for (topic, _), found in _listed(kafka, there, OffsetSpec.max_timestamp()).items():
        if found.timestamp >= 0:
            newest[topic] = max(newest.get(topic, 0), int(found.timestamp))
    return newest


def _offsets(kafka: KafkaSettings, topics: Iterable[str], spec: Any) -> dict[Partition, int]:
    return {place: int(found.offset) for place, found in _listed(kafka, topics, spec).items()}


def _listed(kafka: KafkaSettings, topics: Iterable[str], spec: Any) -> dict[Partition, Any]:
    known = {name: len(topic.partitions) for name, topic in _topics(kafka).items()}
    asked = {}
    for topic in topics:
        if topic not in known:
            raise TerminalError("no such topic", where=topic)
        asked.update({TopicPartition(topic, partition): spec for partition in range(known[topic])})
    client = _client(kafka)
    out = {}
    for tp, future in (client.list_offsets(asked) if asked else {}).items():
        with _errors(kafka, f"{tp.topic}-{tp.partition}"):
            out[tp.topic, tp.partition] = _settled(future, partial(_one_offset, client, tp, spec))
    return out


def _one_offset(client: AdminClient, place: TopicPartition, spec: Any) -> Any:
    return client.list_offsets({place: spec})[place]
