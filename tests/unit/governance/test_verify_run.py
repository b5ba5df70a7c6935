"""A verification must not pass for want of something to compare, nor fail for want of something to publish."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog

from governance.verify.avro import Schemas
from governance.verify.kafka import KafkaReader
from governance.verify.kpis import check_kpis
from governance.verify.lake import Lake
from governance.verify.run import Verification
from headrace.config import LakeSettings, Settings
from headrace.errors import TerminalError
from schemas.contracts import load_contracts
from schemas.kpis import Kpi

ROWS = pa.schema(
    [
        ("n", pa.int64()),
        ("_kafka_partition", pa.int32()),
        ("_offset", pa.int64()),
        ("_timestamp", pa.timestamp("us", "UTC")),
    ]
)
KPI = Kpi(name="large", title="Large", source="things", filter="n > 10", measure="count")


class Kafka:
    """A cluster with these topics and no record to read."""

    def __init__(self, *topics: str) -> None:
        self._topics = dict.fromkeys(topics, 1)

    def topics(self) -> dict[str, int]:
        return self._topics

    def bounds(self, *_: Any) -> tuple[int, int]:
        return 0, 3


def lake_settings(folder: Path) -> LakeSettings:
    return LakeSettings(uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/lake")


@pytest.mark.parametrize("only", [(), ("nonesuch",)])
def test_nothing_compared_is_nothing_proved(tmp_path: Path, only: tuple[str, ...]) -> None:
    verification = Verification(Settings(home=tmp_path, content=[tmp_path], lake=lake_settings(tmp_path)))
    verification.kafka = cast(KafkaReader, Kafka())
    with pytest.raises(TerminalError, match="no flow"):
        verification.run(only)


@pytest.mark.parametrize(("largest", "offences"), [(10, 0), (11, 1)])
def test_a_kpi_without_a_value_is_wrong_only_when_rows_count(tmp_path: Path, largest: int, offences: int) -> None:
    settings = lake_settings(tmp_path)
    catalog = SqlCatalog(settings.catalog, uri=settings.uri, warehouse=settings.warehouse)
    catalog.create_namespace("bronze")
    rows = [{"n": n, "_kafka_partition": 0, "_offset": n, "_timestamp": 0} for n in (1, 2, largest)]
    table = catalog.create_table("bronze.things", ROWS, properties={"headrace.offset.things.0": "100"})
    table.append(pa.Table.from_pylist(rows, schema=ROWS))
    kafka, schemas = cast(KafkaReader, Kafka("things")), cast(Schemas, None)
    (check,) = check_kpis([KPI], kafka, schemas, Lake(settings), load_contracts([]), patience=0.0)
    assert check.total_offences == offences
