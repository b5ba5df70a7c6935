"""Transactions that compute their table metadata once per change instead of once per look.

pyiceberg 0.12 recomputes `Transaction.table_metadata` on every access, deep-copying all snapshots about 18 times a
commit: 84-150 ms at 100 snapshots. Metadata objects and the tuple of staged updates are replaced, never changed in
place, so their identities tell when the result is stale, and no copy is needed. Only transactions started here are
affected; the catalog applies the same updates by the library's own function, with all of its checks.
"""

from __future__ import annotations

from pyiceberg.table import Table, Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.update import TableUpdate, _apply_table_update, _TableMetadataUpdateContext

WRITTEN_FOR = "0.12.0"


class CachedTransaction(Transaction):
    """A `Transaction` whose `table_metadata` is cached until an update is staged or the table is refreshed."""

    _cached: tuple[TableMetadata, tuple[TableUpdate, ...], TableMetadata] | None = None

    @property
    def table_metadata(self) -> TableMetadata:
        base, updates = self._table.metadata, self._updates
        if self._cached is None or self._cached[0] is not base or self._cached[1] is not updates:
            self._cached = (base, updates, _applied(base, updates))
        return self._cached[2]


def _applied(metadata: TableMetadata, updates: tuple[TableUpdate, ...]) -> TableMetadata:
    context = _TableMetadataUpdateContext()
    for update in updates:
        metadata = _apply_table_update(update, metadata, context)
    return metadata


def transaction(table: Table) -> CachedTransaction:
    """A transaction that commits nothing until `commit_transaction()` is called."""
    return CachedTransaction(table)
