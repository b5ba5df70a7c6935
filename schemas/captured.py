"""Which topics hold the change events of captured tables: every process that reads a topic takes it for the same."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from headrace.errors import ConfigError
from schemas.contracts import ContractSet, load_contracts
from schemas.names import prefix_of

CONNECTORS = Path("connectors") / "debezium"


@dataclass(frozen=True)
class Captured:
    """Contains the topics of the tables that connectors with these `topic.prefix`es capture, and those whose contract
    describes the rows of a table. Heartbeats, transactions, schema changes and signals are none."""

    contracts: ContractSet
    prefixes: Collection[str] = ()

    @classmethod
    def load(cls, folders: Collection[Path]) -> Self:
        """As content folders say. Raises `ContractError` and `ConfigError` for files that cannot be read."""
        return cls(load_contracts(folders), change_prefixes(folders))

    def __contains__(self, topic: object) -> bool:
        if not isinstance(topic, str):
            return False
        contract = self.contracts.by_topic.get(topic)
        return (contract is not None and contract.is_cdc) or prefix_of(topic, self.prefixes) is not None


def change_prefixes(folders: Iterable[Path]) -> set[str]:
    """`topic.prefix` of every connector file. Raises `ConfigError` for a file that is none."""
    found = set()
    for path in (p for folder in folders for p in sorted((folder / CONNECTORS).glob("*.json"))):
        try:
            data = json.loads(path.read_text())
            prefix = data.get("config", data).get("topic.prefix")
        except (OSError, ValueError, AttributeError) as e:
            raise ConfigError(f"cannot be read as a connector: {e}", where=str(path)) from e
        if prefix:
            found.add(str(prefix))
    return found
