"""From chunks as Kafka has them to slices as tables take them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import ContractError, SchemaNotFoundError
from headrace.kafka import Chunk
from headrace.kafka.columns import concat_binary
from schemas import baseline, envelope
from schemas.avro import PRIMITIVES
from schemas.codec import ChunkDecoder, Decoded
from schemas.own import SchemaOf, full_name, own_schemas
from sinks.iceberg.slices import Slice

Int64 = npt.NDArray[np.int64]


BASELINE = full_name(baseline.KEY)


@dataclass(frozen=True, eq=False)
class _Piece:
    """Records of one schema, whose headers are `key` and `value`; the rest as in a slice."""

    chunk: Chunk
    start: int
    key: bytes | None = None
    value: bytes | None = None
    baseline: int = 0
    baseline_time: int = 0


class TopicReader:
    """Decodes the chunks of one topic. One thread at a time.

    `changes_of` is the topic, where its tables follow a source's schema: a slice has records of one schema of the
    value, and of one schema of the key, whose fields are named. Values under a schema of another topic do not decode:
    it would give the tables its columns.
    """

    def __init__(self, schema_of: SchemaOf, *, changes_of: str = "") -> None:
        self._schema_of = schema_of
        self._changes_of = changes_of
        self._value_schema = own_schemas(changes_of, schema_of, captured=True) if changes_of else schema_of
        self._decoders: dict[bytes | None, ChunkDecoder] = {}

    def read(self, chunk: Chunk, start: int) -> list[Slice]:
        """`read_all` of one chunk."""
        return self.read_all([(chunk, start)])

    def read_all(self, chunks: Sequence[tuple[Chunk, int]]) -> list[Slice]:
        """Chunks, each with the offset from which it counts, as slices from there to its next offset; usually one a
        chunk, in order.

        Values under one schema are decoded together: chunks that are not small should come alone, since the values of
        several are copied. Raises `UnavailableError` when a schema is needed that only the registry knows, and
        `IdentityError` when an id has changed its meaning.
        """
        pieces = [piece for chunk, start in chunks for piece in self._pieces(chunk, start)]
        alike: dict[bytes | None, list[_Piece]] = defaultdict(list)
        for piece in pieces:
            alike[piece.value].append(piece)
        decoded = {value: self._decoded(value, [p.chunk.values for p in group]) for value, group in alike.items()}
        return [self._slice(piece, next(decoded[piece.value])) for piece in pieces]

    def _pieces(self, chunk: Chunk, start: int) -> Iterator[_Piece]:
        if not self._changes_of:
            yield _Piece(chunk, start)
            return
        marks = np.flatnonzero(self._baselines(chunk))
        offsets = baseline.offsets(chunk.keys.take(pa.array(marks)), chunk.offsets[marks])
        begins = int(offsets.max(initial=0))
        said = int(chunk.offsets[marks[offsets >= 0]].max(initial=-1))
        for part, key, value in self._by_schema(chunk):
            record = np.flatnonzero(part.offsets == said)
            yield _Piece(part, start, key, value, begins, int(part.timestamps[record[0]]) if len(record) else 0)
            start = part.next_offset

    def _decoded(self, value: bytes | None, parts: Sequence[pa.BinaryArray]) -> Iterator[Decoded]:
        decoder = self._decoders.get(value)
        if decoder is None:
            decoder = self._decoders[value] = ChunkDecoder(self._value_schema)
        return iter(_apart(decoder.decode(concat_binary(parts)), [len(part) for part in parts]))

    def _slice(self, piece: _Piece, decoded: Decoded) -> Slice:
        chunk, keyed = piece.chunk, bool(self._changes_of)
        key, value = _known(self._schema_of, piece.key), _known(self._value_schema, piece.value)
        return Slice(
            topic=chunk.topic,
            partition=chunk.partition,
            start=piece.start,
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
            key_fields=self._fields(piece.key) if keyed else None,
            key_named=keyed and _beside(key, value),
            key_unlike=_unlike(key, value),
            schema=value,
            baseline=piece.baseline,
            baseline_time=piece.baseline_time,
        )

    def _baselines(self, chunk: Chunk) -> npt.NDArray[np.bool_]:
        """Which records are baselines."""
        headers = pc.binary_slice(chunk.keys, 0, 5)
        marks = [h for h in pc.unique(headers).to_pylist() if self._is_baseline(h)]
        found: npt.NDArray[np.bool_] = pc.is_in(headers, pa.array(marks, headers.type)).to_numpy(zero_copy_only=False)
        return found

    def _by_schema(self, chunk: Chunk) -> list[tuple[Chunk, bytes | None, bytes | None]]:
        """Runs of one schema each, with the headers of key and value. Records without a key are runs of their own: a
        change that has lost its key is not one of its neighbours'. Baselines and tombstones, and what names an unknown
        schema, go with their neighbours."""
        keys, key_of = _headers(chunk.keys, lambda header: not self._is_baseline(header))
        values, value_of = _headers(chunk.values, lambda header: _known(self._value_schema, header) is not None)
        changes = np.r_[True, (np.diff(key_of) != 0) | (np.diff(value_of) != 0)]
        if len(chunk) == 0 or changes.sum() == 1:
            whole = slice(0, 1)
            return [(chunk, _at(keys, key_of[whole]), _at(values, value_of[whole]))]
        starts = np.flatnonzero(changes)
        return [
            (chunk.slice(int(s), int(e - s)), _at(keys, key_of[s : s + 1]), _at(values, value_of[s : s + 1]))
            for s, e in zip(starts, [*starts[1:], len(chunk)], strict=True)
        ]

    def _is_baseline(self, header: bytes | None) -> bool:
        """By the schema's name too: a table's key may have a field of the same name."""
        schema = _known(self._schema_of, header)
        return schema is not None and full_name(schema) == BASELINE and self._fields(header) == baseline.FIELDS

    def _fields(self, header: bytes | None) -> tuple[str, ...] | None:
        """Names of the fields of a key that begins like this, none for no key; None for one that is not a record."""
        if header is None:
            return ()
        schema = _known(self._schema_of, header) or {}
        fields = schema.get("fields")
        return tuple(field["name"] for field in fields) if schema.get("type") == "record" and fields else None


def _known(schema_of: SchemaOf, header: bytes | None) -> dict[str, Any] | None:
    """The schema that the first bytes of a key or value name; None when they name none that is known."""
    if header is None or len(header) < 5 or header[0] != 0:
        return None
    try:
        return schema_of(int.from_bytes(header[1:], "big"))
    except (SchemaNotFoundError, ContractError):
        return None


def _beside(key: Mapping[str, Any] | None, value: Mapping[str, Any] | None) -> bool:
    """Whether a key's schema is named as Debezium names that of a table: `Key`, in the namespace of its events."""
    if key is None or value is None:
        return False
    space, dot, _ = full_name(value).rpartition(".")
    return full_name(key) == f"{space}{dot}Key"


def _unlike(key: Mapping[str, Any] | None, value: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Fields of a key that are of another primitive type than the row's: Debezium has one for both."""
    if key is None or value is None or not envelope.is_envelope(value):
        return ()
    kinds = {field["name"]: _primitive(field["type"]) for field in key.get("fields", ())}
    row = [field for field in envelope.row_schema(value)["fields"] if field["name"] in kinds]
    return tuple(field["name"] for field in row if _primitive(field["type"]) != kinds[field["name"]])


def _primitive(kind: Any) -> str:
    """What a type is encoded as, null or not; all that are not primitive are alike."""
    if isinstance(kind, list):
        kind = next((branch for branch in kind if branch != "null"), "null")
    if isinstance(kind, Mapping):
        return _primitive(kind["type"])
    return kind if kind in PRIMITIVES else "nested"


def _apart(decoded: Decoded, lengths: Sequence[int]) -> list[Decoded]:
    """What was decoded of several arrays as one, array by array."""
    if len(lengths) == 1:
        return [decoded]
    ends = np.cumsum([0, *lengths])
    rows, bad, nulls = (np.searchsorted(which, ends) for which in (decoded.rows, decoded.bad, decoded.nulls))
    return [
        Decoded(
            decoded.batch.slice(rows[i], rows[i + 1] - rows[i]),
            decoded.rows[rows[i] : rows[i + 1]] - ends[i],
            decoded.bad[bad[i] : bad[i + 1]] - ends[i],
            decoded.reasons[bad[i] : bad[i + 1]],
            decoded.nulls[nulls[i] : nulls[i + 1]] - ends[i],
            decoded.schema_ids[ends[i] : ends[i + 1]],
        )
        for i in range(len(lengths))
    ]


def _headers(column: pa.BinaryArray, counts: Callable[[bytes | None], bool]) -> tuple[list[bytes | None], Int64]:
    """The distinct first five bytes that count, None where there are none, and which of them each row has or takes from
    its neighbours; -1 when no row has any."""
    encoded = pc.binary_slice(column, 0, 5).dictionary_encode(null_encoding="encode")
    known = encoded.dictionary.to_pylist()
    codes = encoded.indices
    if others := [code for code, header in enumerate(known) if not counts(header)]:
        codes = pc.if_else(pc.is_in(codes, pa.array(others, codes.type)), None, codes)
    if codes.null_count:
        codes = pc.fill_null(pc.fill_null_backward(pc.fill_null_forward(codes)), -1)
    return known, codes.to_numpy(zero_copy_only=False).astype(np.int64)


def _at(headers: list[bytes | None], codes: Int64) -> bytes | None:
    return headers[codes[0]] if len(codes) and codes[0] >= 0 else None
