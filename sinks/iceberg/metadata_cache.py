"""Transactions that compute their table metadata once per change instead of once per look.

pyiceberg 0.12 recomputes `Transaction.table_metadata` on every access, deep-copying all snapshots about 18 times a
commit: 84-150 ms at 100 snapshots. Metadata objects and the tuple of staged updates are replaced, never changed in
place, so their identities tell when the result is stale. Only transactions started here are affected.
"""

from __future__ import annotations

from pyiceberg.table import Table, Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.update import TableUpdate, update_table_metadata

WRITTEN_FOR = "0.12.0"


class CachedTransaction(Transaction):
    """A `Transaction` whose `table_metadata` is cached until an update is staged or the table is refreshed."""

    _cached: tuple[TableMetadata, tuple[TableUpdate, ...], TableMetadata] | None = None

    @property
    def table_metadata(self) -> TableMetadata:
        base, updates = self._table.metadata, self._updates
        if self._cached is None or self._cached[0] is not base or self._cached[1] is not updates:
            self._cached = (base, updates, update_table_metadata(base, updates) if updates else base)
        return self._cached[2]


def transaction(table: Table) -> CachedTransaction:
    """A transaction that commits nothing until `commit_transaction()` is called."""
    return CachedTransaction(table)
