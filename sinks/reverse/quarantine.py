"""What a target refused, as rows of `ops.quarantine`.

A refusal is born in its sync, so its coordinates there are the sync and the number of the refusal; the reason names the
record that the change came from. The sync's own state keeps the refusal too, which is what a replay sends again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import orjson
import pyarrow as pa

from headrace.config import KafkaSettings
from schemas.registry import Registry
from schemas.types import UTC_MICROS
from sinks.refused import RefusedRows
from sinks.reverse.fold import Refusal


def quarantine_rows(sync: str, target: str, refusals: Sequence[tuple[str, Refusal]], now: float) -> pa.RecordBatch:
    """(key, refusal) pairs as rows, in the order of their numbers. `now` is in seconds since the epoch."""
    ordered = sorted(refusals, key=lambda pair: pair[1].number)
    n = len(ordered)
    columns: dict[str, Any] = {
        "stage": [f"sync:{sync}"] * n,
        "source_topic": [f"sync.{sync}"] * n,
        "source_partition": pa.array([0] * n, pa.int32()),
        "source_offset": pa.array([refusal.number for _, refusal in ordered], pa.int64()),
        "disposition": ["quarantined"] * n,
        "rule": [f"refused by {target}"] * n,
        "reason": [f"{refusal.response} ({refusal.op} from {refusal.at})" for _, refusal in ordered],
        "contract": pa.nulls(n, pa.string()),
        "key": pa.array([key.encode() for key, _ in ordered], pa.binary()),
        "value": pa.array([orjson.dumps(refusal.row) for _, refusal in ordered], pa.binary()),
        "kafka_timestamp": pa.array([refusal.timestamp * 1000 for _, refusal in ordered], pa.int64()).cast(UTC_MICROS),
        "quarantined_at": pa.array([int(now * 1e6)] * n, pa.int64()).cast(UTC_MICROS),
        "schema_id": pa.nulls(n, pa.int32()),
        "source_topic_id": pa.nulls(n, pa.string()),
    }
    return pa.RecordBatch.from_pydict(columns)


class RefusalLog:
    """Writes refusals of one sync."""

    def __init__(self, sync: str, target: str, kafka: KafkaSettings, registry: Registry) -> None:
        self._sync, self._target = sync, target
        self._rows = RefusedRows(kafka, registry)

    async def send(self, refusals: Sequence[tuple[str, Refusal]]) -> None:
        """Return when the broker has them; after an error, all are to be sent again.

        Raises `UnavailableError` and aiokafka's errors.
        """
        await self._rows.send([(0, quarantine_rows(self._sync, self._target, refusals, time.time()))])

    async def close(self) -> None:
        await self._rows.close()
