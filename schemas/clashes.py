"""What contracts that are right alone cannot have in common. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from schemas.contracts import Contract, Problem


def clashes(contracts: Sequence[Contract]) -> Iterator[Problem]:
    """Topics, names and tables that two contracts claim, and sources that are no topic."""
    uses: list[tuple[str, Callable[[Contract], str]]] = [
        ("topic", lambda c: c.topic),
        ("name", lambda c: c.name),
        ("storage.table", lambda c: c.storage.table if c.storage else ""),
    ]
    for at, of in uses:
        first: dict[str, Contract] = {}
        for contract in contracts:
            other = first.setdefault(of(contract), contract)
            if other is not contract and of(contract):
                yield Problem(str(contract.path), at, f"{of(contract)} is already that of {other.path}")
    tables = {c.storage.table: c for c in contracts if c.storage and c.storage.table}
    for contract in contracts:
        if contract.storage is None or not (history := contract.storage.history):
            continue
        if tables.setdefault(history, contract) is not contract or history == contract.storage.table:
            where = f"{history} is already a table of {tables[history].path}"
            yield Problem(str(contract.path), "storage.history", where)
    topics = {c.name: c.topic for c in contracts}
    for contract in contracts:
        for topic in contract.derived_from:
            if topic in topics and topic not in topics.values():
                yield Problem(
                    str(contract.path), "derived_from", f"{topic} is a contract, not a topic", f"write {topics[topic]}"
                )
