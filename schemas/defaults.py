"""What an added column holds in the rows that were there before, by the default in its writer's schema."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import fastavro
import pyarrow as pa

from headrace.errors import ContractError
from schemas.codec import Decoder

NIL_UUID = "00000000-0000-0000-0000-000000000000"


def default_scalar(field: Mapping[str, Any]) -> pa.Scalar | None:
    """The default of an Avro field as a record that states it would decode; None when it has none, or null.

    None too where Debezium puts a filler for a default that it cannot evaluate, such as `now()`: the nil UUID, and the
    beginning of the epoch for times. Fillers of other types, 0 and "", cannot be told from defaults.
    """
    value = field.get("default")
    if value is None:
        return None
    kind = field["type"][0] if isinstance(field["type"], list) else field["type"]
    plain = fastavro.parse_schema({"type": "record", "name": "Row", "fields": [{"name": "x", "type": _plain(kind)}]})
    encoded = io.BytesIO()
    try:
        fastavro.schemaless_writer(encoded, plain, {"x": _bytes(value, kind)})
        decoder = Decoder({"type": "record", "name": "Row", "fields": [{"name": "x", "type": kind}]})
    except (ValueError, TypeError, AttributeError, ContractError):
        return None
    decoded = decoder.decode(pa.array([encoded.getvalue()], pa.binary()), skip=0)
    if len(decoded.bad):
        return None
    scalar = decoded.batch.column(0)[0]
    return None if _is_filler(scalar, kind) else scalar


def _plain(kind: Any) -> Any:
    """A type without its meaning: what is written is what the JSON says."""
    if isinstance(kind, Mapping):
        bare = {k: _plain(v) if k in ("items", "values") else v for k, v in kind.items() if k != "logicalType"}
        return bare if kind["type"] in ("record", "enum", "fixed", "array", "map") else kind["type"]
    return kind


def _bytes(value: Any, kind: Any) -> Any:
    name = kind["type"] if isinstance(kind, Mapping) else kind
    return value.encode("latin-1") if name in ("bytes", "fixed") else value


def _is_filler(value: pa.Scalar, kind: Any) -> bool:
    if pa.types.is_temporal(value.type):
        return bool(value.value == 0)
    uuid = isinstance(kind, Mapping) and kind.get("connect.name") == "io.debezium.data.Uuid"
    return uuid and value.as_py() == NIL_UUID
