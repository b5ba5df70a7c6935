"""The schemas that a registry has for a topic's values."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from headrace.errors import ContractError, SchemaNotFoundError
from schemas.names import subject
from schemas.registry import Registry


def registered(registry: Registry, topic: str) -> Iterator[int]:
    """Ids of a topic's schemas, the newest first, each asked for when it is wanted. Blocks.

    None where the registry has no such subject. Versions that are not Avro, or refused, are left out: what records are
    bad by them is said of the records. Raises `UnavailableError`.
    """
    name = subject(topic, "value")
    numbers: Iterator[int | str] = chain(["latest"], _older(registry, name))
    for number in numbers:
        try:
            yield registry.version(name, number).id
        except (ContractError, SchemaNotFoundError):
            continue


def _older(registry: Registry, name: str) -> Iterator[int]:
    """Numbers of the versions before the newest, asked for once the first is wanted."""
    yield from reversed(registry.versions(name)[:-1])
