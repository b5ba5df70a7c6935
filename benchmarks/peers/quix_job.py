"""Kafka to Iceberg with Quix Streams: its Avro deserializer, its dataframe, its Iceberg sink."""

from __future__ import annotations

import json
import sys
from typing import Any

from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC
from pyiceberg.schema import Schema
from pyiceberg.types import DoubleType, FloatType, IcebergType, NestedField, StringType, TimestampType, TimestamptzType
from quixstreams import Application
from quixstreams.models import SchemaRegistryClientConfig
from quixstreams.models.serializers.avro import AvroDeserializer
from quixstreams.sinks.community import iceberg

COLUMNS: dict[str, IcebergType] = {
    "_timestamp": TimestampType(),
    "_key": StringType(),
    "device_id": StringType(),
    "measured_at": TimestamptzType(),
    "temperature": DoubleType(),
    "humidity": DoubleType(),
    "battery": FloatType(),
    "firmware": StringType(),
    "lat": DoubleType(),
    "lon": DoubleType(),
    "status": StringType(),
}


class Sink(iceberg.IcebergSink):  # type: ignore[misc]  # Quix is in an environment of its own
    def add(self, *arguments: Any, **named: Any) -> None:
        # A batch of records without keys makes a column without a type, which Iceberg refuses.
        named["key"] = named.get("key") or ""
        super().add(*arguments, **named)


def main() -> None:
    asked = json.loads(sys.argv[1])
    name, uri, warehouse = "bench.readings", asked["uri"], asked["warehouse"]
    catalog = SqlCatalog("bench", uri=uri, warehouse=warehouse)
    catalog.create_namespace_if_not_exists("bench")
    # The sink's only catalog is Glue.
    iceberg._import_data_catalog = lambda _: lambda *_, **__: catalog
    fields = [NestedField(i, column, kind, required=False) for i, (column, kind) in enumerate(COLUMNS.items(), 1)]
    sink = Sink(
        name,
        iceberg.AWSIcebergConfig(aws_s3_uri=f"{warehouse}/bench/readings"),
        "aws_glue",
        schema=Schema(*fields),
        partition_spec=UNPARTITIONED_PARTITION_SPEC,
    )
    app = Application(
        asked["bootstrap"],
        consumer_group=asked["group"],
        auto_offset_reset="earliest",
        commit_interval=asked["seconds"],
        state_dir=f"{asked['folder']}/state",
        loglevel="WARNING",
    )
    registry = SchemaRegistryClientConfig(url=asked["registry"])
    topic = app.topic(asked["topic"], value_deserializer=AvroDeserializer(schema_registry_client_config=registry))
    app.dataframe(topic).sink(sink)
    app.run()


if __name__ == "__main__":
    main()
