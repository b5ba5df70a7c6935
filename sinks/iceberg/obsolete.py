"""Live rows that a baseline removes: those of a partition whose newest event is older (schemas/baseline.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from headrace.keyindex import Keys, hash_keys
from sinks.iceberg.changes import join
from sinks.iceberg.filerows import column_batches, deleted_positions
from sinks.iceberg.keyed import KeyedTable
from sinks.iceberg.locations import locate

Int64 = npt.NDArray[np.int64]


def obsolete_keys(table: KeyedTable, baselines: Mapping[int, int]) -> Keys:
    """Keys of the committed rows of each partition that are from before its baseline. Raises `OSError`.

    Reads the coordinates of every live file, and the keys of those that hold such rows: the cost is the table's.
    """
    found = []
    for number in table.files:
        old = np.flatnonzero(_old(table.read(number, "_kafka_partition"), table.read(number, "_offset"), baselines))
        if len(old):
            keys = hash_keys([table.read(number, name).take(pa.array(old)) for name in table.key])
            found.append(keys.take(np.flatnonzero(table.live_locations(keys) == locate(number, old))))
    return join(found)


def obsolete_positions(table: Table, baselines: Mapping[int, int]) -> Iterator[tuple[DataFile, Int64]]:
    """The same for a table without a key: positions, file by file, of rows that no delete file removes yet."""
    for task in table.scan().plan_files():
        names = ["_kafka_partition", "_offset"]
        columns = pa.concat_tables(column_batches(table.io, task.file, table.schema(), names))
        old = _old(columns.column("_kafka_partition"), columns.column("_offset"), baselines)
        old[deleted_positions(table.io, task)] = False
        if old.any():
            yield task.file, np.flatnonzero(old)


def _old(partitions: pa.ChunkedArray, offsets: pa.ChunkedArray, baselines: Mapping[int, int]) -> npt.NDArray[np.bool_]:
    mine, at = partitions.to_numpy(), offsets.to_numpy()
    old: npt.NDArray[np.bool_] = np.zeros(len(at), np.bool_)
    for partition, offset in baselines.items():
        old |= (mine == partition) & (at < offset)
    return old
