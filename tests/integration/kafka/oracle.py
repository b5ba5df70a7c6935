"""What another client writes and reads: confluent-kafka (librdkafka), one record at a time."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Producer, TopicPartition

from headrace.config import KafkaSettings
from headrace.kafka.client import confluent_options
from tests.unit.kafka.rows import Row

NOW = int(time.time() * 1000)  # retention deletes what is old, and the broker refuses what is an hour ahead


def random_rows(n: int, seed: int = 0) -> list[Row]:
    """Null, empty and long keys and values, all kinds of headers, timestamps out of order."""
    r = random.Random(seed)

    def one(i: int) -> Row:
        key = None if r.random() < 0.2 else b"" if r.random() < 0.05 else b"key-%d" % r.randrange(n)
        value = os.urandom(r.choice([1, 5, 60, 63, 64, 75, 127, 128, 300])) + b"x" * r.randrange(200)
        headers = [
            ("é" if r.random() < 0.1 else f"h{j}", None if r.random() < 0.2 else b"v%d" % r.randrange(1000))
            for j in range(r.randrange(4) if r.random() < 0.4 else 0)
        ]
        emptied = r.random()
        shown = None if emptied < 0.1 and key is not None else b"" if emptied < 0.15 else value
        return key, shown, NOW + r.randrange(-5000, 10**6), tuple(headers)

    return [one(i) for i in range(n)]


def producer(cluster: KafkaSettings, **options: Any) -> Producer:
    named = {name.replace("_", "."): value for name, value in options.items()}
    # A batch that the broker was not ready for is sent again: it must not come after its next ones.
    return Producer({**confluent_options(cluster), "linger.ms": 5, "enable.idempotence": True, **named})


def produce(to: Producer, topic: str, rows: Iterable[Row], partition: int = 0) -> None:
    errors: list[Any] = []

    def delivered(error: Any, _message: Any) -> None:
        if error is not None:
            errors.append(error)

    for key, value, timestamp, headers in rows:
        named = list(headers) or None
        to.produce(topic, value, key, partition, on_delivery=delivered, timestamp=timestamp, headers=named)
        to.poll(0)
    assert to.flush(30) == 0
    assert not errors


def consume(
    cluster: KafkaSettings, topic: str, partition: int = 0, isolation: str = "read_uncommitted"
) -> list[tuple[int, Row]]:
    """(offset, row) of the whole partition; checksums are checked."""
    options = {
        "group.id": "oracle",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "isolation.level": isolation,
        "check.crcs": True,
        "auto.offset.reset": "earliest",
    }
    consumer = Consumer({**confluent_options(cluster), **options})
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING)])
    out: list[tuple[int, Row]] = []
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        # It returns once it has that many, or at the timeout: an end of partition does not wake it up.
        for message in consumer.consume(5000, timeout=0.2):
            if message.error():
                assert message.error().code() == KafkaError._PARTITION_EOF
                consumer.close()
                return out
            headers = tuple(message.headers() or ())
            out.append((message.offset(), (message.key(), message.value(), message.timestamp()[1], headers)))
    raise TimeoutError("no end of partition within 20 seconds")
