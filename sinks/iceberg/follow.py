"""What a change of the source's columns or key means for the rows that a current-state table has already.

The source does not send them again. An added column holds its default in them: they are made anew with it. It does too
in rows of a writer that does not have the column yet, whenever these come: so a table remembers the defaults of columns
that it got, and of those that it began with. Another key finds rows by other columns. A key is another only where the
source's connector names it so, for a record that somebody else put there says nothing of the table; and where rows
would be lost by it, only once the source is read again: then of those with the same key the newest stays, and those
that have no value for it go, for nothing could ever replace them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.schema import Schema
from pyiceberg.table import Table

from headrace.asof import BEGIN, END
from headrace.keyindex import hash_keys, last_of_each
from headrace.logs import get_logger
from schemas import envelope
from schemas.defaults import default_scalar
from schemas.envelope import NOWHERE, Position
from schemas.types import iceberg_arrow
from sinks.iceberg import progress
from sinks.iceberg.applicable import OWN, foreign, mask_of, row_columns, source_table, writes
from sinks.iceberg.changes import join
from sinks.iceberg.commit import Change
from sinks.iceberg.evolve import merge
from sinks.iceberg.filerows import live_rows
from sinks.iceberg.parquet import BLOOM_FILTER
from sinks.iceberg.places import COLUMNS, Places
from sinks.iceberg.remake import remade
from sinks.iceberg.shape import arrow_schema
from sinks.iceberg.slices import Slice

Mask = npt.NDArray[np.bool_]

ADDED = "headrace.added."

log = get_logger("iceberg")


@dataclass(frozen=True)
class Column:
    """A column that the source got: rows whose writer does not have it hold `value`."""

    field: Mapping[str, Any]
    value: pa.Scalar

    @property
    def property(self) -> str:
        return json.dumps({"field": self.field})


Added = Mapping[str, Column]


@dataclass(frozen=True)
class NewKey:
    """Another key of the source, and the place in its log from which on. `read`: rows that a snapshot read have it."""

    fields: tuple[str, ...]
    at: Position
    read: bool


def row_changes(part: Slice) -> Mask:
    """Which records of a slice change a row of its table."""
    if not envelope.is_envelope(part.batch.schema):
        return np.zeros(part.batch.num_rows, np.bool_)
    op = envelope.operations(part.batch)
    return (writes(op) | mask_of(pc.equal(op, "d"))) & ~foreign(part)


def says_key(part: Slice) -> bool:
    """Whether records of a slice can say what key their table has: they change rows, which have its columns."""
    changes = part.key_fields is not None and row_changes(part).any()
    return bool(changes and not part.key_unlike and set(part.key_fields or ()) <= row_columns(part))


def repeated(part: Slice, mark: Position) -> Mask:
    """Which records of a slice are changes that have been applied, as those up to `mark` have. Debezium repeats them
    after a restart under the key and the columns of that time: they do not say where in the log those came."""
    changes = row_changes(part)
    mask = np.zeros(len(changes), np.bool_)
    if not changes.any():
        return mask
    rows = np.flatnonzero(changes & ~mask_of(envelope.snapshot_mask(part.batch)))
    places, _ = Places.told(envelope.placed(part.batch).take(pa.array(rows)))
    mask[rows] = places.below(Position(mark.high, mark.low + 1))
    return mask


def first_place(part: Slice, mark: Position = NOWHERE) -> Position | None:
    """The lowest place of a slice's changes of rows but those that are `repeated`; None when it has none, or none
    says."""
    fresh = row_changes(part) if mark == NOWHERE else row_changes(part) & ~repeated(part, mark)
    places, _ = Places.told(envelope.placed(part.batch).filter(pa.array(fresh)))
    lowest = places.lowest
    return lowest if lowest.high >= 0 else None


def staged(slices: Sequence[Slice], marks: Mapping[int, Position], key: tuple[str, ...] | None) -> list[list[Slice]]:
    """Slices in groups that have one key each, in the order in which the source had those keys; order within a
    partition is kept. Usually one group. `marks`: up to which place a partition's changes are repeats; `key`: the
    table's, None when it is not known yet."""
    if len({part.key_fields for part in slices}) < 2:
        return [list(slices)]
    said = {id(part): _said(part, key) for part in slices}
    waiting: dict[int, list[Slice]] = {}
    for part in slices:
        waiting.setdefault(part.partition, []).append(part)
    stages = []
    while any(waiting.values()):
        heads = [parts[0] for parts in waiting.values() if parts]
        keyed = [(first_place(p, marks[p.partition]) or NOWHERE, p) for p in heads if said[id(p)] is not None]
        first = said[id(min(keyed, key=lambda pair: pair[0])[1])] if keyed else None
        stage: list[Slice] = []
        for parts in waiting.values():
            while parts and said[id(parts[0])] in (None, first):
                stage.append(parts.pop(0))
        stages.append(stage)
    return stages


def _said(part: Slice, key: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The key that a slice says its table has, which counts: that of the table, or one that it can get."""
    fields = part.key_fields
    if fields and (fields == key or ((part.key_named or key is None) and says_key(part))):
        return fields
    return () if fields == () and not key and row_changes(part).any() else None


def new_key(
    slices: Sequence[Slice], key: tuple[str, ...], since: Position, marks: Mapping[int, Position]
) -> NewKey | None:
    """The key that slices have instead of `key`, which holds since a place before theirs. `marks`: up to which place a
    partition's changes are repeats."""
    for part in slices:
        if part.key_fields and part.key_fields != key and part.key_named and says_key(part):
            at = first_place(part, marks[part.partition])
            if at is not None and at > since:
                alike = [p for p in slices if p.key_fields == part.key_fields]
                read = any((row_changes(p) & mask_of(envelope.snapshot_mask(p.batch))).any() for p in alike)
                return NewKey(part.key_fields, at, read)
    return None


def rekeyed(table: Table, topic: str, new: NewKey, *, counted: Callable[[pa.Table], Mask]) -> Change | None:
    """The change that puts a table under another key: of the rows that count, the newest of each key stays. None when
    not all do, and the source is not read again. Raises `OSError`."""
    key = new.fields
    properties = {progress.KEY: ",".join(key), progress.key_since_property(topic): str(new.at)}
    properties |= {f"{BLOOM_FILTER}{name}": "true" for name in key}
    tasks = list(table.scan().plan_files())
    have = table.schema().column_names
    names = [name for name in key if name in have]
    pieces = [piece for task in tasks for piece in live_rows(table, task)]
    keyed = [piece.select(names) for piece in pieces]
    placed = [piece.select([name for name in COLUMNS.names if name in have]) for piece in pieces]
    counts = np.concatenate([np.empty(0, np.bool_), *(counted(piece) for piece in pieces)])
    del pieces
    total = sum(len(piece) for piece in keyed)
    stays = ~counts
    if names == list(key) and total:
        rows = pa.concat_tables(keyed)
        high, low = (
            pc.fill_null(pa.concat_tables(placed).column(name), -1).to_numpy() if name in have else np.zeros(total)
            for name in COLUMNS.names
        )
        oldest_first = np.lexsort((low, high))
        oldest_first = oldest_first[counts[oldest_first]]
        keys = join([hash_keys([piece.column(name) for name in key]) for piece in keyed])
        stays[oldest_first[last_of_each(keys.take(oldest_first))]] = True
        for name in key:
            stays &= ~counts | ~mask_of(pc.is_null(rows.column(name)))
    gone = int((~stays).sum())
    if gone and not new.read:
        log.error(
            "the source has another key, which not all rows of the table have alone: its changes are refused",
            topic=topic, key=list(key), rows=total, lost=gone, hint=f"headrace connect snapshot {source_table(topic)}",
        )  # fmt: skip
        return None
    log.warning("the source has another key", topic=topic, key=list(key), rows=total, removed=gone)
    if gone == 0:
        return Change({}, properties, head=(table.metadata.current_snapshot_id,))
    at = 0

    def staying(rows: pa.Table) -> pa.Table:
        nonlocal at
        at += len(rows)
        return rows.filter(pa.array(stays[at - len(rows) : at]))

    return remade(table, tasks, staying, properties)


def new_columns(slices: Sequence[Slice], schema: Schema, known: Added) -> dict[str, Column]:
    """Columns with a default that slices have and the table has not."""
    have = {field.name for field in schema.fields}
    for part in slices:
        fields = _fields(part)
        fresh = fields.keys() - have - known.keys() - OWN
        if fresh and foreign(part).all():
            continue
        without = [name for name in sorted(fresh) if default_scalar(fields[name]) is None]
        gone = sorted(name for name in have - fields.keys() - {BEGIN, END} if not name.startswith("_"))
        if fresh and (gone or any(_filled(fields[name]) for name in without)):
            table = source_table(part.topic)
            log.warning(
                "rows of before are null in new columns, or hold the default: renamed, or a computed one? then read "
                "them again",
                topic=part.topic, columns=sorted(fresh), gone=gone, hint=f"headrace connect snapshot {table}",
            )  # fmt: skip
    return defaults(slices, have | known.keys())


def defaults(slices: Sequence[Slice], beside: Set[str] = frozenset()) -> dict[str, Column]:
    """Columns with a default that slices have, but those of some names. Of several definitions of a column the one that
    came first says what rows of before hold, also where it has no default: then they are null.

    For a table that begins with these slices all of them count: rows of a writer that does not have a column may be
    among them, or in a partition that is read later.
    """
    found: dict[str, tuple[Position, Column | None]] = {}
    for part in slices:
        fields = _fields(part)
        fresh = fields.keys() - beside - OWN
        if not fresh or foreign(part).all():
            continue
        at = first_place(part) or NOWHERE
        for name in sorted(fresh):
            if name not in found or at < found[name][0]:
                value = default_scalar(fields[name])
                found[name] = at, None if value is None else Column(fields[name], value)
    return {name: column for name, (_, column) in found.items() if column is not None}


def _fields(part: Slice) -> dict[str, Mapping[str, Any]]:
    """The columns of rows, as their writer's schema has them; none where it is not that of change events."""
    if part.schema is None or not envelope.is_envelope(part.schema):
        return {}
    return {field["name"]: field for field in envelope.row_schema(part.schema)["fields"]}


def _filled(field: Mapping[str, Any]) -> bool:
    """Whether the source fills rows of before with something that the schema does not say."""
    return field.get("default") is not None or not isinstance(field["type"], list)


def added_properties(added: Added) -> dict[str, str]:
    """What a table has to remember for `added_columns`."""
    return {f"{ADDED}{name}": column.property for name, column in added.items()}


def added_columns(properties: Mapping[str, str]) -> dict[str, Column]:
    """What tables remember of the columns that they got."""
    found = {}
    for name, text in properties.items():
        if name.startswith(ADDED):
            said = json.loads(text)
            value = default_scalar(said["field"])
            if value is not None:
                found[name[len(ADDED) :]] = Column(said["field"], value)
    return found


def backfilled(table: Table, added: Added) -> Change:
    """The change that gives every row the defaults of columns that it lacks. Raises `OSError`."""
    fields = iceberg_arrow(pa.schema([pa.field(name, column.value.type) for name, column in added.items()]))

    def with_defaults(rows: pa.Table) -> pa.Table:
        for field, column in zip(fields, added.values(), strict=True):
            rows = rows.append_column(field, pa.repeat(column.value, len(rows)).cast(field.type))
        return rows

    log.warning("rows of before get the defaults of new columns", table=".".join(table.name()), columns=list(added))
    columns = merge(arrow_schema(table.schema()), fields)
    return remade(table, table.scan().plan_files(), with_defaults, added_properties(added), columns=columns)


def absent_filled(rows: pa.RecordBatch, added: Added) -> pa.RecordBatch:
    """Rows of a writer that does not have some of the added columns: they hold their defaults.

    Their place in the log does not count: after a restart Debezium sends the first changes with the columns of that
    time, and those behind them, which are older than the columns, without.
    """
    columns, fields = list(rows.columns), list(rows.schema)
    for name, column in added.items():
        if name not in rows.schema.names:
            (field,) = iceberg_arrow(pa.schema([pa.field(name, column.value.type)]))
            columns.append(pa.repeat(column.value, len(rows)).cast(field.type))
            fields.append(field)
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))
