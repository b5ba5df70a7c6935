"""Begin anew with a connector whose place in the source's log is lost: a full snapshot that also accounts for deletes.

In order: stop the connector; drop what the database keeps for it; delete its offsets in Connect; let it run, which
takes a snapshot of every table; once that is complete, tell each partition of each table that was read from which
offset on it states the whole table (`schemas.baseline`). Until then readers have the old rows beside the new: no table
is ever empty. Interrupted anywhere, all of it can be done again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from confluent_kafka import KafkaException, Producer

from connectors.databases import need_source
from connectors.lifecycle import forget_offset, resume, source_offset, stop
from connectors.notices import Snapshot
from connectors.snapshots import POLL_SECONDS, Show, Target, follow
from connectors.source import Source
from connectors.watch import Watch
from headrace.config import KafkaSettings, Settings
from headrace.errors import ConfigError, TerminalError, UnavailableError
from headrace.kafka import admin
from headrace.kafka.client import confluent_options
from headrace.kafka.errors import from_client
from schemas import baseline
from schemas.registry import Registry

SNAPSHOT_MODES = ("initial", "always", "when_needed")
START_SECONDS = 90.0
DROP_SECONDS = 30.0
SEND_SECONDS = 60.0

Say = Callable[[str], None]


def resnapshot(watch: Watch, settings: Settings, target: Target, say: Say, show: Show) -> Snapshot:
    """All of it; returns the snapshot. Raises `ConfigError` before anything is stopped when it could not work,
    `TerminalError` and `UnavailableError` later: the command may be repeated."""
    mode = target.config.get("snapshot.mode", "initial")
    if mode not in SNAPSHOT_MODES:
        raise ConfigError(f"snapshot.mode is {mode}, which reads no rows", where=f"connector {target.name}")
    source = need_source(settings, target.name, target.config)
    offset = source_offset(watch.connect, target.name)
    if obstacle := source.obstacle(source.log(), offset):
        raise ConfigError(
            "changes after a snapshot would look like repeats", where=f"connector {target.name}", hint=obstacle
        )
    before = watch.notices.snapshots(target.notices).get("initial")
    say(f"{target.name}: stopping")
    stop(watch.connect, target.name)
    topics = [t for t in admin.partitions(settings.kafka) if t.startswith(f"{target.prefix}.")]
    ends = admin.end_offsets(settings.kafka, topics)
    _forget(source)
    forget_offset(watch.connect, target.name)
    say(f"{target.name}: beginning anew with a snapshot")
    resume(watch.connect, target.name)
    _await_start(watch, target, before)
    found = follow(watch, target, "initial", show)
    state_baselines(settings, target, found, ends)
    say(f"{target.name}: snapshot complete; rows that it lacks leave the tables with the next commit")
    return found


def state_baselines(
    settings: Settings, target: Target, snapshot: Snapshot, ends: Mapping[tuple[str, int], int] | None = None
) -> None:
    """Tell every partition of the tables that a completed initial snapshot has read where it began.

    That is where the topics ended before (`ends`) and, since a snapshot that is broken off begins again, not before the
    time at which the last attempt started. Doing it again changes nothing. Raises `UnavailableError`.
    """
    read = {f"{target.prefix}.{table}" for table, scan in snapshot.tables.items() if scan.rows is not None}
    topics = read & admin.partitions(settings.kafka).keys()
    starts = admin.offsets_at(settings.kafka, topics, snapshot.started)
    registry = Registry(settings.registry.url, settings.state / "schemas")
    try:
        schema_id = registry.register(baseline.SUBJECT, baseline.KEY)
    finally:
        registry.close()
    _send(settings.kafka, schema_id, {at: max(offset, (ends or {}).get(at, 0)) for at, offset in starts.items()})


def _forget(source: Source) -> None:
    """The database notices a moment later than Connect that the connector is away."""
    deadline = time.monotonic() + DROP_SECONDS
    while True:
        try:
            source.forget()
            return
        except UnavailableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _await_start(watch: Watch, target: Target, before: Snapshot | None) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        now = watch.notices.snapshots(target.notices).get("initial")
        if now is not None and (before is None or now.started != before.started):
            return
        status = watch.connect.status(target.name)
        if status.state == "FAILED":
            raise TerminalError(status.reason, where=f"connector {target.name}", hint="mend it, and repeat the command")
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"has begun no snapshot: it is {status.state}",
                where=f"connector {target.name}",
                hint="headrace logs connect",
            )
        time.sleep(POLL_SECONDS)


def _send(kafka: KafkaSettings, schema_id: int, offsets: Mapping[tuple[str, int], int]) -> None:
    """Write a baseline to each (topic, partition), acknowledged by all replicas."""
    producer = Producer(confluent_options(kafka) | {"acks": "all", "enable.idempotence": True})
    refused: list[Exception] = []

    def settled(error: object, _: object) -> None:
        if error is not None:
            refused.append(KafkaException(error))

    for (topic, partition), offset in offsets.items():
        key = baseline.key(schema_id, offset)
        producer.produce(topic, key=key, value=None, partition=partition, on_delivery=settled)
    waiting = producer.flush(SEND_SECONDS)
    if refused:
        raise from_client(refused[0], where="baselines")
    if waiting:
        raise UnavailableError("Kafka does not acknowledge", where="baselines", hint="repeat the command")
