"""Agents: each record below the group's committed offset is in the output once, quarantined, or dropped by a rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from governance.verify.avro import Schemas
from governance.verify.kafka import KafkaReader, Record
from governance.verify.ledger import Ledger, first_appearances
from governance.verify.report import Check, coordinates


def check_agent(
    kafka: KafkaReader,
    schemas: Schemas,
    ledger: Ledger,
    committed: Mapping[int, int],
    stage: str,
    source: str,
    partitions: int,
    output: str,
    *,
    chained: bool = False,
) -> Check:
    """`stage` is the agent's name in the quarantine; output partition = source partition. A `chained` agent reads a
    derived topic: its output carries the coordinates that the source's own records carry, and replays are no records.

    `committed` are the group's offsets, read before the ledger: they come after the output and the quarantine are
    acknowledged, so everything below them must be accounted for.
    """
    check = Check(f"{source} -> {output}", f"records through {stage}")
    for partition in range(partitions):
        low, high = kafka.bounds(source, partition)
        below = min(committed.get(partition, 0), high)
        check.lag += max(0, high - max(below, low))
        out_low, out_high = kafka.bounds(output, partition)
        held = ledger.offsets(stage, source, partition)
        produced = {
            row["source_offset"]
            for _, row in first_appearances(schemas, kafka.read(output, partition, out_low, out_high))
        }
        if out_low > 0:
            check.note = f"{output} has lost its oldest records to retention: those are not compared"
            low = max(low, min(produced, default=below))
        for record, origin in _origins(kafka, schemas, source, partition, low, below, chained):
            where = coordinates(source, partition, record.offset)
            entry = held.get(record.offset)
            if origin in produced:
                if entry is not None:
                    check.offend(where, f"in the output and {entry.disposition} by {entry.rule!r}")
                check.compared += 1
            elif entry is None:
                check.offend(where, "neither in the output, nor quarantined, nor dropped by a rule")
            elif entry.disposition == "dropped":
                check.dropped += 1
            else:
                check.quarantined += 1
                if entry.value != record.value:
                    check.offend(where, "the quarantine holds another value than Kafka")
        if chained:
            continue
        # Asked for again: records have come, and have been processed, since the first time.
        end = kafka.bounds(source, partition)[1]
        if unknown := {offset for offset in produced if offset >= end}:
            check.offend(coordinates(source, partition, min(unknown)), "in the output, but Kafka has no such record")
    return check


def _origins(
    kafka: KafkaReader, schemas: Schemas, source: str, partition: int, low: int, below: int, chained: bool
) -> Iterator[tuple[Record, int]]:
    """Records of the source with the coordinate that their output carries."""
    records = kafka.read(source, partition, low, below)
    if not chained:
        return ((record, record.offset) for record in records)
    return ((record, row["source_offset"]) for record, row in first_appearances(schemas, records))
