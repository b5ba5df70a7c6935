"""A baseline: the offset of a change topic's partition from which on the topic states the whole table anew.

It ends a repeated full snapshot. While nobody listened rows were deleted, and a snapshot has no events for those; but
it has one for every row that is there. So, once its rows are written, each partition gets a record that says where they
began: a row whose newest event is older than that is not in the source any more. This is exact while changes stream,
wherever among them the record stands, and one partition needs to know nothing of another.

The record is a tombstone, so that no other reader takes it for a change; its key is of a schema of its own (`KEY`), in
the framing of all keys.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.errors import DecodeError

SUBJECT = "headrace.baseline"
FIELD = "baseline"
KEY: dict[str, Any] = {
    "type": "record",
    "name": "Baseline",
    "namespace": "headrace",
    "doc": "Rows of this partition whose newest event is before this offset are not in the source any more.",
    "fields": [{"name": FIELD, "type": "long"}],
}
FIELDS = (FIELD,)
# Keys can say more than an offset can be.
_HIGHEST = np.iinfo(np.int64).max


def key(schema_id: int, offset: int) -> bytes:
    """The key of the record that says so; `schema_id` is that of `KEY`. The inverse of `offset_of`."""
    number, body = offset << 1, bytearray()
    while number > 0x7F:
        body.append(number & 0x7F | 0x80)
        number >>= 7
    body.append(number)
    return b"\0" + schema_id.to_bytes(4, "big") + bytes(body)


def offset_of(key: bytes) -> int:
    """The offset in such a key. Raises `DecodeError`."""
    number = 0
    for place, byte in enumerate(key[5:15]):
        number |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            if len(key) != 6 + place or number & 1:
                break
            return number >> 1
    raise DecodeError("is not the key of a baseline", where=key.hex())


def offsets(keys: pa.BinaryArray, at: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The offset that each of such records says, by their keys and their own offsets; -1 where it says none: its key is
    broken, or names what comes after it, which nothing before can make obsolete. The record is a tombstone then."""
    said = np.full(len(keys), -1)
    for number, one in enumerate(keys.to_pylist()):
        with suppress(DecodeError):
            said[number] = min(offset_of(one), _HIGHEST)
    return np.where(said <= at, said, -1)
