"""From chunks as Kafka has them to slices as tables take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import ContractError, SchemaNotFoundError
from headrace.kafka import Chunk
from schemas import baseline
from schemas.codec import ChunkDecoder
from sinks.iceberg.slices import Slice


class TopicReader:
    """Decodes the chunks of one topic; `with_keys` also learns the names of the key's fields. One thread at a time."""

    def __init__(self, schema_of: Callable[[int], dict[str, Any]], *, with_keys: bool) -> None:
        self._decoder = ChunkDecoder(schema_of)
        self._schema_of = schema_of
        self._with_keys = with_keys

    def read(self, chunk: Chunk, start: int) -> list[Slice]:
        """The chunk as slices that reach from offset `start` to the chunk's next offset; usually one.

        More than one where the key's schema changes within the chunk. Raises `UnavailableError` when a schema is
        needed that only the registry knows, and `IdentityError` when an id has changed its meaning.
        """
        if not self._with_keys:
            return [self._slice(chunk, start, None)]
        slices = []
        parts, begins = self._by_key_schema(chunk)
        for part, fields in parts:
            slices.append(self._slice(part, start, fields, begins))
            start = part.next_offset
        return slices

    def _slice(self, chunk: Chunk, start: int, key_fields: tuple[str, ...] | None, begins: int = 0) -> Slice:
        decoded = self._decoder.decode(chunk.values)
        return Slice(
            topic=chunk.topic,
            partition=chunk.partition,
            start=start,
            next_offset=chunk.next_offset,
            keys=chunk.keys,
            values=chunk.values,
            offsets=chunk.offsets,
            timestamps=chunk.timestamps,
            batch=decoded.batch,
            rows=decoded.rows,
            nulls=decoded.nulls,
            bad=decoded.bad,
            reasons=tuple(decoded.reasons),
            key_fields=key_fields,
            baseline=begins,
        )

    def _by_key_schema(self, chunk: Chunk) -> tuple[list[tuple[Chunk, tuple[str, ...] | None]], int]:
        """Parts of the chunk with the names in their keys, and the highest baseline in it, 0 for none."""
        if chunk.keys.null_count == len(chunk):
            return [(chunk, ())], 0
        headers = pc.binary_slice(chunk.keys, 0, 5).dictionary_encode()
        known = [self._fields(header) for header in headers.dictionary.to_pylist()]
        codes, begins = headers.indices, 0
        if baseline.FIELDS in known:
            marks = pc.fill_null(pc.is_in(codes, pa.array(_places(known, baseline.FIELDS), codes.type)), False)
            begins = baseline.highest(chunk.keys.filter(marks))
            codes = pc.if_else(marks, None, codes)
            if codes.null_count == len(codes):
                return [(chunk, ())], begins
        if len(known) == 1:
            return [(chunk, known[0])], begins
        numbers = pc.fill_null_backward(pc.fill_null_forward(codes)).to_numpy(zero_copy_only=False)
        starts = np.flatnonzero(np.r_[True, np.diff(numbers) != 0])
        ends = [*starts[1:], len(numbers)]
        parts = [
            (chunk.slice(int(start), int(end - start)), known[numbers[start]])
            for start, end in zip(starts, ends, strict=True)
        ]
        return parts, begins

    def _fields(self, header: bytes) -> tuple[str, ...] | None:
        """Names of the fields of the key whose value begins like this; None for one that is not an Avro record."""
        if len(header) < 5 or header[0] != 0:
            return None
        try:
            schema = self._schema_of(int.from_bytes(header[1:], "big"))
        except (SchemaNotFoundError, ContractError):
            return None
        fields = schema.get("fields")
        return tuple(field["name"] for field in fields) if schema.get("type") == "record" and fields else None


def _places(known: list[tuple[str, ...] | None], wanted: tuple[str, ...]) -> list[int]:
    return [place for place, fields in enumerate(known) if fields == wanted]
