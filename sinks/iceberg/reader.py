"""From chunks as Kafka has them to slices as tables take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import ContractError, SchemaNotFoundError
from headrace.kafka import Chunk
from schemas import baseline
from schemas.codec import ChunkDecoder
from sinks.iceberg.slices import Slice

Int64 = npt.NDArray[np.int64]


class TopicReader:
    """Decodes the chunks of one topic. One thread at a time.

    `with_keys`, for topics whose tables follow a source's schema: a slice has records of one schema of the value, and
    of one schema of the key, whose fields are named.
    """

    def __init__(self, schema_of: Callable[[int], dict[str, Any]], *, with_keys: bool) -> None:
        self._schema_of = schema_of
        self._with_keys = with_keys
        self._decoders: dict[bytes | None, ChunkDecoder] = {}

    def read(self, chunk: Chunk, start: int) -> list[Slice]:
        """The chunk as slices that reach from offset `start` to the chunk's next offset; usually one.

        Raises `UnavailableError` when a schema is needed that only the registry knows, and `IdentityError` when an id
        has changed its meaning.
        """
        if not self._with_keys:
            return [self._slice(chunk, start, None, None)]
        slices = []
        marks = self._baselines(chunk)
        begins = baseline.highest(chunk.keys.filter(pa.array(marks))) if marks.any() else 0
        said = int(chunk.offsets[marks][-1]) if marks.any() else -1
        for part, key, value in self._by_schema(chunk):
            piece = self._slice(part, start, key, value)
            record = np.flatnonzero(part.offsets == said)
            written = int(part.timestamps[record[0]]) if len(record) else 0
            slices.append(replace(piece, baseline=begins, baseline_time=written))
            start = part.next_offset
        return slices

    def _slice(self, chunk: Chunk, start: int, key: bytes | None, value: bytes | None) -> Slice:
        decoder = self._decoders.get(value)
        if decoder is None:
            decoder = self._decoders[value] = ChunkDecoder(self._schema_of)
        decoded = decoder.decode(chunk.values)
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
            key_fields=self._fields(key) if self._with_keys else None,
            schema=self._schema(value),
        )

    def _baselines(self, chunk: Chunk) -> npt.NDArray[np.bool_]:
        """Which records are baselines."""
        headers = pc.binary_slice(chunk.keys, 0, 5)
        marks = [h for h in pc.unique(headers).to_pylist() if self._fields(h) == baseline.FIELDS]
        found: npt.NDArray[np.bool_] = pc.is_in(headers, pa.array(marks, headers.type)).to_numpy(zero_copy_only=False)
        return found

    def _by_schema(self, chunk: Chunk) -> list[tuple[Chunk, bytes | None, bytes | None]]:
        """Runs of one schema each, with the headers of key and value. What has none, as tombstones, baselines and keys
        of truncations, or names an unknown schema, goes with its neighbours."""
        keys, key_of = _headers(chunk.keys, lambda header: self._fields(header) != baseline.FIELDS)
        values, value_of = _headers(chunk.values, lambda header: self._schema(header) is not None)
        changes = np.r_[True, (np.diff(key_of) != 0) | (np.diff(value_of) != 0)]
        if len(chunk) == 0 or changes.sum() == 1:
            whole = slice(0, 1)
            return [(chunk, _at(keys, key_of[whole]), _at(values, value_of[whole]))]
        starts = np.flatnonzero(changes)
        return [
            (chunk.slice(int(s), int(e - s)), _at(keys, key_of[s : s + 1]), _at(values, value_of[s : s + 1]))
            for s, e in zip(starts, [*starts[1:], len(chunk)], strict=True)
        ]

    def _schema(self, header: bytes | None) -> dict[str, Any] | None:
        """The schema that a value's first bytes name; None when they name none that is known."""
        if header is None or len(header) < 5 or header[0] != 0:
            return None
        try:
            return self._schema_of(int.from_bytes(header[1:], "big"))
        except (SchemaNotFoundError, ContractError):
            return None

    def _fields(self, header: bytes | None) -> tuple[str, ...] | None:
        """Names of the fields of a key that begins like this, none for no key; None for one that is not a record."""
        if header is None:
            return ()
        schema = self._schema(header) or {}
        fields = schema.get("fields")
        return tuple(field["name"] for field in fields) if schema.get("type") == "record" and fields else None


def _headers(column: pa.BinaryArray, counts: Callable[[bytes], bool]) -> tuple[list[bytes], Int64]:
    """The distinct first five bytes that count, and which of them each row has or takes from its neighbours; -1 when
    no row has any."""
    encoded = pc.binary_slice(column, 0, 5).dictionary_encode()
    known = encoded.dictionary.to_pylist()
    codes = encoded.indices
    if others := [code for code, header in enumerate(known) if not counts(header)]:
        codes = pc.if_else(pc.is_in(codes, pa.array(others, codes.type)), None, codes)
    if codes.null_count:
        codes = pc.fill_null(pc.fill_null_backward(pc.fill_null_forward(codes)), -1)
    return known, codes.to_numpy(zero_copy_only=False).astype(np.int64)


def _at(headers: list[bytes], codes: Int64) -> bytes | None:
    return headers[codes[0]] if len(codes) and codes[0] >= 0 else None
