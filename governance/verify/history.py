"""Histories against the current state that they belong to: with SQL over both tables, in DuckDB.

The open versions are the rows of the current state, no more and no fewer; versions of one key follow one another and do
not overlap. Without a key no change ends a version: such a history is not compared.

Both tables are read when they hold the same offsets, for which is waited. A source's clock that was set
back between the delete of a row and its next insert shows as an overlap: that is what the source says.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from governance.verify.lake import Lake, Table
from governance.verify.report import Check

OWN = ("valid_from", "valid_to", "_op")
META = ("_kafka_partition", "_partition", "_offset", "_timestamp", "_position", "_order")


def check_history(
    lake: Lake, topic: str, partitions: int, current_name: str, name: str, *, patience: float = 60.0
) -> Check:
    """The versions in `name` are a history of the rows in `current_name`."""
    check = Check(topic, f"{name} is the history of {current_name}")
    deadline = time.monotonic() + patience
    while True:
        lake.refresh()
        history, current = lake.table(name), lake.table(current_name)
        if history is None and current is None:
            check.note = "neither table is there yet"
            return check
        if history is not None and current is not None:
            ahead = _ahead(history, current, topic, partitions)
            if ahead is None:
                break
        else:
            ahead = f"there is no table {name if history is None else current_name}"
        if time.monotonic() > deadline:
            check.offend(topic, f"{name} and {current_name} do not get to the same record: {ahead}")
            return check
        time.sleep(0.2)
    if not history.columns or not current.columns:
        if history.columns or current.columns:
            check.offend(topic, f"one of {name} and {current_name} has had rows, the other none")
        return check
    key = [f for f in history.properties.get("headrace.key", "").split(",") if f]
    if not key:
        check.note = "not compared: without a key no change ends the version of a row"
        return check
    _compare(check, lake, topic, history, current)
    _follow(check, lake, topic, history, key)
    return check


def _ahead(history: Table, current: Table, topic: str, partitions: int) -> str | None:
    """How far the tables are apart; None when they are not, and what truncations and baselines end has ended."""
    for partition in range(partitions):
        mine, theirs = (table.offsets(topic).get(partition, 0) for table in (history, current))
        if mine != theirs:
            return f"{mine} and {theirs} in partition {partition}"
    wanted, done = (history.properties.get(f"headrace.{name}.{topic}") for name in ("ends", "ended"))
    return None if wanted == done else "a truncation or baseline has not ended its rows yet"


def _compare(check: Check, lake: Lake, topic: str, history: Table, current: Table) -> None:
    """Open versions and current rows as multisets."""
    mine, theirs = (
        {n: v for n, v in table.properties.items() if n.startswith(f"headrace.gap.{topic}.")}
        for table in (history, current)
    )
    if mine != theirs:
        check.note = "open versions not compared: the tables did not begin with the same records"
        return
    columns = [name for name in current.columns if name not in META]
    versions = [name for name in history.columns if name not in (*META, *OWN)]
    if sorted(columns) != sorted(versions):
        differ = sorted(set(columns) ^ set(versions))
        check.offend(topic, f"columns that one of the tables lacks: {', '.join(differ)}")
        return
    names = _quoted(columns)
    open_ = f"SELECT {names} FROM {lake.scan(history)} WHERE valid_to IS NULL"
    rows = f"SELECT {names} FROM {lake.scan(current)}"
    for left, right, what in (
        (rows, open_, "has no open version"),
        (open_, rows, "is an open version, but not in the current state"),
    ):
        for row in lake.rows(f"({left}) EXCEPT ALL ({right})"):
            check.offend(topic, f"{row} {what}")
    check.compared = lake.execute(f"SELECT count(*) FROM {lake.scan(history)}").fetchall()[0][0]


def _follow(check: Check, lake: Lake, topic: str, history: Table, key: Sequence[str]) -> None:
    """One open version of each key at most, the last; each ends no later than the next begins."""
    names = _quoted(key)
    window = f"OVER (PARTITION BY {names} ORDER BY _kafka_partition, _offset)"
    found = lake.rows(
        f"SELECT * FROM (SELECT {names}, _kafka_partition, _offset, valid_from, valid_to, "
        f"lead(valid_from) {window} AS next FROM {lake.scan(history)}) "
        "WHERE valid_to < valid_from OR next < coalesce(valid_to, 'infinity'::TIMESTAMPTZ)"
    )
    for row in found:
        where = f"{topic}/{row['_kafka_partition']}/{row['_offset']}"
        values = {name: row[name] for name in key}
        if row["next"] is None:
            check.offend(where, f"the version of {values} ends before it begins")
        elif row["valid_to"] is None:
            check.offend(where, f"the version of {values} is open, though another follows it")
        else:
            check.offend(where, f"the version of {values} lasts until {row['valid_to']}, the next begins {row['next']}")


def _quoted(names: Sequence[str]) -> str:
    return ", ".join('"' + name.replace('"', '""') + '"' for name in names)
