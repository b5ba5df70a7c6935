"""What Debezium tells about its snapshots, from its notification topic, folded to the state of each."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import fastavro
from confluent_kafka import Consumer, KafkaException, TopicPartition

from headrace.config import KafkaSettings
from headrace.errors import UnavailableError
from headrace.kafka import admin
from headrace.kafka.client import confluent_options
from headrace.kafka.errors import from_client
from schemas.registry import Registry

TOPIC = "notification.sink.topic.name"
READ_SECONDS = 10.0

Kind = Literal["initial", "incremental"]
KINDS: Mapping[str, Kind] = {"Initial Snapshot": "initial", "Incremental Snapshot": "incremental"}
STATES = {"RESUMED": "running", "PAUSED": "paused", "COMPLETED": "completed", "ABORTED": "aborted"}
OVER = ("completed", "aborted")


@dataclass(frozen=True)
class Notice:
    """One notification. `at` is the Kafka timestamp of its record, in ms since the epoch."""

    id: str
    type: str
    kind: Kind
    data: Mapping[str, str]
    at: int


@dataclass(frozen=True)
class Scan:
    """A table's part in a snapshot. `rows` is exact once it is over; `chunks` were read so far, each known by its last
    key: one that is read again after a crash counts once. Times in ms."""

    started: int
    updated: int
    chunks: frozenset[str] = frozenset()
    rows: int | None = None
    failed: str = ""


@dataclass(frozen=True)
class Snapshot:
    """The state of one snapshot: running, paused, completed or aborted. Times in ms since the epoch.

    An initial one is `repeated` when there was one before it: broken off, or not known to be complete after a crash.
    """

    id: str
    kind: Kind
    state: str
    started: int
    updated: int
    tables: Mapping[str, Scan] = field(default_factory=dict)
    repeated: bool = False

    @property
    def over(self) -> bool:
        return self.state in OVER


def fold(known: Mapping[str, Snapshot], notice: Notice) -> dict[str, Snapshot]:
    """Snapshots by id after one more notification, the newest last. Pure.

    Debezium names an incremental snapshot by its signal and an initial one not at all: it has the id `initial`, and
    one that starts takes the place of the one before. It begins where nothing is known of the source, so incremental
    ones are forgotten with it. One that is stopped says that it is completed, but not that its tables are.
    """
    name = "initial" if notice.kind == "initial" else notice.id
    old = known.get(name)
    if notice.type == "SKIPPED" or (old is None and notice.type != "STARTED"):
        return dict(known)
    out = {id_: snapshot for id_, snapshot in known.items() if id_ != name}
    if old is None or notice.type == "STARTED":
        if notice.kind == "initial":
            out = {id_: s if s.over else replace(s, state="aborted", updated=notice.at) for id_, s in out.items()}
        out[name] = Snapshot(name, notice.kind, "running", notice.at, notice.at, repeated=old is not None)
        return out
    data, tables = notice.data, dict(old.tables)
    if current := data.get("current_collection_in_progress"):
        scan = tables.get(current, Scan(notice.at, notice.at))
        last = {data["last_processed_key"]} if "last_processed_key" in data else set()
        # The chunk that ends with the last key of all is rarely full.
        last -= {data.get("maximum_key", "")}
        tables[current] = replace(scan, updated=notice.at, chunks=scan.chunks | last)
    if notice.type == "TABLE_SCAN_COMPLETED" and (scanned := data.get("scanned_collection")):
        scan = tables.get(scanned, Scan(notice.at, notice.at))
        status = data.get("status", "SUCCEEDED")
        failed = "" if status in ("SUCCEEDED", "EMPTY") else status
        tables[scanned] = replace(scan, updated=notice.at, rows=int(data.get("total_rows_scanned", 0)), failed=failed)
    state = STATES.get(notice.type, old.state)
    if state == "completed" and any(scan.rows is None for scan in tables.values()):
        state = "aborted"
    out[name] = replace(old, state=state, updated=notice.at, tables=tables)
    return out


class Notices:
    """Reads notification topics; remembers how far. Not thread-safe."""

    def __init__(self, kafka: KafkaSettings, registry: Registry) -> None:
        self._kafka = kafka
        self._registry = registry
        self._next: dict[tuple[str, int], int] = {}
        self._snapshots: dict[str, dict[str, Snapshot]] = {}
        self._schemas: dict[int, Any] = {}

    def snapshots(self, topic: str) -> dict[str, Snapshot]:
        """Snapshots by id as of the end of the topic. Raises `UnavailableError`."""
        known = self._snapshots.setdefault(topic, {})
        for notice in self._new(topic):
            known = fold(known, notice)
        self._snapshots[topic] = known
        return known

    def known(self, topic: str) -> dict[str, Snapshot]:
        """The same as of the last time it was read."""
        return self._snapshots.get(topic, {})

    def _new(self, topic: str) -> list[Notice]:
        ends = admin.end_offsets(self._kafka, [topic])
        begins = admin.begin_offsets(self._kafka, [topic])
        at = {place: max(begins[place], self._next.get(place, 0)) for place in ends}
        todo = {place for place, end in ends.items() if at[place] < end}
        found: list[Notice] = []
        if not todo:
            return found
        options = {"group.id": "headrace-notices", "enable.auto.commit": False, "enable.partition.eof": False}
        consumer = Consumer(confluent_options(self._kafka) | options)
        try:
            consumer.assign([TopicPartition(*place, at[place]) for place in todo])
            deadline = time.monotonic() + READ_SECONDS
            while todo:
                if time.monotonic() > deadline:
                    raise UnavailableError("Kafka does not send its records", where=topic)
                # It waits for so many, or for the time: not for what there is.
                for message in consumer.consume(500, 0.1):
                    if message.error():
                        raise KafkaException(message.error())
                    place = (topic, message.partition())
                    at[place] = message.offset() + 1
                    if at[place] >= ends[place]:
                        todo.discard(place)
                    found += self._parse(message)
        except KafkaException as e:
            raise from_client(e, where=topic) from e
        finally:
            consumer.close()
        self._next |= at
        return sorted(found, key=lambda notice: notice.at)

    def _parse(self, message: Any) -> list[Notice]:
        value = message.value()
        if not value or value[0] != 0:
            return []
        number = int.from_bytes(value[1:5], "big")
        if number not in self._schemas:
            self._schemas[number] = fastavro.parse_schema(self._registry.schema(number))
        record: Any = fastavro.schemaless_reader(io.BytesIO(value[5:]), self._schemas[number], None)
        kind = KINDS.get(record["aggregate_type"])
        if kind is None:
            return []
        return [Notice(record["id"], record["type"], kind, record["additional_data"] or {}, message.timestamp()[1])]
