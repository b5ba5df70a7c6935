"""Where a change stands in the binary log of MySQL or MariaDB, from the `source` of Debezium's event.

The place is (number of the log file, position of the event in it, row within the event). One row of an UPDATE that
changes the key comes as a delete and a create with one place between them, so which of the two it is counts too.
`transaction.total_order` cannot stand in: a connector that resumes inside a transaction counts anew from there, so
repeats would look older than they are and changes be lost. A GTID has no order within its transaction.

MariaDB from 11.4 on writes no positions inside of transactions unless `binlog_legacy_event_pos` is on: then all changes
of one share a place. Where a batch shows that, it is refused. MySQL's `binlog_transaction_compression` hides them too.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import ContractError

FIELDS = frozenset({"file", "pos", "row"})
# Event headers hold a position in 32 bits.
POSITION_BITS = 32

_NUMBER = r"\.(?P<number>[0-9]{1,9})$"

Int64 = npt.NDArray[np.int64]


def has_place(source: pa.StructArray) -> bool:
    return {f.name for f in source.type} >= FIELDS


def place(source: pa.StructArray) -> Int64:
    """(number of the log file) * 2**32 + position in it, also of rows of a snapshot; -1 where it is not said."""
    file = pc.struct_field(source, "file").cast(pa.string())
    number = pc.struct_field(pc.extract_regex(file, _NUMBER), "number").cast(pa.int64())
    position = pc.struct_field(source, "pos").cast(pa.int64())
    known = pc.and_(pc.greater_equal(position, 0), pc.less(position, 1 << POSITION_BITS))
    out: Int64 = pc.fill_null(
        pc.if_else(known, pc.add(pc.shift_left(number, POSITION_BITS), position), None), -1
    ).to_numpy(zero_copy_only=False)
    return out


def positions(
    source: pa.StructArray, op: pa.StringArray, transaction: pa.Array, changed: npt.NDArray[np.bool_]
) -> tuple[Int64, Int64]:
    """(high, low) of each event: its `place`, and twice its row, plus one for all but a delete; -1 and -1 where not
    `changed`.

    Unique, increasing in a partition and the same in every repeat, as long as the log's files are numbered onwards: not
    after RESET MASTER, nor on another server. Raises `ContractError` where events carry no place, or share one.
    """
    high = place(source)
    if (changed & (high < 0)).any():
        raise ContractError(
            "changes without their place in the log",
            where="source.file, source.pos",
            hint='such as "binlog.000042", 1789',
        )
    row = pc.fill_null(pc.struct_field(source, "row").cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    low = 2 * row + ~_is(op, "d")
    # Debezium leaves the row of the event before on a truncate, which is no event of rows.
    low[_is(op, "t")] = 0
    _refuse_shared(high[changed], low[changed], transaction.filter(pa.array(changed)))
    return np.where(changed, high, -1), np.where(changed, low, -1)


def _refuse_shared(high: Int64, low: Int64, transaction: pa.Array) -> None:
    """A repeat of an event never has a higher number in its transaction than the event had; a later one has."""
    if not pa.types.is_struct(transaction.type) or len(high) < 2:
        return
    order, name = (pc.struct_field(transaction, part) for part in ("total_order", "id"))
    order = pc.fill_null(order.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    same = pc.fill_null(pc.equal(name[1:], name[:-1]), False).to_numpy(zero_copy_only=False)
    up = (high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] > low[:-1]))
    if (same & ~up & (order[1:] > order[:-1])).any():
        raise ContractError(
            "changes of one transaction share their place in the log, so repeats cannot be told from changes",
            where="source.pos",
            hint="MariaDB: SET GLOBAL binlog_legacy_event_pos = ON; MySQL: binlog_transaction_compression = OFF",
        )


def _is(op: pa.StringArray, code: str) -> npt.NDArray[np.bool_]:
    out: npt.NDArray[np.bool_] = pc.fill_null(pc.equal(op, code), False).to_numpy(zero_copy_only=False)
    return out
