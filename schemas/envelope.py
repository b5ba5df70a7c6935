"""Debezium change events in columns: what changed, where it stands in the source's log, and which repeats to drop.

A decoded batch of a change topic has the struct columns `before`, `after`, `source`, the string `op` (c, u, d, r for a
row read by a snapshot, t for truncate) and `transaction`. Connect repeats changes after a crash, so readers with
state drop a change whose position is not above the highest one of its partition. For Postgres the position is
(first number of `source.sequence`, `transaction.total_order`): unique, increasing and the same in every repeat. `lsn`
alone goes backwards between interleaved transactions, and `sequence` alone is shared by the rows of one statement.
For MySQL and MariaDB it is the place in the binary log (`schemas/binlog.py`).
Rows of a snapshot have no position: they are upserts, and are never dropped as repeats. Those of an incremental one may
be older than changes before them in the topic (see `stale`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import ContractError
from schemas import binlog
from schemas.names import is_topic_of

UNAVAILABLE = "__debezium_unavailable_value"
INCREMENTAL = "incremental"
# Debezium's other forms of it: an hstore's text; as the one element of an array of text itself, of uuid its name-based
# UUID; in an array of integers or dates its bytes as the elements.
_HSTORE = f'{{"{UNAVAILABLE}":"{UNAVAILABLE}"}}'
_UUID = "b68a35a7-17ad-35b3-af2a-ae46edb4545a"
_CODES = np.frombuffer(UNAVAILABLE.encode(), np.uint8)

# For how long other sessions may not see a change that was streamed.
UNSEEN_MS = 60_000

_SEQUENCE = r'^\s*\[\s*(?:"(?P<first>[0-9]{1,18})"|null)'


class Position(NamedTuple):
    """A place in a database's log, as two numbers; `NOWHERE` is before all of them. See `positions`."""

    high: int
    low: int

    def __str__(self) -> str:
        return f"{self.high}:{self.low}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Reads what `str()` wrote. Raises `ContractError` on anything else."""
        high, _, low = text.partition(":")
        try:
            return cls(int(high), int(low))
        except ValueError as e:
            raise ContractError(f"{text!r} is not a position", hint="write two numbers, high:low") from e


NOWHERE = Position(-1, -1)


def is_envelope(schema: pa.Schema | Mapping[str, Any]) -> bool:
    """Whether an Arrow or Avro schema is that of change events."""
    if isinstance(schema, pa.Schema):
        fields: dict[str, Any] = {f.name: f.type for f in schema}
        structured = all(pa.types.is_struct(fields.get(name, pa.null())) for name in ("after", "source"))
    else:
        fields = {f["name"]: f["type"] for f in schema.get("fields", [])}
        structured = isinstance(fields.get("source"), dict) and isinstance(fields.get("after"), list)
    return structured and {"before", "after", "source", "op"} <= fields.keys()


def row_schema(envelope: Mapping[str, Any]) -> dict[str, Any]:
    """The Avro schema of the row in an envelope's Avro schema. Raises `ContractError` when it is none."""
    if is_envelope(envelope):
        for name in ("before", "after"):
            kind = next(f["type"] for f in envelope["fields"] if f["name"] == name)
            for branch in kind if isinstance(kind, list) else [kind]:
                if isinstance(branch, dict) and branch.get("type") == "record":
                    return branch
    raise ContractError("is not the schema of change events", where=str(envelope.get("name", "")))


def operations(batch: pa.RecordBatch) -> pa.StringArray:
    return batch.column("op")


def snapshot_mask(batch: pa.RecordBatch) -> pa.BooleanArray:
    """True where the row was read by a snapshot, not changed."""
    return pc.fill_null(pc.equal(batch.column("op"), "r"), False)


def incremental_mask(batch: pa.RecordBatch) -> pa.BooleanArray:
    """True where the row was read by an incremental snapshot, while changes were streamed."""
    kind = _child(batch.column("source"), "snapshot").cast(pa.string())
    return pc.and_(snapshot_mask(batch), pc.fill_null(pc.equal(kind, INCREMENTAL), False))


def sent_time(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """When Connect made each event, by its own clock, in ms since the epoch; -1 where it does not say."""
    times = batch.column("ts_ms") if "ts_ms" in batch.schema.names else pa.nulls(len(batch))
    out: npt.NDArray[np.int64] = pc.fill_null(times.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    return out


def stale(read: Any, changed: Any) -> Any:
    """Whether a row that an incremental snapshot read may be older than the last change of its key: one of the same
    schema, earlier in the topic, and applied. Then it changes nothing.

    PostgreSQL and MariaDB write a commit to their log before other sessions see it. Debezium streams it; a chunk that
    is read just then still has the row of before, and comes after the change. `read` and `changed` are when Connect
    made the two events (`sent_time`), as numbers or arrays; -1 is never stale, and makes nothing stale.
    """
    return (read >= 0) & (changed >= 0) & (read - changed <= UNSEEN_MS)


def row_batch(batch: pa.RecordBatch, part: Literal["before", "after"]) -> pa.RecordBatch:
    """The rows before or after, one per event in the same order; all null where the event has none."""
    rows = batch.column(part)
    return pa.RecordBatch.from_arrays(rows.flatten(), schema=pa.schema(list(rows.type)))


def has_row(batch: pa.RecordBatch, part: Literal["before", "after"]) -> pa.BooleanArray:
    return pc.is_valid(batch.column(part))


def table_of(batch: pa.RecordBatch) -> pa.StringArray:
    """`schema.table` that each event says it is from (database.table where the source has no schemas).

    A topic that is not of this table holds a record that a broken or forging producer put there.
    """
    source = batch.column("source")
    names = {f.name for f in source.type}
    return pc.binary_join_element_wise(
        _child(source, "schema" if "schema" in names else "db"), _child(source, "table"), "."
    )


def is_of(batch: pa.RecordBatch, topic: str) -> pa.BooleanArray:
    """Which events say that they are from the table of a topic; null where they say nothing."""
    source = batch.column("source")
    names = {f.name for f in source.type}
    schema, name = f".{topic}".split(".")[-2:]
    same = pc.and_(
        pc.equal(_child(source, "schema" if "schema" in names else "db"), schema),
        pc.equal(_child(source, "table"), name),
    )
    others = pc.invert(same)
    if not pc.any(others).as_py():
        return same
    # A name that topics cannot have as it is.
    said = table_of(batch)
    written = [table for table in pc.unique(said.filter(others)).to_pylist() if is_topic_of(topic, table)]
    return pc.or_(same, pc.is_in(said, pa.array(written, said.type)))


def placed(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The columns that `positions` looks at."""
    return batch.select([name for name in ("source", "op", "transaction") if name in batch.schema.names])


def source_time(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """When the source committed each change, in ms since the epoch; -1 where it does not say."""
    out: npt.NDArray[np.int64] = pc.fill_null(_child(batch.column("source"), "ts_ms").cast(pa.int64()), -1).to_numpy()
    return out


def commit_micros(batch: pa.RecordBatch) -> pa.Array:
    """When the source committed each change, in µs since the epoch; null where it does not say.

    For rows of a snapshot it is when they were read. Debezium's `source.ts_us`, else `ts_ms`.
    """
    source = batch.column("source")
    millis = pc.multiply(_child(source, "ts_ms").cast(pa.int64()), 1000)
    return pc.coalesce(_child(source, "ts_us").cast(pa.int64()), millis)


def unavailable_mask(column: pa.Array) -> pa.BooleanArray:
    """True where Debezium could not read a value that did not change (TOAST): the current value stays.

    Debezium has a placeholder for text, bytes, json, hstore, and arrays of text, uuid, bytea, json, int, bigint and
    date. For other types it sends null, or fails when `event.converting.failure.handling.mode` tells it to.
    """
    mask = np.zeros(len(column), np.bool_)
    kind = column.type
    if pa.types.is_map(kind):
        # An hstore as a map has the placeholder as its one key.
        column = column.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)])))
        rows = np.flatnonzero(pc.fill_null(pc.equal(pc.list_value_length(column), 1), False))
        mask[rows] = _equal(pc.struct_field(column.take(pa.array(rows)).flatten(), "key"), UNAVAILABLE)
    elif pa.types.is_list(kind):
        lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
        numbers = pa.types.is_integer(kind.value_type) or pa.types.is_date32(kind.value_type)
        rows = np.flatnonzero(lengths == (len(_CODES) if numbers else 1))
        if len(rows):
            items = column.take(pa.array(rows)).flatten()
            mask[rows] = _spelled(items) if numbers else _equal(items, UNAVAILABLE, _HSTORE, _UUID)
    else:
        mask = _equal(column, UNAVAILABLE, _HSTORE)
    return pa.array(mask)


def _equal(column: pa.Array, *forms: str) -> npt.NDArray[np.bool_]:
    """Which texts or bytes are one of the forms. Lengths are looked at first: hardly any value has theirs."""
    mask: npt.NDArray[np.bool_] = np.zeros(len(column), np.bool_)
    text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if not (text or pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        return mask
    lengths = pc.fill_null(pc.binary_length(column), -1).to_numpy(zero_copy_only=False)
    for form in forms:
        rows = np.flatnonzero(lengths == len(form))
        if len(rows):
            some = column if len(rows) == len(column) else column.take(pa.array(rows))
            equal = pc.equal(some, pa.scalar(form if text else form.encode(), column.type))
            mask[rows] |= equal.to_numpy(zero_copy_only=False)
    return mask


def _spelled(items: pa.Array) -> npt.NDArray[np.bool_]:
    """Which lists of as many items as the placeholder has bytes consist of these."""
    if pa.types.is_date32(items.type):
        items = items.view(pa.int32())
    numbers = pc.fill_null(items.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    spelled: npt.NDArray[np.bool_] = (numbers.reshape(-1, len(_CODES)) == _CODES).all(axis=1)
    return spelled


def positions(batch: pa.RecordBatch) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(high, low) of each event, -1 and -1 for rows of a snapshot.

    For Postgres these are the log position of the commit before and the order in the transaction, for MySQL and MariaDB
    what `binlog.positions` says. Raises `ContractError` when the events do not carry positions: of another source, or
    from a connector that does not add transaction metadata.
    """
    source = batch.column("source")
    if binlog.has_place(source):
        transaction = batch.column("transaction") if "transaction" in batch.schema.names else pa.nulls(len(batch))
        changed = ~snapshot_mask(batch).to_numpy(zero_copy_only=False)
        return binlog.positions(source, operations(batch), transaction, changed)
    if "lsn" not in {f.name for f in source.type}:
        raise ContractError(
            "positions of this source are not known, so its repeats cannot be told from its changes",
            where="source",
            hint="Debezium's connectors for Postgres, MySQL and MariaDB are supported",
        )
    transaction = batch.column("transaction") if "transaction" in batch.schema.names else pa.nulls(len(batch))
    snapshot = snapshot_mask(batch)
    changed = pc.invert(snapshot)
    if not pa.types.is_struct(transaction.type) or _any_null(_child(transaction, "total_order"), changed):
        raise ContractError(
            "changes without their order in the transaction",
            where="transaction.total_order",
            hint="set provide.transaction.metadata=true in the connector",
        )
    first = _commit_before(source)
    if _any_null(first, changed):
        raise ContractError('changes without a sequence like ["24023104","24023160"]', where="source.sequence")
    # The first transaction of a replication slot has no commit before it: null. Its changes' own lsn stands in, above
    # every commit that an older slot of the same database has seen and below this transaction's, which comes next.
    begins = pc.and_(pc.equal(first, ""), changed)
    own = _child(source, "lsn").cast(pa.int64())
    if _any_null(own, begins):
        raise ContractError("changes without their place in the log", where="source.lsn")
    lsn = pc.if_else(begins, own, pc.if_else(pc.equal(first, ""), None, first).cast(pa.int64()))
    order = _child(transaction, "total_order").cast(pa.int64())
    return _numbers(lsn, snapshot), _numbers(order, snapshot)


def unplaced(batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    """True for changes that do not say where they stand, among events of a source whose changes can: `positions` raises
    for such a batch. None are where no event of the schema could."""
    source = batch.column("source")
    changed = pc.invert(snapshot_mask(batch))
    if binlog.has_place(source):
        lacks = pa.array(binlog.place(source) < 0)
    elif "lsn" in {f.name for f in source.type}:
        transaction = batch.column("transaction") if "transaction" in batch.schema.names else pa.nulls(len(batch))
        if not pa.types.is_struct(transaction.type):
            return np.zeros(len(batch), np.bool_)
        first = _commit_before(source)
        begins = pc.fill_null(pc.equal(first, ""), False)
        lacks = pc.or_(pc.is_null(first), pc.and_(begins, pc.is_null(_child(source, "lsn"))))
        lacks = pc.or_(lacks, pc.is_null(_child(transaction, "total_order")))
    else:
        return np.zeros(len(batch), np.bool_)
    out: npt.NDArray[np.bool_] = pc.and_(changed, lacks).to_numpy(zero_copy_only=False)
    return out


def _commit_before(source: pa.StructArray) -> pa.StringArray:
    """The place of the commit that was streamed last: a number's text, "" for none yet, null where it is not said."""
    return pc.struct_field(pc.extract_regex(_child(source, "sequence").cast(pa.string()), _SEQUENCE), "first")


def reached(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Where the log was when each row of a snapshot was read, -1 where that is not known. Rows of PostgreSQL's
    incremental snapshots have no place of their own: they are behind the commit that was streamed last."""
    source = batch.column("source")
    log, _ = snapshot_identity(batch)
    unsaid = log <= 0
    if unsaid.any():
        numbers = _commit_before(source.filter(pa.array(unsaid)))
        numbers = pc.if_else(pc.equal(numbers, ""), None, numbers).cast(pa.int64())
        log = log.copy()
        log[unsaid] = pc.fill_null(numbers, -1).to_numpy(zero_copy_only=False)
    return log


def snapshot_identity(batch: pa.RecordBatch) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Two numbers that all rows of a table that one full snapshot read have in common, and that grow from snapshot to
    snapshot: where the log was, and which transaction read (Postgres) or the second it began (MySQL, MariaDB)."""
    source = batch.column("source")
    if binlog.has_place(source):
        return binlog.place(source), source_time(batch)
    first, second = (
        pc.fill_null(_child(source, name).cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
        for name in ("lsn", "txId")
    )
    return first, second


def after_position(
    high: npt.NDArray[np.int64], low: npt.NDArray[np.int64], watermark: Position = NOWHERE
) -> npt.NDArray[np.bool_]:
    """True for the events of one partition, in offset order, that are above the watermark and all before them.

    Events without a position (-1) are always kept and raise nothing.
    """
    placed = high >= 0
    if not placed.all():
        keep: npt.NDArray[np.bool_] = np.ones(len(high), np.bool_)
        keep[placed] = after_position(high[placed], low[placed], watermark)
        return keep
    high = np.concatenate(([watermark.high], high))
    low = np.concatenate(([watermark.low], low))
    up: npt.NDArray[np.bool_] = (high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] > low[:-1]))
    if up.all():
        return up
    # Ranks stand for pairs, so that one running maximum compares both numbers.
    by_pair = np.lexsort((low, high))
    sorted_high, sorted_low = high[by_pair], low[by_pair]
    step = (sorted_high[1:] != sorted_high[:-1]) | (sorted_low[1:] != sorted_low[:-1])
    rank = np.empty(len(high), np.int64)
    rank[by_pair] = np.concatenate(([0], np.cumsum(step)))
    above: npt.NDArray[np.bool_] = rank[1:] > np.maximum.accumulate(rank[:-1])
    return above


def highest(high: npt.NDArray[np.int64], low: npt.NDArray[np.int64], watermark: Position = NOWHERE) -> Position:
    """The watermark after these events."""
    if not len(high):
        return watermark
    top = high.max()
    return max(watermark, Position(int(top), int(low[high == top].max())))


def _child(struct: pa.StructArray, name: str) -> pa.Array:
    if name not in {f.name for f in struct.type}:
        return pa.nulls(len(struct))
    return pc.struct_field(struct, name)


def _any_null(column: pa.Array, rows: pa.BooleanArray) -> bool:
    return bool(column.null_count) and bool(pc.any(pc.and_(pc.is_null(column), rows)).as_py())


def _numbers(column: pa.Array, none: pa.BooleanArray) -> npt.NDArray[np.int64]:
    out: npt.NDArray[np.int64] = pc.if_else(none, -1, column).to_numpy(zero_copy_only=False)
    return out
