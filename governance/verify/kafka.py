"""Kafka read record by record through confluent-kafka."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import uuid4

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConfigResource

from headrace.config import KafkaSettings
from headrace.errors import UnavailableError
from headrace.kafka.client import confluent_options

TIMEOUT = 30.0
BATCH = 10_000


@dataclass(frozen=True, slots=True)
class Record:
    topic: str
    partition: int
    offset: int
    timestamp: int
    """Milliseconds."""
    key: bytes | None
    value: bytes | None


class KafkaReader:
    """Reads ranges of partitions, committed transactions only. Not tied to any consumer group's state."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._options = confluent_options(settings)
        self._admin = AdminClient(self._options)
        self._asker = self._consumer()

    def topics(self) -> dict[str, int]:
        """Topic -> number of partitions, internal ones left out."""
        found = self._admin.list_topics(timeout=TIMEOUT).topics
        return {name: len(topic.partitions) for name, topic in found.items() if not name.startswith("__")}

    def topic_id(self, topic: str) -> str | None:
        """Kafka's id of a topic, another one once it was deleted and created again; None when there is none."""
        try:
            return str(self._admin.describe_topics(TopicCollection([topic]))[topic].result(TIMEOUT).topic_id)
        except KafkaException as e:
            if e.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return None
            raise

    def _consumer(self) -> Consumer:
        return Consumer(
            {
                **self._options,
                "group.id": f"headrace-verify-{uuid4()}",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "auto.offset.reset": "error",
            }
        )

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """First offset still there, and the one after the last."""
        low, high = self._asker.get_watermark_offsets(TopicPartition(topic, partition), timeout=TIMEOUT)
        return low, high

    def offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        """The first offset whose record has this timestamp (ms) or a later one; where the log ends, when none has."""
        found = self._asker.offsets_for_times([TopicPartition(topic, partition, timestamp)], timeout=TIMEOUT)[0].offset
        return found if found >= 0 else self.bounds(topic, partition)[1]

    def compacted(self, topic: str) -> bool:
        """Whether Kafka may have removed records that a newer one of the same key replaces."""
        asked = ConfigResource(ConfigResource.Type.TOPIC, topic)
        answer = self._admin.describe_configs([asked])[asked].result(TIMEOUT)
        return "compact" in answer["cleanup.policy"].value

    def committed(self, group: str, topic: str, partitions: int) -> dict[int, int]:
        """Offsets that a consumer group has committed; partitions without one are left out.

        Asked as a consumer that never joins: librdkafka's admin client dies where a coordinator is still loading.
        """
        asker = Consumer({**self._options, "group.id": group, "enable.auto.commit": False})
        try:
            answer = asker.committed([TopicPartition(topic, p) for p in range(partitions)], timeout=TIMEOUT)
        finally:
            asker.close()
        return {tp.partition: tp.offset for tp in answer if tp.offset >= 0}

    def read(self, topic: str, partition: int, start: int, end: int) -> Iterator[Record]:
        """Records of [start, end) in offset order; gaps of compaction and of aborted transactions are not records.

        Raises `UnavailableError` when Kafka goes quiet before `end`.
        """
        if start >= end:
            return
        consumer = self._consumer()
        try:
            consumer.assign([TopicPartition(topic, partition, start)])
            quiet_since = time.monotonic()
            while True:
                # consume() waits for a full batch until its timeout: a short one keeps the end of a topic quick.
                messages = consumer.consume(BATCH, timeout=0.1)
                if messages:
                    quiet_since = time.monotonic()
                elif time.monotonic() - quiet_since > TIMEOUT:
                    raise UnavailableError("Kafka sent nothing more", where=f"{topic}/{partition}")
                for message in messages:
                    if (error := message.error()) is not None:
                        if error.code() == KafkaError._PARTITION_EOF:
                            if message.offset() >= end:
                                return
                            continue
                        raise UnavailableError(error.str(), where=f"{topic}/{partition}")
                    if message.offset() >= end:
                        return
                    yield Record(
                        topic,
                        partition,
                        message.offset(),
                        message.timestamp()[1],
                        message.key(),
                        message.value(),
                    )
                    if message.offset() == end - 1:
                        return
        finally:
            consumer.close()
