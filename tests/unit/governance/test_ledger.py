from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

from governance.verify.avro import Schemas
from governance.verify.kafka import KafkaReader, Record
from governance.verify.ledger import Ledger, first_appearances
from schemas.contracts import BUILTIN, load_contract

SCHEMA = load_contract(BUILTIN / "quarantined.avsc").avro


class Kafka:
    """`ops.quarantine` with these (offset of the source, id of its topic); the topic that is there now has `now`."""

    def __init__(self, rows: list[tuple[int, str | None]], now: str | None) -> None:
        self.rows, self.now = rows, now

    def topics(self) -> dict[str, int]:
        return {"ops.quarantine": 1}

    def bounds(self, *_: Any) -> tuple[int, int]:
        return 0, len(self.rows)

    def topic_id(self, _: str) -> str | None:
        return self.now

    def read(self, topic: str, partition: int, *_: int) -> Iterator[Record]:
        return (Record(topic, partition, i, 0, None, b"%d" % i) for i in range(len(self.rows)))

    def decode(self, value: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
        offset, topic_id = self.rows[int(value)]
        row: dict[str, Any] = {"stage": "bronze", "source_topic": "t", "source_partition": 0, "source_offset": offset}
        row |= {"disposition": "quarantined", "rule": str(int(value)), "value": b""}
        if topic_id is not None:
            row["source_topic_id"] = topic_id
        return row, {**SCHEMA, "fields": [field for field in SCHEMA["fields"] if field["name"] in row]}


def held(kafka: Kafka) -> dict[int, str]:
    ledger = Ledger(cast(KafkaReader, kafka), cast(Schemas, SimpleNamespace(read=kafka.decode)))
    return {offset: entry.rule for offset, entry in ledger.offsets("bronze", "t", 0).items()}


def test_records_of_a_topic_made_anew_are_neither_replays_nor_taken_for_those_before() -> None:
    rows: list[tuple[int, str | None]] = [(4, None), (7, "old"), (8, "old"), (7, "new"), (8, "old"), (7, "new")]
    kafka = Kafka(rows, "new")
    schemas = cast(Schemas, SimpleNamespace(read=kafka.decode))
    firsts = [record.offset for record, _ in first_appearances(schemas, kafka.read("ops.quarantine", 0))]
    assert firsts == [0, 1, 2, 3]
    assert held(kafka) == {4: "0", 7: "3"}
    assert held(Kafka(rows, None)) == {4: "0"}
