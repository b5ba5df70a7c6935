"""Chunks of topics as what they say about keys.

Repeats are dropped where they are recognised: change events by their position in the database's log, rows of derived
topics by their coordinates, values of KPIs by their revision. The watermarks for that travel with the sync's offsets.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import ContractError
from headrace.kafka import Chunk
from schemas import coordinates, envelope
from schemas.codec import ChunkDecoder
from schemas.expressions import Expression, columns_of, compile_expression
from schemas.left_out import LeftOut
from sinks.reverse.declaration import Source, Sync
from sinks.reverse.fold import Event, Values

_TRUNCATED = "delete them there; a row that the source writes again is sent when it differs from what was sent last"


@dataclass
class Watermark:
    """What was seen of one partition: the next offset to read, and the highest position and source offsets."""

    offset: int
    position: envelope.Position = envelope.NOWHERE
    lanes: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {"offset": self.offset, "position": str(self.position), "lanes": self.lanes}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Watermark:
        return cls(data["offset"], envelope.Position.parse(data["position"]), dict(data["lanes"]))


@dataclass(frozen=True)
class Read:
    """Events of a chunk in order of their offsets, and how many records were not taken, by reason."""

    events: list[Event]
    dropped: dict[str, int]


def used_columns(sync: Sync, topic: str) -> tuple[str, ...]:
    """The columns of a topic's rows that a sync needs; of nested records the outermost."""
    sources = [source for source in sync.sources if source.topic == topic and not source.pivot]
    paths = [path for source in sources for path in (*source.key.values(), *source.columns.values())]
    filters = [name for source in sources for name in columns_of(source.filter)]
    return tuple(dict.fromkeys([*(path.partition(".")[0] for path in paths), *filters]))


class Reader:
    """Reads one topic for all of a sync's sources on it. `decoder` is the topic's own."""

    def __init__(self, sync: Sync, topic: str, decoder: ChunkDecoder) -> None:
        self._decoder = decoder
        self._topic = topic
        self._left_out = LeftOut(f"sync:{sync.name}", topic)
        self._sources = [(i, source) for i, source in enumerate(sync.sources) if source.topic == topic]
        self._events = sync.mode == "events"
        self._key = sync.key
        self._filters: dict[int, tuple[pa.Schema, Expression]] = {}

    def learn(self, ids: Iterable[int]) -> None:
        """Take the topic's schemas, the newest first, until all fields were found. Raises `ContractError` when there
        are schemas and none of them has a field, and `UnavailableError` while the registry is away."""
        if self._decoder.learn(ids) and (missing := self._decoder.unknown):
            raise ContractError(f"{self._topic} has no field {missing[0]!r}")

    def read(self, chunk: Chunk, mark: Watermark) -> Read:
        """Move `mark` past the chunk and return what is new in it.

        Raises `UnavailableError` while the registry is away (nothing has moved then), `ContractError` for a source
        whose fields the topic does not have, or whose change events do not carry their position.
        """
        decoded = self._decoder.decode(chunk.values)
        dropped = {"undecodable": len(decoded.bad)} if len(decoded.bad) else {}
        self._left_out.undecoded(decoded.reasons)
        batch, rows = decoded.batch, decoded.rows
        changes = len(batch) > 0 and envelope.is_envelope(batch.schema)
        if changes and (fit := self._left_out.countable(batch)) is not None:
            batch, rows = batch.filter(pa.array(fit)), rows[fit]
        keep = self._new(batch, mark, changes) if len(batch) else np.empty(0, np.bool_)
        if len(keep) and not keep.all():
            dropped["repeat"] = int((~keep).sum())
            batch, rows = batch.filter(pa.array(keep)), rows[keep]
        if changes and (truncated := pc.sum(pc.equal(envelope.operations(batch), "t")).as_py()):
            # Rows do not know their place in the source's log, so which of them it takes back cannot be told.
            dropped["truncation"] = truncated
            self._left_out.tell("the table was truncated, and its rows stay in the target", _TRUNCATED)
        events: list[tuple[int, Event]] = []
        for index, source in self._sources if len(batch) else ():
            one = self._changes if changes else self._pivot if source.pivot else self._rows
            events += one(index, source, batch, chunk, rows)
        mark.offset = max(mark.offset, chunk.next_offset)
        events.sort(key=lambda pair: pair[0])
        return Read([event for _, event in events], dropped)

    @staticmethod
    def _new(batch: pa.RecordBatch, mark: Watermark, changes: bool) -> Any:
        if changes:
            lsn, order = envelope.positions(batch)
            keep = envelope.after_position(lsn, order, mark.position)
            mark.position = envelope.highest(lsn, order, mark.position)
            return keep
        if "source_offset" in batch.schema.names:
            fresh, mark.lanes = coordinates.drop_replays(batch, mark.lanes)
            return fresh.to_numpy(zero_copy_only=False)
        return np.ones(len(batch), np.bool_)

    def _changes(self, index: int, source: Source, batch: pa.RecordBatch, chunk: Chunk, rows: Any) -> list[Any]:
        """A deleted row speaks by its image before, which has at least the key; any other by the one after."""
        deleted = pc.fill_null(pc.equal(batch.column("op"), "d"), False)
        image = pc.if_else(deleted, batch.column("before"), batch.column("after"))
        row = pa.RecordBatch.from_arrays(image.flatten(), schema=pa.schema(list(image.type)))
        here = self._meets(index, source, row)
        keys = [_column(row, source.key[name], source).to_pylist() for name in self._key]
        columns = {name: _column(row, path, source) for name, path in source.columns.items()}
        unread = {name: envelope.unavailable_mask(column).to_pylist() for name, column in columns.items()}
        lists = {name: column.to_pylist() for name, column in columns.items()}
        out = []
        for i, (op, gone) in enumerate(zip(batch.column("op").to_pylist(), deleted.to_pylist(), strict=True)):
            if op not in ("c", "u", "r", "d") or (self._events and not here[i]):
                continue
            key = tuple(_plain(column[i]) for column in keys)
            values: Values | None = None
            kept: tuple[str, ...] = ()
            if (here[i] and not gone) or self._events:
                values = {name: _plain(column[i]) for name, column in lists.items()}
                kept = tuple(name for name, mask in unread.items() if mask[i])
            out.append(self._event(index, key, values, chunk, int(rows[i]), kept=kept, op=op))
        return out

    def _rows(self, index: int, source: Source, batch: pa.RecordBatch, chunk: Chunk, rows: Any) -> list[Any]:
        here = self._meets(index, source, batch)
        keys = [_column(batch, source.key[name], source).to_pylist() for name in self._key]
        columns = {c: _column(batch, f, source).to_pylist() for c, f in source.columns.items()}
        out = []
        for i in range(len(batch)):
            if self._events and not here[i]:
                continue
            key = tuple(_plain(column[i]) for column in keys)
            values = {c: _plain(column[i]) for c, column in columns.items()} if here[i] else None
            out.append(self._event(index, key, values, chunk, int(rows[i])))
        return out

    def _pivot(self, index: int, source: Source, batch: pa.RecordBatch, chunk: Chunk, rows: Any) -> list[Any]:
        """Values of the KPIs of a pivot; of a KPI with windows, the newest window's counts."""
        columns = {kpi: column for column, kpi in source.pivot.items()}
        mine = np.flatnonzero(pc.is_in(batch.column("kpi"), pa.array(list(columns))).to_numpy(zero_copy_only=False))
        some = batch.select(["kpi", "group", "value", "revision"]).take(pa.array(mine)).to_pylist()
        windows = pc.fill_null(batch.column("window_start").cast(pa.int64()), 0).to_numpy()
        out = []
        for i, row in zip(mine.tolist(), some, strict=True):
            group = orjson.loads(row["group"])
            missing = set(source.key.values()) - group.keys()
            if missing:
                raise ContractError(f"KPI {row['kpi']} has no dimension {min(missing)}", where=f"sources.{index}.key")
            key = tuple(_plain(group[source.key[name]]) for name in self._key)
            column = columns[row["kpi"]]
            rank = {column: (int(windows[i]), int(row["revision"]))}
            out.append(self._event(index, key, {column: _plain(row["value"])}, chunk, int(rows[i]), ranks=rank))
        return out

    def _meets(self, index: int, source: Source, batch: pa.RecordBatch) -> list[bool]:
        if not source.filter:
            return [True] * len(batch)
        known = self._filters.get(index)
        if known is None or known[0] != batch.schema:
            known = self._filters[index] = (batch.schema, compile_expression(source.filter, batch.schema))
        met: list[bool] = pc.fill_null(known[1](batch), False).to_pylist()
        return met

    @staticmethod
    def _event(index: int, key: Any, values: Values | None, chunk: Chunk, row: int, **more: Any) -> tuple[int, Event]:
        offset = int(chunk.offsets[row])
        at = f"{chunk.topic}-{chunk.partition}-{offset}"
        return offset, Event(index, key, values, at, int(chunk.timestamps[row]), **more)


def _column(batch: pa.RecordBatch, path: str, source: Source) -> pa.Array:
    """A field by its dotted path. Raises `ContractError` when the topic has no such field."""
    name, *inner = path.split(".")
    if name not in batch.schema.names:
        raise ContractError(f"{source.topic} has no field {path!r}", hint=", ".join(batch.schema.names))
    column = batch.column(name)
    for part in inner:
        if pa.types.is_null(column.type):
            break
        if not pa.types.is_struct(column.type) or column.type.get_field_index(part) < 0:
            raise ContractError(f"{source.topic} has no field {path!r}")
        column = pc.struct_field(column, part)
    return column


def _plain(value: Any) -> Any:
    """A value as plain JSON data: decimals and times as text, bytes as base64, what is not a number as null."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    raise ContractError(f"values of type {type(value).__name__} cannot be sent")
