"""An envelope as Debezium's Postgres connector and the Avro converter write it, with every semantic type in the row."""

from __future__ import annotations

from typing import Any


def _semantic(avro: str, name: str, **more: Any) -> dict[str, Any]:
    return {"type": avro, "connect.version": 1, "connect.name": name, **more}


DECIMAL = _semantic(
    "bytes",
    "org.apache.kafka.connect.data.Decimal",
    scale=2,
    precision=12,
    logicalType="decimal",
    **{"connect.parameters": {"scale": "2", "connect.decimal.precision": "12"}},
)
ROW: dict[str, Any] = {
    "type": "record",
    "name": "Value",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "day", "type": ["null", _semantic("int", "io.debezium.time.Date")], "default": None},
        {"name": "milli", "type": ["null", _semantic("long", "io.debezium.time.Timestamp")], "default": None},
        {"name": "micro", "type": ["null", _semantic("long", "io.debezium.time.MicroTimestamp")], "default": None},
        {"name": "nano", "type": ["null", _semantic("long", "io.debezium.time.NanoTimestamp")], "default": None},
        {"name": "zoned", "type": ["null", _semantic("string", "io.debezium.time.ZonedTimestamp")], "default": None},
        {"name": "clock", "type": ["null", _semantic("int", "io.debezium.time.Time")], "default": None},
        {"name": "clock_us", "type": ["null", _semantic("long", "io.debezium.time.MicroTime")], "default": None},
        {"name": "amount", "type": ["null", DECIMAL], "default": None},
        {"name": "huge", "type": ["null", {**DECIMAL, "precision": 64}], "default": None},
        {"name": "tag", "type": ["null", _semantic("string", "io.debezium.data.Uuid")], "default": None},
        {"name": "doc", "type": ["null", _semantic("string", "io.debezium.data.Json")], "default": None},
        {
            "name": "state",
            "type": _semantic("string", "io.debezium.data.Enum", **{"connect.parameters": {"allowed": "new,paid"}}),
        },
        {
            "name": "any",
            "type": [
                "null",
                {
                    "type": "record",
                    "name": "VariableScaleDecimal",
                    "namespace": "io.debezium.data",
                    "fields": [{"name": "scale", "type": "int"}, {"name": "value", "type": "bytes"}],
                    "connect.name": "io.debezium.data.VariableScaleDecimal",
                },
            ],
            "default": None,
        },
        {"name": "words", "type": ["null", {"type": "array", "items": ["null", "string"]}], "default": None},
    ],
    "connect.name": "shop.public.orders.Value",
}
ENVELOPE: dict[str, Any] = {
    "type": "record",
    "name": "Envelope",
    "namespace": "shop.public.orders",
    "fields": [
        {"name": "before", "type": ["null", ROW], "default": None},
        {"name": "after", "type": ["null", "Value"], "default": None},
        {
            "name": "source",
            "type": {
                "type": "record",
                "name": "Source",
                "namespace": "io.debezium.connector.postgresql",
                "fields": [
                    {"name": "snapshot", "type": [_semantic("string", "io.debezium.data.Enum"), "null"]},
                    {"name": "sequence", "type": ["null", "string"], "default": None},
                    {"name": "lsn", "type": ["null", "long"], "default": None},
                ],
            },
        },
        {"name": "op", "type": "string"},
        {"name": "ts_ms", "type": ["null", "long"], "default": None},
    ],
    "connect.name": "shop.public.orders.Envelope",
}


def row(**values: Any) -> dict[str, Any]:
    """A row with the given values, null elsewhere."""
    return {f["name"]: None for f in ROW["fields"]} | {"id": 1, "state": "new"} | values


def change(op: str, before: dict[str, Any] | None, after: dict[str, Any] | None) -> dict[str, Any]:
    source = {"snapshot": "false", "sequence": '["1","2"]', "lsn": 2}
    return {"before": before, "after": after, "source": source, "op": op, "ts_ms": 1}
