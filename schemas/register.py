"""Contracts in the schema registry: what Headrace or a producer writes is registered whole, attributes and all.

Contracts of change events are not: they describe the row, and Debezium registers the envelope that it writes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from headrace.errors import ContractError, SchemaNotFoundError
from schemas.avro import canonical
from schemas.contracts import Contract
from schemas.names import subject
from schemas.registry import Registry, Version

COMPATIBILITY = "BACKWARD"


@dataclass(frozen=True)
class Registration:
    """What registering did, or would do: `id` and `version` are None where that is not known yet."""

    contract: str
    subject: str
    change: Literal["new", "new version", "unchanged"]
    id: int | None
    version: int | None


def registered(contracts: Iterable[Contract]) -> list[Contract]:
    """Those that Headrace registers."""
    return [c for c in contracts if not c.is_cdc]


def current_version(registry: Registry, contract: Contract) -> Version | None:
    """The registry's newest version if it is this contract, else None."""
    try:
        latest = registry.latest(subject(contract.topic, "value"))
    except SchemaNotFoundError:
        return None
    return latest if canonical(latest.schema) == canonical(contract.avro) else None


def register_contracts(
    registry: Registry, contracts: Iterable[Contract], *, dry_run: bool = False
) -> list[Registration]:
    """Register each contract under its topic's value subject, whose compatibility becomes BACKWARD.

    All are compared with the registry before the first is written. Raises `ContractError` naming the subject when the
    registry calls one incompatible, `UnavailableError` when it cannot be reached.
    """
    plans = [(contract, _plan(registry, contract)) for contract in registered(contracts)]
    return [plan if dry_run or plan.change == "unchanged" else _do(registry, c, plan) for c, plan in plans]


def _plan(registry: Registry, contract: Contract) -> Registration:
    name = subject(contract.topic, "value")
    same = current_version(registry, contract)
    if same is not None:
        return Registration(contract.name, name, "unchanged", same.id, same.version)
    if not registry.versions(name):
        return Registration(contract.name, name, "new", None, None)
    if not registry.compatible(name, contract.avro):
        raise ContractError(
            "the registry calls it incompatible with its latest version",
            where=f"{contract.path}: {name}",
            hint="see `headrace contract check`",
        )
    return Registration(contract.name, name, "new version", None, None)


def _do(registry: Registry, contract: Contract, plan: Registration) -> Registration:
    registry.register(plan.subject, contract.avro)
    registry.set_compatibility(plan.subject, COMPATIBILITY)
    made = registry.latest(plan.subject)
    return Registration(plan.contract, plan.subject, plan.change, made.id, made.version)
