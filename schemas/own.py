"""Schemas that are a topic's own: one of another table would lend its columns to a record that names it by mistake."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from headrace.errors import ContractError
from schemas.envelope import is_envelope
from schemas.names import is_schema_of

SchemaOf = Callable[[int], dict[str, Any]]


def full_name(schema: Mapping[str, Any]) -> str:
    """An Avro schema's name with its namespace; empty for one without a name."""
    name, space = str(schema.get("name", "")), schema.get("namespace")
    return f"{space}.{name}" if space and "." not in name else name


def own_schemas(topic: str, schema_of: SchemaOf, *, captured: bool = False) -> SchemaOf:
    """Schemas of a topic's values by id, as `schema_of` gives them, but for those of change events of another topic.

    Where the topic is known to be a `captured` table's, only those of its own change events are given. What is not
    raises `ContractError`, which a `ChunkDecoder` says of each record; other errors are those of `schema_of`.
    """

    def own(schema_id: int) -> dict[str, Any]:
        schema = schema_of(schema_id)
        if (captured or is_envelope(schema)) and not is_schema_of(topic, name := full_name(schema)):
            raise ContractError(f"{name or 'it has no name'} is not of this topic", where=topic)
        return schema

    return own
