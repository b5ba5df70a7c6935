"""Which topics land in which tables. A change topic needs only its connector file; other topics need a contract."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from headrace.errors import ConfigError
from schemas.captured import Captured
from schemas.contracts import Contract, ContractSet
from schemas.names import table_name

Kind = Literal["bronze", "derived", "upsert", "current", "history"]


@dataclass(frozen=True)
class Landing:
    """One table that a topic lands in. `partitioned` says that the contract's partition spec is this table's.

    `of` is the table whose history this one is.
    """

    table: str
    kind: Kind
    contract: Contract | None = None
    partitioned: bool = False
    of: str = ""


def plan(
    topics: Iterable[str], contracts: ContractSet, prefixes: Collection[str], exclude: Sequence[str] = ()
) -> dict[str, tuple[Landing, ...]]:
    """The tables of every topic that is landed, by topic; the first one answers for what does not decode.

    Several may land in one table: see `shared`. Raises `ConfigError` when a pattern of `exclude` is no regular
    expression, or a table is its own history.
    """
    try:
        excluded = [re.compile(pattern) for pattern in exclude]
    except re.error as e:
        raise ConfigError(f"is not a regular expression: {e}", where="sink.exclude") from e
    captured = Captured(contracts, prefixes)
    found: dict[str, tuple[Landing, ...]] = {}
    for topic in sorted(topics):
        if any(pattern.fullmatch(topic) for pattern in excluded):
            continue
        landings = _landings(topic, contracts.by_topic.get(topic), captured=topic in captured)
        if len({landing.table for landing in landings}) < len(landings):
            raise ConfigError("is the table of its own history too", where=landings[-1].table, hint="storage.history")
        if landings:
            found[topic] = landings
    return found


def shared(planned: Mapping[str, Sequence[Landing]]) -> dict[str, list[str]]:
    """Tables that several topics would land in, with those topics in their order. One of them may."""
    topics: dict[str, list[str]] = defaultdict(list)
    for topic in sorted(planned):
        for landing in planned[topic]:
            topics[landing.table].append(topic)
    return {table: names for table, names in topics.items() if len(names) > 1}


def clash(table: str, holder: str, topic: str) -> ConfigError:
    """Why a topic does not land in a table that another one has."""
    return ConfigError(
        f"topics {holder} and {topic} would both land in it; {holder} does",
        where=table,
        hint="name another table in a contract, or exclude one topic (sink.exclude)",
    )


def _landings(topic: str, contract: Contract | None, *, captured: bool) -> tuple[Landing, ...]:
    storage = contract.storage if contract else None
    bronze = table_name("bronze", topic)
    if captured:
        current = (storage and storage.table) or table_name("silver", topic)
        tables = Landing(bronze, "bronze", contract), Landing(current, "current", contract, partitioned=True)
        if storage is None or not storage.history:
            return tables
        return (*tables, Landing(storage.history, "history", contract, partitioned=True, of=current))
    if contract is None:
        return ()
    if contract.is_source:
        return (Landing(bronze, "bronze", contract, partitioned=True),)
    if storage is None:
        return ()
    return (Landing(storage.table, "upsert" if storage.mode == "upsert" else "derived", contract, partitioned=True),)
