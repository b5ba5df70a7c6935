"""Avro messages to Arrow columns and back, exactly: what does not decode is named row by row, with a reason.

fastavro is the measure: the same values, the same bytes, the same messages refused, but for these.
- Refused here alone, since the type has no such value or the claim cannot be true: ints beyond 32 bits, booleans
  but 0 and 1, varints of more than 10 bytes, negative lengths and indexes, more items than bytes, decimals with more
  digits than their precision, bytes after the record, and messages that would take more memory than is in proportion
  to their size (`Decoder.decode` says how much).
- UUIDs stay text and are not checked. Nanoseconds become microseconds. A map keeps a key that comes twice.
- Debezium's semantic types are understood, with their own rules for what lies out of range (see schemas.types).
- A reader's schema is one of columns: fields are found by name, alias and default, values widen (see `resolve`), and an
  enum's default stands for symbols that it lacks. Not done: an enum without a default keeps such symbols; bytes are no
  string; a type is no branch of a union of several, nor a branch the type; what a union's branches are named is not
  looked for by alias, nor a type.
- Recursive types, arrays of items that take no bytes and unions of null alone have no columns: `ContractError`.
"""

from __future__ import annotations

import pyarrow as pa

from schemas.codec.chunks import ChunkDecoder
from schemas.codec.decoder import Decoded, Decoder
from schemas.codec.encoder import Encoder
from schemas.codec.reasons import rule_of
from schemas.types import arrow_schema

__all__ = ["ChunkDecoder", "Decoded", "Decoder", "Encoder", "arrow_schema", "rule_of", "warm"]


def warm() -> None:
    """Run both interpreters once. To be called at start-up: that loads their kernels, or compiles them where that was
    not done, and fills what is lazy in Arrow and NumPy."""
    schema = {"type": "record", "name": "Warm", "fields": [{"name": "text", "type": ["null", "string"]}]}
    Decoder(schema).decode(Encoder(schema, 1).encode(pa.RecordBatch.from_pydict({"text": ["warm", None]})))
