"""Real servers for integration tests, started once a session and only when a test asks for them.

HEADRACE_TEST_STACK names the home of a stack that runs already; it is then used instead, and left running.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings

from headrace.config import Settings
from stack.testing import SessionStack

# How long an example takes says how busy the machine is.
hypothesis_settings.register_profile("headrace", deadline=None)
hypothesis_settings.load_profile("headrace")


@pytest.fixture(scope="session")
def stack() -> Iterator[SessionStack]:
    home = os.environ.get("HEADRACE_TEST_STACK")
    session = SessionStack(Path(home).resolve() if home else None)
    try:
        yield session
    finally:
        session.close()


@pytest.fixture(scope="session")
def kafka(stack: SessionStack) -> str:
    """Bootstrap servers of a real Kafka."""
    return stack.need("kafka").kafka.bootstrap_servers


@pytest.fixture(scope="session")
def postgres_url(stack: SessionStack) -> str:
    """Admin URL of a real Postgres with logical decoding."""
    return stack.need("postgres").postgres.url


@pytest.fixture(scope="session")
def mariadb_url(stack: SessionStack) -> str:
    """Admin URL of a real MariaDB with a row-based binary log."""
    return stack.need("mariadb").mariadb.url


@pytest.fixture(scope="session")
def registry_url(stack: SessionStack) -> str:
    """URL of a real registry's Confluent-compatible API."""
    return stack.need("registry").registry.url


@pytest.fixture(scope="session")
def redis_url(stack: SessionStack) -> str:
    return stack.need("redis").redis.url


@pytest.fixture(scope="session")
def mqtt_url(stack: SessionStack) -> str:
    return stack.need("artemis").mqtt.url


@pytest.fixture(scope="session")
def connect_url(stack: SessionStack) -> str:
    """URL of a real Kafka Connect with Debezium; Kafka, registry and Postgres come with it."""
    return stack.need("connect", "registry").connect.url


@pytest.fixture
def settings(stack: SessionStack) -> Settings:
    """Settings of the session's stack, all servers but Connect running (ask for `connect_url` too to have it)."""
    return stack.need("postgres", "kafka", "registry", "redis", "artemis")
