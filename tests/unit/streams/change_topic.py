"""A change topic as Debezium and the registry have it: chunks of events under several schemas, and who reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, cast
from unittest.mock import AsyncMock, patch

import numpy as np
import pyarrow as pa

from headrace.config import KafkaSettings, Settings
from headrace.errors import SchemaNotFoundError
from headrace.kafka import Chunk
from schemas.codec import Encoder, arrow_schema
from schemas.kpis import Kpi
from schemas.registry import Registry, Version
from sinks.reverse.declaration import Sync
from sinks.reverse.fold import Table, Values
from sinks.reverse.intake import Intake
from sinks.reverse.sources import Watermark
from streams.kpi import state
from streams.kpi.state import kpi_processors
from streams.kpi.totals import Totals
from streams.lookup import Lookup, LookupReader
from streams.processor import Retry
from tests.property.streams.test_kpi_contributions import kpi
from tests.property.streams.test_kpi_state import FakeChangelog, Log

TOPIC = "shop.public.things"
Row = Mapping[str, Any] | None

ID = {"name": "id", "type": "long"}
NAME = {"name": "name", "type": ["null", "string"], "default": None}


def envelope_of(*fields: Mapping[str, Any]) -> dict[str, Any]:
    text, number = ["null", "string"], ["null", "long"]
    source = {"schema": text, "table": text, "lsn": number, "txId": number, "sequence": text, "snapshot": text}
    parts: dict[str, Any] = {
        "before": ["null", {"type": "record", "name": "Value", "fields": list(fields)}],
        "after": ["null", "Value"],
        "source": {"type": "record", "name": "Source", "fields": [{"name": n, "type": t} for n, t in source.items()]},
        "op": "string",
        "ts_ms": number,
        "transaction": [
            "null",
            {"type": "record", "name": "Tx", "fields": [{"name": "total_order", "type": number}]},
        ],
    }
    fields_ = [{"name": name, "type": kind} for name, kind in parts.items()]
    return {"type": "record", "name": "Envelope", "namespace": TOPIC, "fields": fields_}


def event(op: str, before: Row, after: Row, lsn: int, **source: Any) -> dict[str, Any]:
    said = {"schema": "public", "table": "things", "lsn": lsn, "txId": lsn, "sequence": f'["{lsn}","{lsn}"]'}
    return {
        "before": before,
        "after": after,
        "source": {"snapshot": "false", **said, **source},
        "op": op,
        "ts_ms": lsn,
        "transaction": {"total_order": 1},
    }


class ChangeTopic:
    """Stands for the registry too: `schemas` are the topic's, by id, in the order of their versions."""

    def __init__(self, schemas: Mapping[int, dict[str, Any]], unregistered: Sequence[int] = ()) -> None:
        self.schemas = schemas
        self._versions = [number for number in schemas if number not in unregistered]
        self._ends: dict[int, int] = {}

    def schema(self, schema_id: int) -> dict[str, Any]:
        if schema_id not in self.schemas:
            raise SchemaNotFoundError("not there")
        return self.schemas[schema_id]

    def versions(self, subject: str) -> list[int]:
        assert subject == f"{TOPIC}-value"
        return [number + 1 for number in range(len(self._versions))]

    def version(self, subject: str, version: int | str) -> Version:
        if not self._versions:
            raise SchemaNotFoundError("not there")
        number = len(self._versions) if version == "latest" else int(version)
        return Version(subject, number, self._versions[number - 1], self.schemas[self._versions[number - 1]])

    def chunk(self, *events: tuple[int, dict[str, Any]] | None, partition: int = 0) -> Chunk:
        """(schema id, event or other record) each, None for a tombstone; behind the chunks before it."""
        start = self._ends.get(partition, 0)
        self._ends[partition] = end = start + len(events)
        keys = [None if e and e[1].get("op") == "t" else b"k%d" % _key(e[1] if e else None) for e in events]
        values = [None if e is None else self._message(*e) for e in events]
        offsets = np.arange(start, end, dtype=np.int64)
        times = np.full(len(events), 4_000_000_000_000, np.int64)
        arrays = pa.array(keys, pa.binary()), pa.array(values, pa.binary())
        return Chunk(TOPIC, partition, *arrays, offsets, times, end)

    def _message(self, schema_id: int, said: dict[str, Any]) -> bytes:
        schema = self.schemas[schema_id]
        batch = pa.RecordBatch.from_pylist([said], schema=arrow_schema(schema))
        message: bytes = Encoder(schema, schema_id).encode(batch)[0].as_py()
        return message

    def kpis(self, *declared: Kpi, chunks: Sequence[Chunk], there: int = 0) -> dict[str, dict[str, Any]]:
        """The values of KPIs that began when `there` records were there, by KPI and group."""
        log = Log(1000)
        (processor,) = kpi_processors(Settings(), declared, cast(Registry, self), {TOPIC})
        processor._changelog = changelog = FakeChangelog(log)
        changelog.start = AsyncMock()
        processor._bounds = AsyncMock(return_value=(0, there))  # type: ignore[method-assign]

        async def work() -> None:
            await processor.start()
            await processor.assigned(0, None)
            for chunk in chunks:
                await processor.process(chunk)

        with (
            patch.object(state, "topic_ids", lambda *_: {TOPIC: "id"}),
            patch.object(state, "after_last_record", AsyncMock(return_value=there)),
        ):
            asyncio.run(work())
        totals = Totals(declared)
        totals.ends({(TOPIC, 0): 0})
        totals.feed(TOPIC, 0, *log.columns(), 0.0)
        found: dict[str, dict[str, Any]] = {one.name: {} for one in declared}
        for published in totals.changed(0.0):
            found[published.kpi.name][published.key[1]] = published.value
        return found

    def lookup(self, *columns: str, chunks: Sequence[Chunk], key: str = "id") -> list[dict[str, Any]]:
        """The rows of a lookup by the keys 1 to 9."""
        reader = LookupReader(Lookup("things", TOPIC, key, columns), KafkaSettings(), cast(Registry, self), Retry())

        async def work() -> None:
            reader._learn()
            for chunk in chunks:
                await reader._apply(chunk)

        asyncio.run(work())
        keys = pa.array(range(1, 10), pa.int64())
        known = reader.table.known(keys)
        rows: list[dict[str, Any]] = reader.table.take(keys.filter(known)).to_pylist()
        return [{"id": k, **row} for k, row in zip(keys.filter(known).to_pylist(), rows, strict=True)]

    def sync(self, chunks: Sequence[Chunk], mode: str = "mirror", **source: Any) -> list[Values | None]:
        """The rows that a sync wants in its target."""
        declared = sync_of(mode, **source)
        intake = Intake(declared, KafkaSettings(), cast(Registry, self), {TOPIC})
        intake.learn()
        table = Table(declared)
        for chunk in chunks:
            intake.marks.setdefault((TOPIC, chunk.partition), Watermark(0))
            table.apply(intake.read(chunk))
        return [table.wanted(row) for row in table.rows.values()]


def sync_of(mode: str = "mirror", **source: Any) -> Sync:
    said = {"topic": TOPIC, "key": {"id": "id"}, "columns": ["name"], **source}
    target = {"name": "s", "target": "db", "type": "sql", "sql": {"table": "t"}}
    return Sync.model_validate({**target, "mode": mode, "key": ["id"], "sources": [said]})


def _key(said: dict[str, Any] | None) -> int:
    row = said and (said.get("after") or said.get("before"))
    return int(row["id"]) if row else 0


def declared(measure: str, field: str = "", **more: Any) -> Kpi:
    made: Kpi = kpi(measure, field, source=TOPIC, **more)
    return made
