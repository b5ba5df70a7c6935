"""Avro messages to Arrow columns and back, exactly: what does not decode is named row by row, with a reason."""

from __future__ import annotations

import pyarrow as pa

from schemas.codec.chunks import ChunkDecoder
from schemas.codec.decoder import Decoded, Decoder
from schemas.codec.encoder import Encoder
from schemas.codec.reasons import rule_of
from schemas.types import arrow_schema

__all__ = ["ChunkDecoder", "Decoded", "Decoder", "Encoder", "arrow_schema", "rule_of", "warm"]


def warm() -> None:
    """Run both interpreters once. To be called at start-up: importing this package compiled them, or read them from
    numba's cache; the first call fills what is lazy in Arrow and NumPy."""
    schema = {"type": "record", "name": "Warm", "fields": [{"name": "text", "type": ["null", "string"]}]}
    Decoder(schema).decode(Encoder(schema, 1).encode(pa.RecordBatch.from_pydict({"text": ["warm", None]})))
