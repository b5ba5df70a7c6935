"""What the quarantine topic says about each record: its whole content, read once, by coordinates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from governance.verify.avro import Schemas
from governance.verify.kafka import KafkaReader, Record
from governance.verify.values import from_avro
from headrace.errors import DecodeError

QUARANTINE = "ops.quarantine"


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
        self._entries: dict[tuple[str, str, int, int], Entry] = {}
        self.ends: dict[int, int] = {}
        ids: dict[str, str | None] = {}
        for partition in range(kafka.topics().get(QUARANTINE, 0)):
            low, high = kafka.bounds(QUARANTINE, partition)
            self.ends[partition] = high
            for _, row in first_appearances(schemas, kafka.read(QUARANTINE, partition, low, high)):
                topic = row["source_topic"]
                if topic not in ids:
                    ids[topic] = kafka.topic_id(topic)
                if row.get("source_topic_id") not in (None, ids[topic]):
                    continue
                at = (row["stage"], topic, row["source_partition"], row["source_offset"])
                self._entries[at] = Entry(row["disposition"], row.get("rule", ""), row.get("value"))

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


def first_appearances(schemas: Schemas, records: Iterator[Record]) -> Iterator[tuple[Record, dict[str, Any]]]:
    """Records of a derived topic without replays: those whose coordinates are above all before them in their lane.

    Raises `DecodeError` naming the coordinates: what Headrace itself writes must decode.
    """
    highest: dict[str, tuple[int, int]] = {}
    for record in records:
        if record.value is None:
            continue
        try:
            value, schema = schemas.decode(record.value)
        except DecodeError as e:
            raise DecodeError(e.what, where=f"{record.topic}/{record.partition}/{record.offset}") from e
        row = from_avro(value, schema)
        at, place = lane(row), (row["source_offset"], row.get("source_index", 0))
        if place > highest.get(at, (-1, -1)):
            highest[at] = place
            yield record, row
