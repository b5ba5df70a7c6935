"""What an added column holds in the rows that were there before, by the default in its writer's schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from headrace.errors import ContractError
from schemas.codec.defaults import default_array

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
    try:
        scalar = default_array(kind, value)[0]
    except ContractError:
        return None
    return None if _is_filler(scalar, kind) else scalar


def _is_filler(value: pa.Scalar, kind: Any) -> bool:
    if pa.types.is_temporal(value.type):
        return bool(value.value == 0)
    uuid = isinstance(kind, Mapping) and kind.get("connect.name") == "io.debezium.data.Uuid"
    return uuid and value.as_py() == NIL_UUID
