"""What a column type of a database becomes on its way to a table, said once for the test and the documentation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from pyiceberg.table import Table

from connectors.limits import Limit
from headrace.config import Settings
from schemas.envelope import row_schema
from schemas.types import arrow_schema


@dataclass(frozen=True)
class Type:
    """A column type as declared, values of it as SQL (extremes first), and the forms it takes.

    `semantic` is the Avro type with the last part of its Connect name, as `semantic_of` says it. `read` is SQL over the
    column `{}` that gives a SQL client the value in the table's form; `reader` says the same in words, with all that is
    lost.
    """

    declared: str
    samples: tuple[str, ...]
    semantic: str
    arrow: str
    iceberg: str
    reader: str = "the same"
    read: str = "{}"


@dataclass(frozen=True)
class Group:
    title: str
    types: tuple[Type, ...]


@dataclass(frozen=True)
class Setting:
    """A setting of the connector that the catalogue holds for, and what is lost without it."""

    name: str
    value: str
    why: str


@dataclass(frozen=True)
class Engine:
    name: str
    introduction: str
    settings: tuple[Setting, ...]
    groups: tuple[Group, ...]
    limits: tuple[Limit, ...]

    @property
    def types(self) -> tuple[Type, ...]:
        return tuple(type_ for group in self.groups for type_ in group.types)


def semantic_of(avro: Any, named: Mapping[str, Any]) -> str:
    """A field's Avro type in one line: `long MicroTimestamp`, `array of string`, null left out."""
    if isinstance(avro, list):
        (avro,) = (branch for branch in avro if branch != "null")
    if isinstance(avro, str):
        avro = named.get(avro, {"type": avro})
    short = str(avro.get("connect.name", "")).rpartition(".")[2]
    if avro["type"] == "array":
        return f"{short or 'array'} of {semantic_of(avro['items'], named)}"
    return f"{avro['type']} {short}".strip()


def found_types(settings: Settings, topic: str, table: Table) -> dict[str, tuple[str, str, str]]:
    """(semantic, Arrow, Iceberg) type of each column: by the writer's newest schema, its columns, and the table."""
    url = f"{settings.registry.url}/subjects/{topic}-value/versions/latest"
    row = row_schema(json.loads(httpx.get(url).json()["schema"]))
    named: dict[str, Any] = {}
    for field in row["fields"]:
        _learn(field["type"], named)
    arrows = {field.name: str(field.type) for field in arrow_schema(row)}
    icebergs = {field.name: _iceberg(field.field_type) for field in table.schema().fields}
    return {
        field["name"]: (semantic_of(field["type"], named), arrows[field["name"]], icebergs[field["name"]])
        for field in row["fields"]
    }


def _learn(avro: Any, named: dict[str, Any]) -> None:
    for branch in avro if isinstance(avro, list) else [avro]:
        if isinstance(branch, dict):
            if branch["type"] == "record":
                named[f"{branch.get('namespace', '')}.{branch['name']}"] = branch
            _learn(branch.get("items", []), named)


def _iceberg(kind: Any) -> str:
    """An Iceberg type in Iceberg's own words, without field ids."""
    if kind.is_struct:
        return f"struct<{', '.join(f'{field.name}: {_iceberg(field.field_type)}' for field in kind.fields)}>"
    return f"list<{_iceberg(kind.element_type)}>" if hasattr(kind, "element_type") else str(kind)
