"""Tables that keep the newest row of each key of an ordinary topic, such as `gold.kpi_values`.

Newest is the highest `revision` where rows have one (what is not above the stored revision is a replay), else the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pyiceberg.catalog import Catalog

from headrace.errors import ContractError
from headrace.keyindex import hash_keys
from schemas.contracts import Contract
from sinks.iceberg.append import STAGE, undecodable
from sinks.iceberg.changes import fold, join, newest
from sinks.iceberg.keyed import KeyedTable, Merging
from sinks.iceberg.owned import Prepared
from sinks.iceberg.slices import Reject, Slice, with_coordinates

REVISION = "revision"


class UpsertTable(KeyedTable):
    """A topic's newest row by the contract's key. Raises `ContractError` for a contract without one."""

    def __init__(self, catalog: Catalog, name: str, topic: str, *, contract: Contract, **options: Any) -> None:
        if not contract.key:
            raise ContractError("mode upsert needs a key", where=f"{contract.path}: key")
        super().__init__(catalog, name, topic, contract=contract, **options)
        self.key = contract.key
        self.version = REVISION if contract.find(REVISION) is not None else None

    def prepare(self, slices: Sequence[Slice]) -> Prepared:
        rejects, parts = [], []
        for part in slices:
            rejects += undecodable(part)
            if len(part.nulls):
                reason = "a tombstone: rows of this table are replaced, never removed"
                rejects.append(Reject(part, part.nulls, STAGE, "tombstone", (reason,) * len(part.nulls)))
            parts.append((part, with_coordinates(part.batch, part, part.rows)))
        fitted = self._fit_slices(parts, STAGE)
        batches = [batch for batch in fitted.batches if batch.num_rows]
        keys = join([hash_keys([_column(batch, name) for name in self.key]) for batch in batches])
        if self.version is None:
            versions, folded = None, fold(keys, np.ones(len(keys), np.bool_))
        else:
            revisions = [_column(batch, self.version).to_numpy(zero_copy_only=False) for batch in batches]
            versions = np.concatenate([np.empty(0, np.int64), *revisions]).astype(np.int64)
            known = self._index.versions(keys) if self.table else np.full(len(keys), np.iinfo(np.int64).min)
            folded = newest(keys, versions, known)
        return Merging(
            fitted.slices,
            fitted.columns,
            take_rows(batches, folded.write),
            fitted.rejects + rejects,
            dropped=len(keys) - len(folded.write),
            keys=folded.keys,
            touched=folded.touched,
            versions=None if versions is None else versions[folded.write],
        )


def take_rows(batches: list[pa.RecordBatch], rows: Any) -> list[pa.RecordBatch]:
    """Rows of the batches, numbered through all of them, ascending."""
    starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
    bounds = np.searchsorted(rows, starts)
    return [
        batch.take(pa.array(rows[bounds[i] : bounds[i + 1]] - starts[i]))
        for i, batch in enumerate(batches)
        if bounds[i + 1] > bounds[i]
    ]


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    if name not in batch.schema.names:
        return pa.nulls(batch.num_rows, pa.string())
    return batch.column(name)
