"""Where rows are written back to. A target is one small class; `tests/integration/reverse/test_targets.py` is the
suite that each of them passes."""

from __future__ import annotations

from headrace.config import Settings
from headrace.errors import ConfigError
from sinks.reverse.declaration import Sync
from sinks.reverse.targets.base import Done, Failed, Outcome, Refused, Target
from sinks.reverse.targets.http import HttpTarget
from sinks.reverse.targets.kafka import KafkaTarget
from sinks.reverse.targets.sql import SqlTarget

__all__ = ["Done", "Failed", "Outcome", "Refused", "Target", "make_target"]


def make_target(sync: Sync, settings: Settings) -> Target:
    """The target of a sync; without a setting `targets.<name>`, the local stack's process of that name.

    Raises `ConfigError` when there is neither, or its URL is of another kind.
    """
    url = settings.targets.get(sync.target) or settings.endpoints.get(sync.target, "")
    if sync.type == "kafka" and not url:
        url = f"kafka://{settings.kafka.bootstrap_servers}"
    if not url:
        raise ConfigError(
            "is missing", where=f"targets.{sync.target}", hint=f"sync {sync.name} writes there; give it a URL"
        )
    scheme = url.partition(":")[0].partition("+")[0]
    kinds = {"http": ("http", "https"), "sql": ("postgresql", "postgres"), "kafka": ("kafka",)}[sync.type]
    if scheme not in kinds:
        raise ConfigError(
            f"must be a URL of {' or '.join(kinds)}", where=f"targets.{sync.target}", hint=f"sync {sync.name}"
        )
    if sync.type == "http":
        return HttpTarget(sync, url)
    return SqlTarget(sync, url) if sync.type == "sql" else KafkaTarget(sync, url, settings.kafka)
