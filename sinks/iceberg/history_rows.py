"""The changes of a batch on their way to a history: filled up, compared with what was, given their times. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.keyindex import Keys
from schemas import envelope
from sinks.iceberg.applicable import mask_of
from sinks.iceberg.changes import join
from sinks.iceberg.current import Changes
from sinks.iceberg.places import COLUMNS
from sinks.iceberg.shape import fit_rows
from sinks.iceberg.slices import COORDINATES
from sinks.iceberg.versions import NEVER, NONE, Sequence, sequence

Mask = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]

FROM, TO, OP = "valid_from", "valid_to", "_op"
TIME = pa.timestamp("us", "UTC")
# Columns that a history has beside those of the row.
OWN = (FROM, TO, OP, *COORDINATES.names, *COLUMNS.names)


@dataclass(frozen=True, eq=False)
class Events(Changes):
    """`truncates[i]`: change i is a truncate."""

    truncates: Mask = field(default_factory=lambda: np.empty(0, np.bool_))


@dataclass(frozen=True)
class Log:
    """Changes of a batch but truncates, one after the other: rows in the table's columns, keys, times.

    `rows_of_batch` numbers them among all events. `truncates` are times; `sequence.epochs` says how many came before.
    """

    rows: pa.Table
    keys: Keys
    times: Int64
    present: Mask
    snapshot: Mask
    rows_of_batch: Int64
    truncates: Int64
    sequence: Sequence

    @classmethod
    def of(cls, parts: list[Events], columns: pa.Schema) -> Log:
        rows = pa.concat_tables([fit_rows(c.rows, columns) for c in parts])
        truncate = np.concatenate([c.truncates for c in parts])
        times = rows.column(FROM).cast(pa.int64()).to_numpy()
        changes = np.flatnonzero(~truncate)
        keys = join([c.keys for c in parts]).take(changes)
        epochs = np.cumsum(truncate)[changes]
        rows = rows.take(pa.array(changes))
        return cls(
            rows=rows,
            keys=keys,
            times=times[changes],
            present=np.concatenate([c.present for c in parts])[changes],
            snapshot=mask_of(pc.equal(rows.column(OP), "r")),
            rows_of_batch=changes,
            truncates=times[truncate],
            sequence=sequence(keys, epochs),
        )

    def kept(self, keep: Mask, rows: pa.Table) -> Log:
        """The same without some changes, with these rows."""
        if keep.all():
            return replace(self, rows=rows)
        keys = self.keys.take(keep)
        return replace(
            self,
            rows=rows.filter(pa.array(keep)),
            keys=keys,
            times=self.times[keep],
            present=self.present[keep],
            snapshot=self.snapshot[keep],
            rows_of_batch=self.rows_of_batch[keep],
            sequence=sequence(keys, self.sequence.epochs[keep]),
        )


def filled(log: Log, stored: pa.Table, at: Int64) -> tuple[pa.Table, Mask]:
    """The rows with values that were not sent (TOAST) as they were before: of the key's previous change, or as stored.
    And which changes lack one that nobody knows."""
    rows, unknown = log.rows, np.zeros(len(at), np.bool_)
    for number in range(rows.num_columns):
        values = rows.column(number).combine_chunks()
        lacking = mask_of(envelope.unavailable_mask(values)) & log.present
        if not lacking.any():
            continue
        source = log.sequence.last_marked(log.present & ~lacking)
        known = np.where(at >= 0, len(values) + at, NONE)
        source = np.where(source >= 0, source, np.where(log.present, known, np.arange(len(values))))
        unknown |= source < 0
        both = pa.chunked_array([values, *stored.column(number).chunks], values.type)
        rows = rows.set_column(number, rows.schema.field(number), both.take(pa.array(np.maximum(source, 0))))
    return rows, unknown


def unchanged(log: Log, rows: pa.Table, stored: pa.Table, at: Int64) -> Mask:
    """Rows of a snapshot that say what is known already."""
    unchanged = np.zeros(len(at), np.bool_)
    before = log.sequence.previous()
    read = np.flatnonzero(log.snapshot)
    for candidates, table, place in (
        (read[before[read] >= 0], rows, before),
        (read[(before[read] < 0) & (at[read] >= 0)], stored, at),
    ):
        mine = candidates[log.present[before[candidates]]] if table is rows else candidates
        if len(mine):
            new, old = rows.take(pa.array(mine)), fit_rows(table.take(pa.array(place[mine])), rows.schema)
            unchanged[mine] = _same(new, old)
    return unchanged


def _same(left: pa.Table, right: pa.Table) -> Mask:
    """Which rows are equal in all columns of the row itself; nulls and NaNs are equal to their like."""
    same = np.ones(len(left), np.bool_)
    for name in left.schema.names:
        if name in OWN:
            continue
        a, b = left.column(name).combine_chunks(), right.column(name).combine_chunks()
        if pa.types.is_nested(a.type):
            same &= np.array([x == y for x, y in zip(a.to_pylist(), b.to_pylist(), strict=True)], np.bool_)
            continue
        equal = pc.or_(pc.fill_null(pc.equal(a, b), False), pc.and_(pc.is_null(a), pc.is_null(b)))
        if pa.types.is_floating(a.type):
            equal = pc.or_(equal, pc.fill_null(pc.and_(pc.is_nan(a), pc.is_nan(b)), False))
        same &= mask_of(equal)
    return same


def timed(rows: pa.Table, begin: Int64, end: Int64) -> pa.Table:
    """The rows as valid from and until these times; `NEVER` is null."""
    for name, times in ((FROM, pa.array(begin)), (TO, pa.array(end, mask=end == NEVER))):
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, rows.schema.field(at), times.cast(TIME))
    return rows


def ended(rows: pa.Table, time: int, schema: pa.Schema) -> pa.Table:
    """The open ones of these rows ended at a time, in the columns of `schema`."""
    rows = fit_rows(rows, schema)
    end = pc.max_element_wise(rows.column(FROM).cast(pa.int64()), time).cast(TIME)
    at = rows.schema.get_field_index(TO)
    return rows.set_column(at, rows.schema.field(at), pc.coalesce(rows.column(TO), end))
