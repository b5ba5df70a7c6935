from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import pytest

from headrace.config import KafkaSettings
from headrace.kafka.admin import TopicSpec, ensure_topics


@pytest.fixture
def cluster(kafka: str) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=kafka)


@pytest.fixture
def topic(cluster: KafkaSettings) -> Callable[..., str]:
    """Creates a topic of a unique name: topic(partitions=1, **config)."""

    def create(partitions: int = 1, **config: str) -> str:
        name = f"test.kafka.{uuid4().hex[:10]}"
        spec = TopicSpec(partitions, {key.replace("_", "."): value for key, value in config.items()})
        assert ensure_topics(cluster, {name: spec}) == {name}
        return name

    return create
