"""A lake in a folder, slices made by hand, and faults on demand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import sqlalchemy.exc
from pyiceberg.catalog import Catalog
from pyiceberg.io.pyarrow import PyArrowFile
from pyiceberg.table import Table
from sqlalchemy.orm import Session

from headrace.config import LakeSettings
from headrace.lake import open_duckdb
from sinks.iceberg.catalog import open_catalog
from sinks.iceberg.owned import OwnedTable, Source
from sinks.iceberg.slices import Slice

TOPIC = "shop.public.things"
ROW = pa.struct([("id", pa.int64()), ("name", pa.string()), ("n", pa.int32())])
SOURCE = pa.struct(
    [
        ("schema", pa.string()),
        ("table", pa.string()),
        ("lsn", pa.int64()),
        ("sequence", pa.string()),
        ("snapshot", pa.string()),
    ]
)
TRANSACTION = pa.struct([("id", pa.string()), ("total_order", pa.int64())])


def envelope_schema(row: pa.DataType = ROW) -> pa.Schema:
    return pa.schema(
        [
            ("before", row),
            ("after", row),
            ("source", SOURCE),
            ("op", pa.string()),
            ("transaction", TRANSACTION),
            ("ts_ms", pa.int64()),
        ]
    )


def change(
    op: str, row: dict[str, Any] | None, lsn: int, order: int = 1, *, seconds: float | None = None
) -> dict[str, Any]:
    """A change event; `row` is the row after it, before it for a delete; `seconds`: when Connect made it."""
    placed = op != "r"
    return {
        "before": row if op == "d" else None,
        "after": row if op in "cur" else None,
        "source": {
            "schema": "public",
            "table": "things",
            "lsn": lsn,
            "sequence": f'["{lsn}","{lsn}"]' if placed else None,
        },
        "op": op,
        "transaction": {"id": str(lsn), "total_order": order} if placed else None,
        "ts_ms": None if seconds is None else int(seconds * 1000),
    }


def read_again(row: dict[str, Any], seconds: float, lsn: int | None = None) -> dict[str, Any]:
    """A row that an incremental snapshot of PostgreSQL read: it says which commit was streamed last, `lsn`, alone."""
    event = change("r", row, 0, seconds=seconds)
    said = None if lsn is None else f'["{lsn}",null]'
    return event | {"source": event["source"] | {"snapshot": "incremental", "lsn": None, "sequence": said}}


def of_another_table(event: dict[str, Any]) -> dict[str, Any]:
    """The same, as a broken producer puts it into this topic."""
    return event | {"source": event["source"] | {"table": "others"}}


def log_place(event: dict[str, Any]) -> int:
    """Where the log was."""
    source = event["source"]
    return int(source["lsn"] or json.loads(source["sequence"])[0])


def not_stale(
    events: Iterable[tuple[int, dict[str, Any]]], begins: Sequence[int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Events of a partition with their offsets, one by one: without rows of incremental snapshots less than a minute
    behind the last change of their key. `begins`: the offsets that processes began at, which know none before."""
    changed: dict[int, tuple[int, int]] = {}
    for offset, event in events:
        row = event["after"] or event["before"]
        if event["op"] in "cud":
            changed[row["id"]] = offset, event["ts_ms"]
        if event["source"].get("snapshot"):
            at, time = changed.get(row["id"], (-1, 0))
            if at >= max(b for b in begins if b <= offset) and event["ts_ms"] - time <= 60_000:
                continue
        yield offset, event


def slice_of(
    values: Sequence[dict[str, Any] | None],
    start: int = 0,
    *,
    partition: int = 0,
    topic: str = TOPIC,
    schema: pa.Schema | None = None,
    key_fields: tuple[str, ...] | None = ("id",),
    key_named: bool = False,
    bad: Sequence[int] = (),
    baseline: int = 0,
) -> Slice:
    """Records from offset `start` on; None is a tombstone, indexes in `bad` did not decode. `key_named`: the schema of
    their key is named as the source's connector names it."""
    schema = schema or envelope_schema()
    n = len(values)
    nulls = np.array([i for i, v in enumerate(values) if v is None and i not in bad], np.int64)
    rows = np.array([i for i, v in enumerate(values) if v is not None and i not in bad], np.int64)
    return Slice(
        topic=topic,
        partition=partition,
        start=start,
        next_offset=start + n,
        keys=pa.array([b"k%d" % i for i in range(n)], pa.binary()),
        values=pa.array([None if v is None else b"v" for v in values], pa.binary()),
        offsets=np.arange(start, start + n),
        timestamps=np.full(n, 1_700_000_000_000) + np.arange(n),
        batch=pa.RecordBatch.from_pylist([values[i] for i in rows], schema=schema),
        rows=rows,
        nulls=nulls,
        bad=np.array(sorted(bad), np.int64),
        reasons=("broken",) * len(bad),
        key_fields=key_fields,
        key_named=key_named,
        baseline=baseline,
        baseline_time=1_700_000_000_000 + n - 1 if baseline else 0,
    )


def lake(folder: Path) -> LakeSettings:
    return LakeSettings(uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/warehouse")


def catalog_in(folder: Path) -> Catalog:
    return open_catalog(lake(folder))


def source(partitions: int = 1, begin: int = 0, end: int = 1 << 40, topic_id: str = "to/pic") -> Source:
    parts = range(partitions)
    return Source("cluster", topic_id, dict.fromkeys(parts, begin), dict.fromkeys(parts, end))


def land(table: OwnedTable, *slices: Slice) -> Any:
    prepared = table.prepare(slices)
    table.commit(prepared)
    return prepared


def rows_of(table: OwnedTable | Table, *columns: str) -> list[tuple[Any, ...]]:
    """Rows as pyiceberg reads them, sorted."""
    found = table.table if isinstance(table, OwnedTable) else table
    if found is None:
        return []
    current = found.catalog.load_table(found.name())
    if not set(columns) <= set(current.schema().column_names):
        return []
    rows = current.scan().to_arrow().select(list(columns)).to_pylist()
    return sorted((tuple(row.values()) for row in rows), key=repr)


def duckdb_rows(folder: Path, table: OwnedTable, *columns: str) -> list[tuple[Any, ...]]:
    """The same as DuckDB reads them."""
    assert table.table is not None
    location = table.table.catalog.load_table(table.table.name()).metadata_location
    with open_duckdb(lake(folder)) as connection:
        names = ", ".join(f'"{c}"' for c in columns)
        rows = connection.execute(f"SELECT {names} FROM iceberg_scan('{location}')").fetchall()
    return sorted(rows, key=repr)


class Faults:
    """Fails the `at`-th I/O call, before or after it took effect; counts the calls."""

    def __init__(self, at: int, *, after: bool) -> None:
        self.at, self.after, self.calls, self.happened = at, after, 0, False

    def wrap(self, call: Any, error: Any) -> Any:
        def failing(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            mine = self.calls == self.at
            if mine and not self.after:
                self.happened = True
                raise error()
            result = call(*args, **kwargs)
            if mine:
                self.happened = True
                raise error()
            return result

        return failing


@contextmanager
def faults(at: int, *, after: bool) -> Iterator[Faults]:
    """Files opened and created, SQL executed and committed: one of these calls fails."""
    plan = Faults(at, after=after)

    def disk() -> OSError:
        return OSError(28, "No space left on device")

    def server() -> Exception:
        return sqlalchemy.exc.OperationalError("statement", {}, Exception("connection lost"))

    with (
        patch.object(PyArrowFile, "create", plan.wrap(PyArrowFile.create, disk)),
        patch.object(PyArrowFile, "open", plan.wrap(PyArrowFile.open, disk)),
        patch.object(Session, "execute", plan.wrap(Session.execute, server)),
        patch.object(Session, "commit", plan.wrap(Session.commit, server)),
    ):
        yield plan


def thing(number: int, name: str | None = "x", n: int | None = 0) -> dict[str, object]:
    return {"id": number, "name": name, "n": n}


def opened(table, partitions: int = 1, **known):
    table.open(source(partitions, **known))
    return table


def events_of(fields: list[dict[str, Any]], **named: str) -> dict[str, Any]:
    """The Avro schema of change events of rows with these fields."""
    row = {"type": "record", "name": "Value", "fields": fields}
    source = {"type": "record", "name": "Source", "fields": [{"name": "table", "type": "string"}]}
    types = {"before": ["null", row], "after": ["null", "Value"], "source": source, "op": "string"}
    return {"type": "record", **named, "fields": [{"name": name, "type": avro} for name, avro in types.items()]}


def created(row: bytes) -> bytes:
    """A change event of `events_of`: a row, encoded, that is new."""
    return b"\0\x02" + row + b"\x02t\x02c"
