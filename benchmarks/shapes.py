"""The Avro schemas of the benchmarks' topics, which are also contracts once they are told their topic."""

from __future__ import annotations

from typing import Any

READING: dict[str, Any] = {
    "type": "record",
    "name": "Reading",
    "namespace": "bench",
    "doc": "One reading.",
    "owner": "benchmarks",
    "key": ["device_id"],
    "event_time": "measured_at",
    "freshness": "1s",
    "fields": [
        {"name": "device_id", "type": "string"},
        {"name": "measured_at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "temperature", "type": ["null", "double"], "default": None, "rules": ["between -60 90"]},
        {"name": "humidity", "type": ["null", "double"], "default": None, "rules": ["between 0 100"]},
        {"name": "battery", "type": ["null", "float"], "default": None},
        {"name": "firmware", "type": "string"},
        {"name": "lat", "type": "double"},
        {"name": "lon", "type": "double"},
        {"name": "status", "type": {"type": "enum", "name": "Status", "symbols": ["OK", "WARN", "ERROR", "OFFLINE"]}},
    ],
}
# What a reading gets from its device.
ENRICHED: list[dict[str, Any]] = [
    {"name": "customer_id", "type": ["null", "long"], "default": None},
    {"name": "site", "type": ["null", "string"], "default": None},
    {"name": "min_temperature", "type": ["null", "double"], "default": None},
    {"name": "max_temperature", "type": ["null", "double"], "default": None},
]
CLEAN: dict[str, Any] = {
    **READING,
    "name": "CleanReading",
    "fields": [
        *({k: v for k, v in field.items() if k != "rules"} for field in READING["fields"][:-1]),
        {"name": "status", "type": "string"},
        *ENRICHED,
        {"name": "source_offset", "type": "long"},
    ],
}
ORDER: dict[str, Any] = {
    "type": "record",
    "name": "Value",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "customer_id", "type": "long"},
        {"name": "status", "type": "string"},
        {"name": "amount", "type": {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}},
        {"name": "updated_at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    ],
}
DEVICE: dict[str, Any] = {
    "type": "record",
    "name": "Value",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "customer_id", "type": "long"},
        {"name": "site", "type": "string"},
        {"name": "model", "type": "string"},
        {"name": "min_temperature", "type": "double"},
        {"name": "max_temperature", "type": "double"},
    ],
}


def envelope(table: str, row: dict[str, Any]) -> dict[str, Any]:
    """The schema of change events of a table whose rows are `row`."""
    return {
        "type": "record",
        "name": "Envelope",
        "namespace": f"bench.public.{table}",
        "fields": [
            {"name": "before", "type": ["null", row], "default": None},
            {"name": "after", "type": ["null", "Value"], "default": None},
            {
                "name": "source",
                "type": {
                    "type": "record",
                    "name": "Source",
                    "namespace": "io.debezium.connector.postgresql",
                    "fields": [
                        {"name": "version", "type": "string"},
                        {"name": "connector", "type": "string"},
                        {"name": "name", "type": "string"},
                        {"name": "ts_ms", "type": "long"},
                        {"name": "snapshot", "type": ["null", "string"], "default": None},
                        {"name": "db", "type": "string"},
                        {"name": "sequence", "type": ["null", "string"], "default": None},
                        {"name": "schema", "type": "string"},
                        {"name": "table", "type": "string"},
                        {"name": "txId", "type": ["null", "long"], "default": None},
                        {"name": "lsn", "type": ["null", "long"], "default": None},
                    ],
                },
            },
            {
                "name": "transaction",
                "type": [
                    "null",
                    {
                        "type": "record",
                        "name": "block",
                        "namespace": "event",
                        "fields": [
                            {"name": "id", "type": "string"},
                            {"name": "total_order", "type": "long"},
                            {"name": "data_collection_order", "type": "long"},
                        ],
                    },
                ],
                "default": None,
            },
            {"name": "op", "type": "string"},
            {"name": "ts_ms", "type": ["null", "long"], "default": None},
        ],
    }


def key(table: str, kind: str, name: str = "id") -> dict[str, Any]:
    """The schema of their keys: one column, of an Avro type."""
    fields = [{"name": name, "type": kind}]
    return {"type": "record", "name": "Key", "namespace": f"bench.public.{table}", "fields": fields}
