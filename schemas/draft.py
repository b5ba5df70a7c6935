"""A contract's first version from what a topic shows: its registered schema and some of its records.

Shape, key and what may be null are known and taken over. Meaning is not: what the records suggest is written to
`suggestions`, which `check` reports until a person has decided, and what only a person knows is marked to be filled in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa

from schemas.check import PLACEHOLDER
from schemas.envelope import is_envelope, row_schema
from schemas.names import table_name
from schemas.types import arrow_schema, avro_schema

_EVENT_TIMES = (
    *("event_time", "measured_at", "occurred_at", "updated_at", "modified_at", "timestamp", "ts", "time", "created_at"),
)
_PERSONAL = {
    "email": r"e?mail",
    "phone": r"phone|mobile|fax",
    "name": r"(?:^|first_?|last_?|full_?|sur|family_?|given_?|customer_?|user_?)name$",
    "address": r"address|street|postcode|zip_?code|postal",
    "id": r"passport|ssn|national_?id|tax_?id|iban",
    "ip": r"^ip$|ip_?addr|remote_?addr",
    "location": r"latitude|longitude|^(?:lat|lon|lng)$",
    "birth": r"birth|^dob$",
}
_CHOICES = 8
_PER_CHOICE = 5
_ENOUGH = 20


def draft_contract(
    topic: str,
    owner: str,
    value_schema: Mapping[str, Any],
    key_schema: Mapping[str, Any] | None = None,
    records: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The draft as an Avro schema. `records` are decoded values, events or rows as the topic has them.

    Raises `ContractError` when the schema has no columns.
    """
    cdc = is_envelope(value_schema)
    row = row_schema(value_schema) if cdc else value_schema
    rows = [r for r in (_row(record) for record in records) if r is not None] if cdc else list(records)
    schema = arrow_schema(dict(row))
    name = "".join(part.capitalize() for part in re.split(r"[^A-Za-z0-9]+", topic.rpartition(".")[2]) if part)
    name = name if name[:1].isalpha() else f"Record{name}"
    avro = avro_schema(schema, name)
    key = [f["name"] for f in (key_schema or {}).get("fields", []) if f["name"] in schema.names]
    out: dict[str, Any] = {
        "type": "record",
        "name": name,
        "namespace": re.sub(r"[^A-Za-z0-9_]", "_", topic.partition(".")[0]),
        "doc": f"{PLACEHOLDER}: what one record is.",
        "owner": owner,
        "topic": topic,
        "key": key,
    }
    event_time = _event_time(schema)
    if event_time:
        out["event_time"] = event_time
    out["freshness"] = "5s"
    if cdc:
        out["envelope"] = "debezium"
        out["storage"] = {"table": table_name("silver", topic), "mode": "current" if key else "append"}
    out["fields"] = [_field(f, schema.field(f["name"]).type, rows, key) for f in avro["fields"]]
    return out


def file_name(name: str) -> str:
    """`OrderLines` -> `order_lines.avsc`."""
    return f"{re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', name).lower()}.avsc"


def contract_text(schema: Mapping[str, Any]) -> str:
    """A contract as a file: one attribute and one field a line."""
    lines = [f" {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}," for k, v in schema.items() if k != "fields"]
    fields = ",\n".join(f"  {json.dumps(f, ensure_ascii=False)}" for f in schema["fields"])
    return "\n".join(["{", *lines, ' "fields": [', fields, " ]", "}"]) + "\n"


def _row(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return record.get("after") or record.get("before")


def _event_time(schema: pa.Schema) -> str | None:
    times = [f.name for f in schema if pa.types.is_timestamp(f.type) and f.type.tz is not None]
    return next((name for name in _EVENT_TIMES if name in times), times[0] if times else None)


def _field(
    field: dict[str, Any], kind: pa.DataType, rows: Sequence[Mapping[str, Any]], key: list[str]
) -> dict[str, Any]:
    name = field["name"]
    seen = [row[name] for row in rows if row.get(name) is not None]
    personal = next((what for what, words in _PERSONAL.items() if re.search(words, name, re.IGNORECASE)), None)
    suggestions = [f"pii {personal}"] if personal else [] if name in key else _rules(kind, seen)
    if personal and len(key) == 1 and name not in key:
        suggestions.append(f"subject {key[0]}")
    return field | ({"suggestions": suggestions} if suggestions else {})


def _rules(kind: pa.DataType, seen: Sequence[Any]) -> list[str]:
    """Rules that all records seen keep. They say nothing of the records to come."""
    if len(seen) < _ENOUGH:
        return []
    if pa.types.is_string(kind) and all(isinstance(v, str) for v in seen):
        choices = sorted(set(seen))
        few = len(choices) <= _CHOICES and len(seen) >= _PER_CHOICE * len(choices)
        if few and all(re.fullmatch(r"[\w.-]{1,40}", c) for c in choices):
            return [f"one_of [{', '.join(choices)}]"]
        return ["not_empty"] if all(v.strip() for v in seen) else []
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if number and all(isinstance(v, int | float | Decimal) for v in seen):
        finite = [v for v in seen if v == v and abs(v) != float("inf")]
        return [f"between {min(finite)} {max(finite)}"] if finite else []
    return []
