"""Schemas that are a topic's own: one of another table would lend its columns to a record that names it by mistake."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from headrace.errors import ContractError
from schemas.envelope import is_envelope
from schemas.names import is_schema_of

SchemaOf = Callable[[int], dict[str, Any]]


def full_name(schema: Mapping[str, Any], inherited: str = "") -> str:
    """An Avro schema's name with its namespace, or that of the schema which it is in; empty for one without a name."""
    name, space = str(schema.get("name", "")), schema.get("namespace", inherited)
    return f"{space}.{name}" if space and "." not in name else name


def own_schemas(topic: str, schema_of: SchemaOf, *, captured: bool = False) -> SchemaOf:
    """Schemas of a topic's values by id, as `schema_of` gives them, but for those of change events of another topic.

    Where the topic is known to be a `captured` table's, only those of its own change events are given, whose fields
    have the types that Debezium gives them. What is not raises `ContractError`, which a `ChunkDecoder` says of each
    record; other errors are those of `schema_of`.
    """
    seen: dict[int, dict[str, Any]] = {}

    def own(schema_id: int) -> dict[str, Any]:
        schema = schema_of(schema_id)
        if seen.get(schema_id) is not schema:
            if (captured or is_envelope(schema)) and not is_schema_of(topic, name := full_name(schema)):
                raise ContractError(f"{name or 'it has no name'} is not of this topic", where=topic)
            if captured and (flaw := flaw_of(schema)):
                raise ContractError(f"{full_name(schema)} is not the schema of change events: {flaw}", where=topic)
            seen[schema_id] = schema
        return schema

    return own


def flaw_of(schema: Mapping[str, Any]) -> str:
    """The first field that is not as Debezium has it in change events, whatever it is of; empty when all are."""
    fields = _types(schema)
    if lacking := {"before", "after", "source", "op"} - fields.keys():
        return f"it has no {min(lacking)}"
    before, after = _only(fields["before"]), _only(fields["after"])
    if not _is_record(before):
        return "before is no record"
    space = full_name(schema).rpartition(".")[0]
    row = before["name"], full_name(before, space)
    if after != before and not _is_record(after) and after not in row and f"{space}.{after}" not in row:
        return "after is not the record that before is"
    for name in ("source", "transaction"):
        if name in fields and not _is_record(_only(fields[name])):
            return f"{name} is no record"
    parts = {"": fields, **{f"{name}.": _types(_only(fields.get(name))) for name in ("source", "transaction")}}
    for path, kinds in KINDS.items():
        prefix, dot, name = path.rpartition(".")
        avro = parts[prefix + dot].get(name)
        if avro is not None and _primitive(avro) not in kinds:
            return f"{path} is {_primitive(avro)}"
    return ""


_TEXT, _NUMBER = ("string", "enum"), ("int", "long")
KINDS = {
    "op": _TEXT,
    **dict.fromkeys(("ts_ms", "ts_us", "ts_ns"), _NUMBER),
    **{f"source.{name}": _TEXT for name in ("snapshot", "db", "schema", "table", "sequence", "file", "gtid")},
    **{f"source.{name}": _NUMBER for name in ("ts_ms", "ts_us", "ts_ns", "txId", "lsn", "pos", "row")},
    "transaction.id": _TEXT,
    "transaction.total_order": _NUMBER,
}


def _types(record: Any) -> dict[str, Any]:
    return {field["name"]: field["type"] for field in record.get("fields", ())} if _is_record(record) else {}


def _is_record(avro: Any) -> bool:
    return isinstance(avro, Mapping) and avro.get("type") == "record"


def _only(avro: Any) -> Any:
    """A type without null beside it; that of several others is none."""
    if isinstance(avro, list):
        others = [branch for branch in avro if branch != "null"]
        return others[0] if len(others) == 1 else None
    return avro


def _primitive(avro: Any) -> str:
    kind = _only(avro)
    while isinstance(kind, Mapping):
        kind = _only(kind["type"])
    return str(kind)
