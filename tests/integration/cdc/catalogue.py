"""What a column type of a database becomes on its way to a table, said once for the test and the documentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
class Exception_:
    """What Debezium does not carry: the type or value, what arrives in its place, what to do."""

    what: str
    arrives: str
    instead: str


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
    exceptions: tuple[Exception_, ...]

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
