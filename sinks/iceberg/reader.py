"""From chunks as Kafka has them to slices as tables take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.compute as pc

from headrace.errors import ContractError, SchemaNotFoundError
from headrace.kafka import Chunk
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
        for part, fields in self._by_key_schema(chunk):
            slices.append(self._slice(part, start, fields))
            start = part.next_offset
        return slices

    def _slice(self, chunk: Chunk, start: int, key_fields: tuple[str, ...] | None) -> Slice:
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
        )

    def _by_key_schema(self, chunk: Chunk) -> list[tuple[Chunk, tuple[str, ...] | None]]:
        if chunk.keys.null_count == len(chunk):
            return [(chunk, ())]
        headers = pc.binary_slice(chunk.keys, 0, 5).dictionary_encode()
        known = headers.dictionary.to_pylist()
        if len(known) == 1:
            return [(chunk, self._fields(known[0]))]
        codes = pc.fill_null_backward(pc.fill_null_forward(headers.indices)).to_numpy(zero_copy_only=False)
        starts = np.flatnonzero(np.r_[True, np.diff(codes) != 0])
        ends = [*starts[1:], len(codes)]
        return [
            (chunk.slice(int(start), int(end - start)), self._fields(known[codes[start]]))
            for start, end in zip(starts, ends, strict=True)
        ]

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
