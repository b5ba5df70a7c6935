"""Topics against the tables they land in: each record once in its table, or in the quarantine; values unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from governance.verify.avro import Schemas
from governance.verify.kafka import KafkaReader, Record
from governance.verify.lake import Lake, Table
from governance.verify.ledger import Ledger, first_appearances
from governance.verify.report import Check, coordinates
from governance.verify.values import difference
from headrace.errors import DecodeError

KAFKA_COLUMNS = ("_kafka_partition", "_offset", "_timestamp", "_key")


def _table_rows(lake: Lake, table: Table, partition: int, below: int) -> Iterator[dict[str, Any]]:
    if not table.columns:
        return iter(())
    return lake.rows(
        f"SELECT * FROM {lake.scan(table)} WHERE _kafka_partition = ? AND _offset < ? ORDER BY _offset",
        [partition, below],
    )


def _values(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in KAFKA_COLUMNS and value is not None}


def check_bronze(
    kafka: KafkaReader, schemas: Schemas, lake: Lake, ledger: Ledger, topic: str, partitions: int, table: Table
) -> Check:
    """Every record of a source topic below the table's offsets, by coordinates and by value."""
    check = Check(topic, f"records in {table.name}")
    cut = table.offsets(topic)
    compacted = kafka.compacted(topic)

    def in_quarantine(record: Record) -> bool:
        entry = ledger.get("bronze", topic, record.partition, record.offset)
        return entry is not None and entry.value == record.value

    def compare(record: Record, row: dict[str, Any]) -> str | None:
        if row.get("_key") != record.key:
            return "its key differs"
        if record.value is None:
            return difference({}, _values(row))
        try:
            value, _ = schemas.read(record.value)
        except DecodeError as e:
            return f"it does not decode ({e.what}) and yet is in the table"
        return difference(value, _values(row))

    for partition in range(partitions):
        low, high = kafka.bounds(topic, partition)
        below = cut.get(partition, 0)
        check.lag += max(0, high - max(below, low))
        if below > high:
            check.offend(coordinates(topic, partition, below), f"the table says it holds it, Kafka ends at {high}")
            continue
        _merge(
            check,
            kafka.read(topic, partition, low, below),
            _table_rows(lake, table, partition, below),
            in_quarantine,
            compare,
            gaps_allowed=compacted,
            low=low,
            where=partial(coordinates, topic, partition),
        )
        beyond = (
            lake.execute(
                f"SELECT min(_offset) FROM {lake.scan(table)} WHERE _kafka_partition = ? AND _offset >= ?",
                [partition, below],
            ).fetchone()
            if table.columns
            else None
        )
        if beyond and beyond[0] is not None:
            check.offend(coordinates(topic, partition, beyond[0]), "in the table, above the offsets committed with it")
    return check


def _merge(
    check: Check,
    records: Iterator[Record],
    rows: Iterator[dict[str, Any]],
    in_quarantine: Callable[[Record], bool],
    compare: Callable[[Record, dict[str, Any]], str | None],
    *,
    gaps_allowed: bool,
    low: int,
    where: Callable[[int], str],
) -> None:
    """Walk both sides in offset order."""
    row = next(rows, None)

    def skip_to(offset: int | None) -> None:
        """Pass rows that have no record: older than what Kafka still holds, or compacted away, or wrong."""
        nonlocal row
        while row is not None and (offset is None or row["_offset"] < offset):
            if row["_offset"] >= low and not gaps_allowed:
                check.offend(where(row["_offset"]), "in the table, but Kafka has no such record")
            row = _after(row)

    def _after(done: dict[str, Any]) -> dict[str, Any] | None:
        following = next(rows, None)
        while following is not None and following["_offset"] == done["_offset"]:
            check.offend(where(done["_offset"]), "more than once in the table")
            following = next(rows, None)
        return following

    for record in records:
        skip_to(record.offset)
        held = in_quarantine(record)
        if row is None or row["_offset"] != record.offset:
            if held:
                check.quarantined += 1
            else:
                check.offend(where(record.offset), "neither in the table nor in the quarantine")
            continue
        if held:
            check.offend(where(record.offset), "both in the table and in the quarantine")
        elif (wrong := compare(record, row)) is not None:
            check.offend(where(record.offset), wrong)
        check.compared += 1
        row = _after(row)
    skip_to(None)


def check_derived(kafka: KafkaReader, schemas: Schemas, lake: Lake, topic: str, partitions: int, table: Table) -> Check:
    """A derived topic against its append table: first appearances, once each, values unchanged."""
    check = Check(topic, f"records in {table.name}")
    cut = table.offsets(topic)
    for partition in range(partitions):
        low, high = kafka.bounds(topic, partition)
        below = cut.get(partition, 0)
        check.lag += max(0, high - max(below, low))
        rows = _table_rows(lake, table, partition, below)
        row = next(rows, None)
        while row is not None and row["_offset"] < low:
            row = next(rows, None)
        for record, value in first_appearances(schemas, kafka.read(topic, partition, low, below)):
            where = coordinates(topic, partition, record.offset)
            while row is not None and row["_offset"] < record.offset:
                check.offend(coordinates(topic, partition, row["_offset"]), "in the table, but a replay or no record")
                row = next(rows, None)
            if row is None or row["_offset"] != record.offset:
                check.offend(where, "not in the table")
                continue
            if (wrong := difference(value, _values(row))) is not None:
                check.offend(where, wrong)
            check.compared += 1
            row = next(rows, None)
            while row is not None and row["_offset"] == record.offset:
                check.offend(where, "more than once in the table")
                row = next(rows, None)
        for left in ([row] if row is not None else []) + list(rows):
            check.offend(coordinates(topic, partition, left["_offset"]), "in the table, but a replay or no record")
    return check


def check_upsert(
    kafka: KafkaReader,
    schemas: Schemas,
    lake: Lake,
    topic: str,
    partitions: int,
    table: Table,
    key: tuple[str, ...],
) -> Check:
    """A derived topic against its upsert table: per key the record of the highest revision, and no other row."""
    check = Check(topic, f"newest of each key in {table.name}")
    cut = table.offsets(topic)
    newest: dict[tuple[Any, ...], tuple[int, Record, dict[str, Any]]] = {}
    for partition in range(partitions):
        low, high = kafka.bounds(topic, partition)
        below = cut.get(partition, 0)
        check.lag += max(0, high - max(below, low))
        for record in kafka.read(topic, partition, low, below):
            if record.value is None:
                continue
            row, _ = schemas.read(record.value)
            at = tuple(row.get(name) for name in key)
            if at not in newest or row.get("revision", record.offset) >= newest[at][0]:
                newest[at] = (row.get("revision", record.offset), record, row)
    complete = all(kafka.bounds(topic, p)[0] == 0 for p in range(partitions)) and not kafka.compacted(topic)
    for row in lake.rows(f"SELECT * FROM {lake.scan(table)}") if table.columns else ():
        at = tuple(row.get(name) for name in key)
        expected = newest.pop(at, None)
        where = coordinates(topic, row["_kafka_partition"], row["_offset"])
        if expected is None:
            if complete:
                check.offend(where, f"key {at} is in the table twice or not in Kafka")
            continue
        if (wrong := difference(expected[2], _values(row))) is not None:
            check.offend(where, f"key {at}: {wrong}")
        check.compared += 1
    for at, (_, record, _) in newest.items():
        check.offend(coordinates(topic, record.partition, record.offset), f"key {at} is not in the table")
    return check
