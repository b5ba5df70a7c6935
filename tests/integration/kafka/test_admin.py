from __future__ import annotations

from uuid import uuid4

import pytest
from confluent_kafka.admin import AdminClient

from headrace.config import KafkaSettings
from headrace.errors import TerminalError, UnavailableError
from headrace.kafka import admin
from headrace.kafka.client import confluent_options
from tests.integration.kafka.oracle import produce, producer, random_rows


def test_topics_are_created_once_and_found_again(cluster: KafkaSettings) -> None:
    name = f"test.admin.{uuid4().hex[:10]}"
    topics = {name: admin.TopicSpec(3, {"retention.ms": "-1"})}
    assert admin.ensure_topics(cluster, topics) == {name}
    assert admin.ensure_topics(cluster, {name: admin.TopicSpec(5)}) == set()
    assert admin.partitions(cluster)[name] == 3
    produce(producer(cluster), name, random_rows(7), partition=1)
    assert admin.end_offsets(cluster, [name]) == {(name, 0): 0, (name, 1): 7, (name, 2): 0}
    assert set(admin.begin_offsets(cluster, [name]).values()) == {0}


def test_a_topic_made_again_has_another_identity(cluster: KafkaSettings) -> None:
    name = f"test.admin.{uuid4().hex[:10]}"
    admin.ensure_topics(cluster, {name: admin.TopicSpec(1)})
    before = admin.topic_ids(cluster, [name, "no-such-topic"])
    other_client = AdminClient(confluent_options(cluster))
    other_client.delete_topics([name])[name].result(20)
    while name in admin.partitions(cluster):
        pass
    admin.ensure_topics(cluster, {name: admin.TopicSpec(1)})
    after = admin.topic_ids(cluster, [name])
    assert before.keys() == after.keys() == {name}
    assert before[name] != after[name]
    assert admin.cluster_id(cluster)


def test_refusals_and_absence_have_types(cluster: KafkaSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TerminalError, match="no such topic"):
        admin.end_offsets(cluster, ["no-such-topic"])
    with pytest.raises(TerminalError, match="not a name"):
        admin.ensure_topics(cluster, {"not a name": admin.TopicSpec(1)})
    monkeypatch.setattr(admin, "TIMEOUT_SECONDS", 1.0)
    with pytest.raises(UnavailableError):
        admin.partitions(KafkaSettings(bootstrap_servers="127.0.0.1:1"))


def test_partitions_are_added_and_never_taken(cluster: KafkaSettings) -> None:
    topic, missing = f"grow-{uuid4().hex}", f"none-{uuid4().hex}"
    admin.ensure_topics(cluster, {topic: admin.TopicSpec(2)})
    assert admin.add_partitions(cluster, {topic: 2, missing: 3}) == set()
    assert admin.add_partitions(cluster, {topic: 3}) == {topic}
    assert admin.add_partitions(cluster, {topic: 1}) == set()
    assert admin.partitions(cluster)[topic] == 3
    assert missing not in admin.partitions(cluster)
