"""A topic's records to columns: each under the schema that its header names, all as one batch in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.errors import ContractError, SchemaNotFoundError
from schemas.codec import reasons
from schemas.codec.decode_kernel import read_headers
from schemas.codec.decoder import Decoded, Decoder, Int64s, null_indexes
from schemas.codec.resolve import check_schema, conform_batch, forbidden_nulls, read_as, union_schema
from schemas.codec.rows import completed, narrow, narrowed, unknown

_UNFRAMED = -1


class ChunkDecoder:
    """Decodes records in Confluent framing, whatever mix of schemas they were written under.

    `schema_of` gives the schema of an id, as `Registry.schema` does; it is asked once for each id in a chunk, so that
    it can notice an id that changed its meaning. Its `SchemaNotFoundError` makes the records with that id bad, as does
    its `ContractError`; any other error, first of all `UnavailableError`, leaves `decode` before anything was done.

    With `reader`, batches have exactly that schema. Without, they have the union of the schemas seen so far, which
    only grows: a schema that fits none of it makes its records bad with the reason `incompatible schema`. In both
    cases fields are found by the aliases of the reader, or of `names`, too, and have its defaults where a writer did
    not have them.

    With `used`, the names of row columns, rows of change events (`before`, `after`) have exactly these: what becomes of
    others makes no record bad, and one that no schema so far has is null, of type null. Records that are no change
    events keep all their fields, and have these besides.
    Not to be used by two threads at once.
    """

    def __init__(
        self,
        schema_of: Callable[[int], dict[str, Any]],
        reader: pa.Schema | None = None,
        *,
        names: pa.Schema | None = None,
        used: Sequence[str] | None = None,
    ) -> None:
        self._schema_of = schema_of
        self._reader = reader
        self._used = used
        self._met: pa.Schema | None = None
        self._names = names if names is not None else reader
        self._decoders: dict[int, tuple[dict[str, Any], Decoder | str]] = {}
        self.schema: pa.Schema | None = reader

    @property
    def unknown(self) -> tuple[str, ...]:
        """Those of `used` that no schema so far has."""
        return unknown(self._met, self._used or ())

    def learn(self, ids: Iterable[int]) -> bool:
        """Take schemas as met before their first record, in this order, until one has been for each column of `used`:
        whether there was any. Records of earlier schemas then have the defaults of columns that were added later, as
        they have among records of both. Raises what `schema_of` does, but for errors that make records bad."""
        found = False
        for schema_id in ids:
            found = not isinstance(self._decoder(schema_id), str) or found
            if found and not self.unknown:
                break
        return found

    def decode(self, values: pa.BinaryArray) -> Decoded:
        """Every record is in exactly one of `rows`, `bad` and `nulls` of the result. Bad records raise nothing."""
        nulls = null_indexes(values)
        ids = _schema_ids(values, nulls)
        framed = np.flatnonzero(ids >= 0)
        unframed = np.setdiff1d(np.flatnonzero(ids < 0), nulls, assume_unique=True)
        groups = list(_groups(ids, framed))
        decoders = [(schema_id, indexes, self._decoder(schema_id)) for schema_id, indexes in groups]
        bad, texts = [unframed], [reasons.NOT_FRAMED] * len(unframed)
        parts: list[tuple[Int64s, pa.RecordBatch]] = []
        for _, indexes, decoder in decoders:
            if isinstance(decoder, str):
                bad.append(indexes)
                texts += [decoder] * len(indexes)
            else:
                part = decoder.decode_some(values, indexes, nulls)
                if self._used is not None:
                    part = replace(part, batch=narrow(part.batch, self._used))
                if self._names is not None:
                    part = replace(part, batch=read_as(part.batch, self._names))
                bad.append(part.bad)
                texts += part.reasons
                parts.append(self._without_forbidden(part, bad, texts))
        rows, batch = self._join(parts)
        all_bad = np.concatenate(bad)
        order = np.argsort(all_bad, kind="stable")
        return Decoded(batch, rows, all_bad[order], [texts[i] for i in order.tolist()], nulls, ids)

    def _decoder(self, schema_id: int) -> Decoder | str:
        """The decoder of an id, or the reason for which its records are bad."""
        try:
            schema = self._schema_of(schema_id)
        except SchemaNotFoundError:
            return reasons.reason(reasons.UNKNOWN_SCHEMA, schema_id)
        except ContractError as e:
            return reasons.reason(reasons.UNSUPPORTED_SCHEMA, f"{schema_id}, {e.what}")
        known = self._decoders.get(schema_id)
        if known is None or (known[0] is not schema and known[0] != schema):
            known = (schema, self._new_decoder(schema_id, schema))
            self._decoders[schema_id] = known
        return known[1]

    def _new_decoder(self, schema_id: int, schema: dict[str, Any]) -> Decoder | str:
        try:
            decoder = Decoder(schema)
        except ContractError as e:
            return reasons.reason(reasons.UNSUPPORTED_SCHEMA, f"{schema_id}, {e.where} {e.what}")
        schema = decoder.schema if self._used is None else narrowed(decoder.schema, self._used)
        try:
            if self._names is not None:
                schema = read_as(pa.RecordBatch.from_pylist([], schema=schema), self._names).schema
            if self._reader is not None:
                check_schema(schema, self._reader)
            else:
                # What was met and not what is given: a column of type null has lost the default of who has it.
                self._met = union_schema(self._met, schema) if self._met else schema
                self.schema = self._met if self._used is None else completed(self._met, self._used)
        except ContractError as e:
            return reasons.reason(reasons.INCOMPATIBLE_SCHEMA, f"{schema_id}, {e.where} {e.what}")
        return decoder

    def _without_forbidden(self, part: Decoded, bad: list[Int64s], texts: list[str]) -> tuple[Int64s, pa.RecordBatch]:
        keep = np.ones(len(part.rows), np.bool_)
        for path, nulls in forbidden_nulls(part.batch, self._reader) if self._reader is not None else []:
            fresh = nulls & keep
            keep &= ~nulls
            bad.append(part.rows[fresh])
            texts += [reasons.reason(reasons.FORBIDDEN_NULL, path)] * int(fresh.sum())
        if keep.all():
            return part.rows, part.batch
        return part.rows[keep], part.batch.filter(pa.array(keep))

    def _join(self, parts: list[tuple[Int64s, pa.RecordBatch]]) -> tuple[Int64s, pa.RecordBatch]:
        schema = self.schema or pa.schema([])
        batches = [conform_batch(batch, schema) for _, batch in parts]
        if not batches:
            return np.empty(0, np.int64), pa.RecordBatch.from_pylist([], schema=schema)
        if len(batches) == 1:
            return parts[0][0], batches[0]
        rows = np.concatenate([indexes for indexes, _ in parts])
        batch = pa.concat_batches(batches)
        if np.all(rows[1:] > rows[:-1]):
            return rows, batch
        order = np.argsort(rows, kind="stable")
        return rows[order], batch.take(pa.array(order))


def _schema_ids(values: pa.BinaryArray, nulls: Int64s) -> Int64s:
    ids = np.full(len(values), _UNFRAMED, np.int64)
    _, offsets, data = values.buffers()
    if len(values) and data is not None:
        read_headers(data.address, offsets.address + 4 * values.offset, len(values), ids.ctypes.data)
    ids[nulls] = _UNFRAMED
    return ids


def _groups(ids: Int64s, framed: Int64s) -> list[tuple[int, Int64s]]:
    """Each schema id with the indexes of its records, in the order of first appearance."""
    seen = ids[framed]
    if not len(seen):
        return []
    if np.all(seen == seen[0]):
        return [(int(seen[0]), framed)]
    unique, first, counts = np.unique(seen, return_index=True, return_counts=True)
    members = np.split(framed[np.argsort(seen, kind="stable")], np.cumsum(counts)[:-1])
    return [(int(unique[i]), members[i]) for i in np.argsort(first).tolist()]
