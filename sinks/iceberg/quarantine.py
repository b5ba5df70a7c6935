"""Records that a table cannot take: whole in `ops.quarantine`, acknowledged, before the table moves past them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.config import KafkaSettings
from schemas.registry import Registry
from sinks.iceberg.slices import Reject, kafka_time
from sinks.refused import RefusedRows

Int64 = npt.NDArray[np.int64]


class Quarantine:
    """Writes the rejects of all tables of a sink."""

    def __init__(self, kafka: KafkaSettings, registry: Registry) -> None:
        self._rows = RefusedRows(kafka, registry)

    async def send(self, rejects: Sequence[Reject], topic_id: str) -> None:
        """Return when all of them are acknowledged. They are of one topic, which has this id.

        After an error, all of them are to be sent again. Raises `UnavailableError` and aiokafka's errors.
        """
        await self._rows.send(await asyncio.to_thread(_by_partition, rejects, topic_id))

    async def close(self) -> None:
        await self._rows.close()


def _by_partition(rejects: Sequence[Reject], topic_id: str) -> list[tuple[int, pa.RecordBatch]]:
    lanes = sorted({reject.slice.partition for reject in rejects})
    mine = {lane: [reject for reject in rejects if reject.slice.partition == lane] for lane in lanes}
    return [(lane, quarantine_rows(mine[lane], topic_id, time.time())) for lane in lanes]


def quarantine_rows(rejects: Sequence[Reject], topic_id: str, now: float) -> pa.RecordBatch:
    """Rejects of one partition as rows of the quarantine, in offset order: within a stage their offsets only increase
    from batch to batch, which readers tell replays by. `now` is in seconds since the epoch."""
    parts = pa.concat_tables([_rows(reject, topic_id, now) for reject in rejects]).combine_chunks()
    return parts.sort_by("source_offset").combine_chunks().to_batches()[0]


def _rows(reject: Reject, topic_id: str, now: float) -> pa.Table:
    part, rows = reject.slice, reject.rows
    n = len(rows)
    take = pa.array(rows)
    values = part.values.take(take)
    columns: dict[str, Any] = {
        "stage": _same(reject.stage, n),
        "source_topic": _same(part.topic, n),
        "source_partition": pa.array(np.full(n, part.partition, np.int32)),
        "source_offset": pa.array(part.offsets[rows]),
        "disposition": _same("quarantined", n),
        "rule": _same(reject.rule, n),
        "reason": pa.array(reject.reasons, pa.string()),
        "contract": _same(reject.contract, n),
        "key": part.keys.take(take),
        "value": values,
        "kafka_timestamp": kafka_time(part.timestamps[rows]),
        "quarantined_at": pa.array(np.full(n, int(now * 1e6))).cast(pa.timestamp("us", "UTC")),
        "schema_id": _schema_ids(values),
        "source_topic_id": _same(topic_id, n),
    }
    return pa.table(columns)


def _same(text: str | None, n: int) -> pa.Array:
    return pa.repeat(pa.scalar(text, pa.string()), n)


def _schema_ids(values: pa.BinaryArray) -> pa.Array:
    """The id in each value's header, null where it has none."""
    headers = pc.fill_null(pc.binary_slice(values, 0, 5), b"")
    ids = [int.from_bytes(h[1:], "big") if len(h) == 5 and h[0] == 0 else None for h in headers.to_pylist()]
    return pa.array([i if i is not None and i < 1 << 31 else None for i in ids], pa.int32())
