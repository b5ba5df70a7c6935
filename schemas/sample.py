"""The most recent records of a topic, decoded one by one, for a person's eyes and for drafts. Never a data path."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from fastavro import parse_schema, schemaless_reader

from headrace.config import KafkaSettings
from headrace.errors import SchemaNotFoundError, TerminalError, UnavailableError
from headrace.kafka.client import confluent_options
from schemas.registry import Registry

_HEADER = 5


def recent_values(kafka: KafkaSettings, topic: str, limit: int, timeout: float = 10.0) -> list[bytes]:
    """Up to about `limit` values from the ends of a topic's partitions, tombstones left out.

    Joins no group and commits nothing. What has not come within `timeout` seconds is left out. Raises
    `TerminalError` when there is no such topic, `UnavailableError` when Kafka cannot be reached.
    """
    consumer = Consumer(
        {
            **confluent_options(kafka),
            "group.id": "headrace-sample",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "log_level": 0,
        }
    )
    try:
        ends = _ends(consumer, topic, timeout)
        share = -(-limit // max(1, sum(high > low for low, high in ends.values())))
        starts = [TopicPartition(topic, p, max(low, high - share)) for p, (low, high) in ends.items() if high > low]
        consumer.assign(starts)
        return _read(consumer, len(starts), time.monotonic() + timeout)
    except KafkaException as e:
        raise UnavailableError(f"Kafka did not answer: {e}", where=topic) from e
    finally:
        consumer.close()


def _ends(consumer: Any, topic: str, timeout: float) -> dict[int, tuple[int, int]]:
    known = consumer.list_topics(topic, timeout=timeout).topics[topic]
    if known.error is not None:
        if known.error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
            raise TerminalError("no such topic", where=topic)
        raise UnavailableError(f"Kafka did not answer: {known.error}", where=topic)
    return {p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=timeout) for p in known.partitions}


def _read(consumer: Any, partitions: int, deadline: float) -> list[bytes]:
    values: list[bytes] = []
    ended: set[int] = set()
    while len(ended) < partitions and time.monotonic() < deadline:
        for message in consumer.consume(1000, timeout=0.5):
            error = message.error()
            if error is None:
                if message.value() is not None:
                    values.append(message.value())
            elif error.code() == KafkaError._PARTITION_EOF:
                ended.add(message.partition())
            else:
                raise UnavailableError(f"Kafka did not answer: {error}", where=message.topic() or "")
    return values


def decode_values(values: Iterable[bytes], registry: Registry) -> tuple[list[dict[str, Any]], int]:
    """The records among Confluent-framed Avro values, and how many could not be decoded."""
    parsed: dict[int, Any] = {}
    rows: list[dict[str, Any]] = []
    bad = 0
    for value in values:
        schema_id = int.from_bytes(value[1:_HEADER], "big")
        try:
            if value[:1] != b"\0" or len(value) < _HEADER:
                raise ValueError("no header")
            if schema_id not in parsed:
                parsed[schema_id] = parse_schema(dict(registry.schema(schema_id)))
            body = io.BytesIO(value[_HEADER:])
            row = schemaless_reader(body, parsed[schema_id], None)
            if body.read(1) or not isinstance(row, dict):
                raise ValueError("not one record")
        # fastavro raises what its readers stumble over: any of these is a record that is not what its schema says.
        except (SchemaNotFoundError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError):
            bad += 1
        else:
            rows.append(row)
    return rows, bad
