"""Which change events can be applied to a table's current state, and why the others cannot. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas import envelope
from schemas.envelope import NOWHERE, Position
from sinks.iceberg.places import COLUMNS, Places
from sinks.iceberg.slices import COORDINATES, Slice

Mask = npt.NDArray[np.bool_]

# Columns that tables of rows have beside the source's.
OWN = frozenset([*COORDINATES.names, *COLUMNS.names])
# A key of the source that its table does not have.
KEY_RULE = "key: another"
OPERATIONS = pa.array(["c", "r", "u", "d", "t", "m"])


def mask_of(array: Any) -> Mask:
    """A boolean array with null as false."""
    out: Mask = pc.fill_null(array, False).to_numpy(zero_copy_only=False)
    return out


def writes(op: pa.StringArray) -> Mask:
    """Which operations leave a row."""
    return mask_of(pc.is_in(op, pa.array(["c", "r", "u"])))


def child(batch: pa.RecordBatch, side: str, name: str) -> pa.Array:
    return pc.struct_field(batch.column(side), name)


def source_table(topic: str) -> str:
    """The table whose changes a topic has, as `schema.table`, as far as a topic can say its name."""
    return ".".join(topic.split(".")[-2:])


def foreign(part: Slice) -> Mask:
    """Which changes say that they are of another table than the topic's: a producer put them there that is broken, or
    forges. Those that say nothing are not among them."""
    return mask_of(pc.invert(envelope.is_of(part.batch, part.topic)))


def full_identity(topic: str) -> str:
    """The statement after which the source logs whole rows."""
    return f"ALTER TABLE {source_table(topic)} REPLICA IDENTITY FULL"


def row_columns(part: Slice) -> set[str]:
    """Columns of the rows of change events."""
    return {field.name for field in part.batch.schema.field("after").type}


def _other_key(part: Slice, key: tuple[str, ...]) -> str:
    """Why a key that a table does not have is refused, and what to do where it is the source's."""
    have, want = (", ".join(fields) or "none" for fields in (part.key_fields or (), key))
    if not part.key_fields:
        mend = "where the source has dropped its primary key, name columns of a key in the connector"
        return f"the record has no key, the table's is ({want}); {mend}: message.key.columns"
    reason = f"the record's key is ({have}), the table's ({want})"
    if not part.key_named:
        return f"{reason}; its schema is not named as a connector names that of the table's key"
    return (
        f"{reason}; where the source has that key, read it again: headrace connect snapshot {source_table(part.topic)}"
    )


def unfit(part: Slice, key: tuple[str, ...], *, whole_rows: bool) -> Iterator[tuple[str, Mask, str]]:
    """Rules that keep records from being applied: name, mask over the batch's rows, reason. Later ones may rely on
    earlier ones. `whole_rows`: without a key, updates and deletes find their row by all its values."""
    batch = part.batch
    everything = np.ones(batch.num_rows, np.bool_)
    if not envelope.is_envelope(batch.schema):
        yield "envelope", everything, "the record is not a change event"
        return
    op = envelope.operations(batch)
    yield "source table", foreign(part), f"the change is not of {source_table(part.topic)}"
    yield "op", ~mask_of(pc.is_in(op, OPERATIONS)), "no such operation"
    written, deletes = writes(op), mask_of(pc.equal(op, "d"))
    yield "after", written & ~mask_of(envelope.has_row(batch, "after")), "the change has no row after it"
    if not (written | deletes).any():
        return
    taken = sorted(row_columns(part) & OWN)
    if taken:
        mend = f"rename it in the source, or leave it out: column.exclude.list={source_table(part.topic)}.{taken[0]}"
        yield "columns", written | deletes, f"the row has {', '.join(taken)}, which the table has of its own; {mend}"
        return
    bare = ~mask_of(envelope.has_row(batch, "before"))
    if part.key_fields is None:
        yield "key", written | deletes, "the record's key is not a record with named fields"
        return
    missing = set(part.key_fields) - row_columns(part)
    if missing:
        yield "key", written | deletes, f"the row has no {', '.join(sorted(missing))}"
        return
    if part.key_unlike:
        names = ", ".join(part.key_unlike)
        yield "key", written | deletes, f"{names} is of another type in the record's key than in the row"
        return
    if part.key_fields != key:
        yield KEY_RULE if part.key_named else "key", written | deletes, _other_key(part, key)
        return
    if not key:
        changed = deletes | mask_of(pc.equal(op, "u"))
        if not whole_rows:
            reason = "an update or delete of a table without a key, whose topic has several partitions, in no order"
            yield "key", changed, f"{reason}; give the table a primary key, or its topic one partition"
        yield "before", changed & bare, f"the change does not say which row it changes; {full_identity(part.topic)}"
        return
    yield "before", deletes & bare, f"the delete does not say what it deletes; {full_identity(part.topic)}"
    for name in key:
        after, before = (child(batch, side, name) for side in ("after", "before"))
        null = np.where(deletes, mask_of(pc.is_null(before)), mask_of(pc.is_null(after)))
        yield "key", (written | deletes) & null, f"{name} is null"


def lost(part: Slice, places: Places, marks: Mapping[int, Position], *, keyed: bool) -> Mask:
    """Which changes of a slice can't be applied since they do not say their place in the log. `marks`: the highest
    place of each partition of the topic so far.

    Their row would be older than any truncation, and their repeats would be new. Where no change of their partition has
    a place, as without transaction metadata, a table with a key converges all the same; but a truncation would take
    what other partitions have from after it. A table without a key would double what is repeated.
    """
    changes = ~mask_of(envelope.snapshot_mask(part.batch))
    if not keyed:
        return changes & (places.high < 0)
    lacking = envelope.unplaced(part.batch)
    if marks.get(part.partition, NOWHERE) != NOWHERE or (changes & (places.high >= 0)).any():
        return lacking
    if all(mark == NOWHERE for mark in marks.values()):
        return np.zeros(len(lacking), np.bool_)
    return lacking & mask_of(pc.equal(envelope.operations(part.batch), "t"))
