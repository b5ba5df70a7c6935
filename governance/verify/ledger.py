"""What the quarantine topic says about each record: its whole content, read as it grows, by coordinates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from governance.verify.avro import Schemas
from governance.verify.kafka import KafkaReader, Record
from headrace.errors import DecodeError

QUARANTINE = "ops.quarantine"

Place = tuple[int, int]
"""Source offset, and index within it."""


@dataclass(frozen=True)
class Entry:
    disposition: str
    rule: str
    value: bytes | None


class Ledger:
    """Quarantined and dropped records of the topics that there are now, by (stage, topic, partition, offset).

    A row that says it is of an earlier topic of the same name is left out: its offsets mean other records.
    """

    def __init__(self, kafka: KafkaReader, schemas: Schemas) -> None:
        self._kafka, self._schemas = kafka, schemas
        self._entries: dict[tuple[str, str, int, int], Entry] = {}
        self._ids: dict[str, str | None] = {}
        self._ends: dict[int, int] = {}
        self._highest: dict[int, dict[str, Place]] = {}
        self.read_on()

    def read_on(self) -> None:
        """Take in what has come since the last time."""
        for partition in range(self._kafka.topics().get(QUARANTINE, 0)):
            low, high = self._kafka.bounds(QUARANTINE, partition)
            records = self._kafka.read(QUARANTINE, partition, max(low, self._ends.get(partition, 0)), high)
            highest = self._highest.setdefault(partition, {})
            for _, row in first_appearances(self._schemas, records, highest):
                topic = row["source_topic"]
                if topic not in self._ids:
                    self._ids[topic] = self._kafka.topic_id(topic)
                if row.get("source_topic_id") not in (None, self._ids[topic]):
                    continue
                at = (row["stage"], topic, row["source_partition"], row["source_offset"])
                self._entries[at] = Entry(row["disposition"], row.get("rule", ""), row.get("value"))
            self._ends[partition] = high

    def get(self, stage: str, topic: str, partition: int, offset: int) -> Entry | None:
        return self._entries.get((stage, topic, partition, offset))

    def offsets(self, stage: str, topic: str, partition: int) -> dict[int, Entry]:
        return {o: e for (s, t, p, o), e in self._entries.items() if (s, t, p) == (stage, topic, partition)}


def lane(row: dict[str, Any]) -> str:
    """What one increasing sequence of source offsets belongs to inside a partition."""
    if "stage" not in row:
        return ""
    name = f"{row['stage']}|{row['source_topic']}|{row['source_partition']}"
    # A topic that was made anew has the same offsets again, for other records.
    made = row.get("source_topic_id")
    return name if made is None else f"{name}|{made}"


def first_appearances(
    schemas: Schemas, records: Iterator[Record], highest: dict[str, Place] | None = None
) -> Iterator[tuple[Record, dict[str, Any]]]:
    """Records of a derived topic without replays: those whose coordinates are above all before them in their lane.

    `highest` is what was seen before, by lane, and is kept up to date.

    Raises `DecodeError` naming the coordinates: what Headrace itself writes must decode.
    """
    highest = {} if highest is None else highest
    for record in records:
        if record.value is None:
            continue
        try:
            row, _ = schemas.read(record.value)
        except DecodeError as e:
            raise DecodeError(e.what, where=f"{record.topic}/{record.partition}/{record.offset}") from e
        at, place = lane(row), (row["source_offset"], row.get("source_index", 0))
        if place > highest.get(at, (-1, -1)):
            highest[at] = place
            yield record, row
