"""From columns to record batches: no Kafka client here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.kafka import encode, layout
from headrace.kafka.columns import HEADERS, WireHeaders
from headrace.kafka.compression import Bytes, compress
from headrace.kafka.errors import BatchTooLargeError

# Most bytes that a record takes beside key, value and headers: five varints of a 32-bit number, one of 64, attributes.
_RECORD_OVERHEAD = 5 * 5 + 10 + 1
_SLACK = 16  # spare bytes that the encoding kernel may write after its room

_NO_COLUMN = (0, 0, 0, 0, 0)


@dataclass(slots=True)
class EncodedBatch:
    """A record batch whose header is still to be written: `payload` leaves room for it before the records."""

    payload: Bytes
    attributes: int
    records: int
    first_timestamp: int
    max_timestamp: int

    def finish(self, producer_id: int = -1, producer_epoch: int = -1, sequence: int = -1) -> Bytes:
        """Write the header with checksum; returns the whole batch as Kafka's produce request takes it."""
        encode.write_header(
            self.payload.ctypes.data,
            len(self.payload),
            self.attributes,
            self.first_timestamp,
            self.max_timestamp,
            producer_id,
            producer_epoch,
            sequence,
            self.records,
        )
        return self.payload


class Columns:
    """Rows to write, checked and laid out for the kernels.

    `keys` may be None (all null); `timestamps` are milliseconds, None for now; `headers` a list<struct<key, value>>
    array, encoded row by row in Python. Raises ValueError when the lengths differ, pyarrow's errors when a column is
    not binary nor casts to it.
    """

    def __init__(
        self,
        keys: pa.BinaryArray | None,
        values: pa.BinaryArray,
        timestamps: npt.NDArray[np.int64] | None = None,
        headers: pa.ListArray | None = None,
    ) -> None:
        self.rows = len(values)
        columns = {"keys": keys, "timestamps": timestamps, "headers": headers}
        for name, column in columns.items():
            if column is not None and len(column) != self.rows:
                raise ValueError(f"{len(column)} {name} for {self.rows} values")
        self._values = _as_binary(values)
        self._keys = None if keys is None else _as_binary(keys)
        self._wire = None if headers is None else encode_headers(headers)
        self._timestamps = None if timestamps is None else np.ascontiguousarray(timestamps, np.int64)
        self._now = int(time.time() * 1000)

    def most_bytes(self, first: int = 0, rows: int | None = None) -> int:
        """The plain records of `rows` rows from `first` on, all by default, are not larger than this."""
        count = self.rows - first if rows is None else rows
        size = count * _RECORD_OVERHEAD + _data_size(self._values.slice(first, count))
        size += 0 if self._keys is None else _data_size(self._keys.slice(first, count))
        wire = self._wire
        return size + (0 if wire is None else int(wire.offsets[first + count]) - int(wire.offsets[first]))

    def write(self, first: int, out: Bytes) -> tuple[int, int, int, int]:
        """Records of rows from `first` on, as many as fit `out` less its slack: see `encode.encode_records`."""
        wire = self._wire
        return encode.encode_records(
            _NO_COLUMN if self._keys is None else column_addresses(self._keys),
            column_addresses(self._values),
            _NO_COLUMN if wire is None else _wire_addresses(wire),
            0 if self._timestamps is None else self._timestamps.ctypes.data,
            self._now,
            first,
            self.rows,
            out.ctypes.data,
            len(out) - _SLACK,
        )


def encode_batches(
    columns: Columns, *, codec: int, max_batch_bytes: int, max_record_bytes: int, transactional: bool = False
) -> Iterator[EncodedBatch]:
    """All rows in order, split so that each batch has at most `max_batch_bytes` before compression.

    A row that is larger, up to `max_record_bytes`, has a batch that is no larger for what else is in it; above that,
    `BatchTooLargeError` is raised at that row.
    """
    room = min(max_batch_bytes, columns.most_bytes() + layout.HEADER_SIZE)
    first = 0
    while first < columns.rows:
        batch = _encode(columns, first, room, codec, transactional)
        if batch is None:
            alone = min(max_record_bytes, columns.most_bytes(first, 1) + layout.HEADER_SIZE)
            batch = _encode(columns, first, alone, codec, transactional)
        if batch is None:
            raise BatchTooLargeError(
                f"row {first} of {columns.rows} is larger than {max_record_bytes} bytes",
                hint="raise the producer's max_request_size and the topic's max.message.bytes",
            )
        yield batch
        first += batch.records


def encode_one_batch(
    columns: Columns, *, codec: int, max_plain_bytes: int, max_bytes: int, transactional: bool = False
) -> EncodedBatch:
    """All rows in one batch, which Kafka appends whole or not at all.

    Raises `BatchTooLargeError` when it would be above `max_bytes` as sent, or its records above `max_plain_bytes`
    before compression, and ValueError for no rows.
    """
    if not columns.rows:
        raise ValueError("no rows to send in one batch")
    room = min(max_plain_bytes, columns.most_bytes()) + layout.HEADER_SIZE
    batch = _encode(columns, 0, room, codec, transactional)
    if batch is None or batch.records < columns.rows or len(batch.payload) > max_bytes:
        raise BatchTooLargeError(
            f"{columns.rows} rows do not fit one record batch of {max_bytes} bytes",
            hint="send fewer rows at once, or raise the producer's max_request_size and the topic's max.message.bytes",
        )
    return batch


def _encode(columns: Columns, first: int, room: int, codec: int, transactional: bool) -> EncodedBatch | None:
    """The batch of as many rows from `first` on as fit `room`, or None when the first alone does not."""
    out = np.empty(room + _SLACK, np.uint8)
    records, size, first_timestamp, max_timestamp = columns.write(first, out[layout.HEADER_SIZE :])
    if records == 0:
        return None
    payload = out[: layout.HEADER_SIZE + size]
    attributes = layout.TRANSACTIONAL if transactional else 0
    if codec:
        packed = compress(codec, payload[layout.HEADER_SIZE :].data)
        if len(packed) < size:
            attributes |= codec
            payload = np.empty(layout.HEADER_SIZE + len(packed), np.uint8)
            payload[layout.HEADER_SIZE :] = np.frombuffer(packed, np.uint8)
    return EncodedBatch(payload, attributes, records, first_timestamp, max_timestamp)


def partition_for(keys: pa.BinaryArray, partitions: int) -> npt.NDArray[np.int32]:
    """Partition of each key, the one that the default partitioner of Java and of aiokafka chooses; -1 for null."""
    if partitions < 1:
        raise ValueError("a topic has at least one partition")
    keys = _as_binary(keys)
    out = np.empty(len(keys), np.int32)
    encode.murmur2_partitions(column_addresses(keys), partitions, out)
    return out


def encode_headers(headers: pa.ListArray) -> WireHeaders:
    """list<struct<key: string, value: binary>> as wire format; null and empty lists are no headers."""
    offsets = np.zeros(len(headers) + 1, np.int32)
    data = bytearray()
    for i, row in enumerate(headers.cast(HEADERS).to_pylist()):
        if row:
            _append_varint(data, len(row))
            for header in row:
                key = header["key"].encode()
                _append_varint(data, len(key))
                data += key
                value = header["value"]
                _append_varint(data, -1 if value is None else len(value))
                data += value or b""
        offsets[i + 1] = len(data)
    return WireHeaders(offsets, np.frombuffer(bytes(data), np.uint8))


def _append_varint(data: bytearray, value: int) -> None:
    rest = (value << 1) ^ (value >> 63)
    while rest & ~0x7F:
        data.append((rest & 0x7F) | 0x80)
        rest >>= 7
    data.append(rest)


def column_addresses(array: pa.BinaryArray) -> tuple[int, ...]:
    """(validity bits or 0, offset in them, i32 offsets, data, end of data), as the kernels take a binary column."""
    bits, offsets, data = array.buffers()
    return (
        bits.address if bits is not None and array.null_count else 0,
        array.offset,
        0 if offsets is None else offsets.address + 4 * array.offset,
        0 if data is None else data.address,
        0 if data is None else data.address + data.size,
    )


def _wire_addresses(wire: WireHeaders) -> tuple[int, ...]:
    data = wire.data.ctypes.data
    return 0, 0, wire.offsets.ctypes.data, data, data + len(wire.data)


def _as_binary(array: pa.Array) -> pa.BinaryArray:
    return array if array.type == pa.binary() else array.cast(pa.binary())


def _data_size(array: pa.BinaryArray) -> int:
    if not len(array):
        return 0
    offsets = np.frombuffer(array.buffers()[1], np.int32)
    return int(offsets[array.offset + len(array)]) - int(offsets[array.offset])
