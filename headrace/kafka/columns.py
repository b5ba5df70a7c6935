"""A chunk: consecutive records of one partition as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.kafka import parse
from headrace.kafka.errors import CorruptBatchError

HEADERS = pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))

# Bytes after an Arrow buffer's end that may be read, for decoders that load whole words.
PADDING = 256


@dataclass(frozen=True, slots=True)
class WireHeaders:
    """Headers as they are on the wire: those of row i are data[offsets[i]:offsets[i + 1]], nothing for none."""

    offsets: npt.NDArray[np.int32]
    data: npt.NDArray[np.uint8]


@dataclass(slots=True, eq=False)
class Chunk:
    """Records of one partition in offset order, as columns of equal length.

    `keys`, `values`: binary arrays, null where Kafka has null (a null value is a tombstone); their data buffers may be
    read up to 256 bytes past the end. `offsets`, `timestamps` (milliseconds): int64. Offsets grow, with holes where
    Kafka compacted or where records of transactions are left out. `next_offset` is where reading goes on after this
    chunk: what to commit once it is processed.
    """

    topic: str
    partition: int
    keys: pa.BinaryArray
    values: pa.BinaryArray
    offsets: npt.NDArray[np.int64]
    timestamps: npt.NDArray[np.int64]
    next_offset: int
    wire_headers: WireHeaders | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def nbytes(self) -> int:
        """Memory of the columns, those of a slice for a slice."""
        wire = self.wire_headers
        headers = 0 if wire is None else int(wire.offsets[-1]) - int(wire.offsets[0]) + wire.offsets.nbytes
        columns = (self.keys, self.values, self.offsets, self.timestamps)
        return headers + sum(int(column.nbytes) for column in columns)

    def slice(self, start: int, length: int | None = None) -> Chunk:
        """Rows start..start+length without copying. Its `next_offset` follows its last row (or is its first row's
        offset when it is empty), and is the chunk's own when it reaches the chunk's end."""
        stop = len(self) if length is None else min(start + length, len(self))
        start = min(start, stop)
        if stop == len(self):
            next_offset = self.next_offset
        else:
            next_offset = int(self.offsets[stop - 1]) + 1 if stop > start else int(self.offsets[start])
        wire = self.wire_headers
        return Chunk(
            self.topic,
            self.partition,
            self.keys.slice(start, stop - start),
            self.values.slice(start, stop - start),
            self.offsets[start:stop],
            self.timestamps[start:stop],
            next_offset,
            None if wire is None else WireHeaders(wire.offsets[start : stop + 1], wire.data),
        )

    @property
    def headers(self) -> pa.ListArray:
        """list<struct<key: string, value: binary>>, an empty list for none; parsed at each call.

        All empty when the consumer was told to leave headers out. Raises `CorruptBatchError` when they are malformed.
        """
        if self.wire_headers is None:
            return pa.array([[]] * len(self), HEADERS)
        return self._parse_headers(self.wire_headers)

    def _parse_headers(self, wire: WireHeaders) -> pa.ListArray:
        count, key_bytes, value_bytes = parse.measure_headers(wire.offsets, wire.data.ctypes.data)
        if count < 0:
            raise self._bad_headers(int(self.offsets[-1 - count]), "malformed headers")
        lists, keys, values = (np.empty(n + 1, np.int32) for n in (len(self), count, count))
        key_data, value_data, valid = (np.empty(n, np.uint8) for n in (key_bytes, value_bytes, count))
        columns = (lists, keys, key_data, valid, values, value_data)
        parse.parse_headers(wire.offsets, wire.data.ctypes.data, tuple(column.ctypes.data for column in columns))
        fields = [
            pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(keys), pa.py_buffer(key_data)]),
            binary_array(count, valid, values, value_data),
        ]
        try:
            fields[0].validate(full=True)
        except pa.ArrowInvalid as e:
            raise self._bad_headers(int(self.offsets[0]), f"header keys are not UTF-8: {e}") from e
        return pa.ListArray.from_arrays(
            pa.array(lists), pa.StructArray.from_arrays(fields, fields=list(HEADERS.value_type))
        )

    def _bad_headers(self, offset: int, what: str) -> CorruptBatchError:
        return CorruptBatchError(what, where=f"{self.topic}-{self.partition}@{offset}")


def binary_array(
    rows: int, valid: npt.NDArray[np.uint8] | None, offsets: npt.NDArray[np.int32], data: npt.NDArray[Any]
) -> pa.BinaryArray:
    """Arrow array over these buffers; `valid` has one byte a row, None for no nulls."""
    bits = None if valid is None else pa.py_buffer(np.packbits(valid[:rows], bitorder="little"))
    return pa.Array.from_buffers(pa.binary(), rows, [bits, pa.py_buffer(offsets), pa.py_buffer(data)])


def concat_binary(arrays: Sequence[Any]) -> Any:
    """As `pa.concat_arrays`, with the room behind the data that decoders rely on. One array is left as it is."""
    if len(arrays) == 1:
        return arrays[0]
    valid = np.concatenate([array.is_valid().to_numpy(zero_copy_only=False) for array in arrays])
    ends = [np.frombuffer(a.buffers()[1], np.int32)[a.offset : a.offset + len(a) + 1] for a in arrays]
    data = np.empty(sum(int(end[-1] - end[0]) for end in ends) + PADDING, np.uint8)
    offsets, at = [np.zeros(1, np.int32)], 0
    for array, end in zip(arrays, ends, strict=True):
        size = int(end[-1] - end[0])
        if size:
            data[at : at + size] = np.frombuffer(array.buffers()[2], np.uint8)[end[0] : end[-1]]
        offsets.append(end[1:] - end[0] + np.int32(at))
        at += size
    return binary_array(len(valid), None if valid.all() else valid.view(np.uint8), np.concatenate(offsets), data[:at])
