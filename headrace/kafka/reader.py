"""From the bytes of one partition's fetch to chunks: no Kafka client here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.errors import ConfigError, HeadraceError
from headrace.kafka import layout, parse
from headrace.kafka.columns import PADDING, Chunk, WireHeaders, binary_array
from headrace.kafka.compression import Bytes, Decompressor
from headrace.kafka.errors import CorruptBatchError, DecompressionLimitError

Index = npt.NDArray[np.int64]

# (base offset, producer id, attributes, type of control record or -1) -> whether the batch's records are left out
Hidden = Callable[[int, int, int, int], bool]

_MOST = 1 << 29  # Arrow's binary arrays count bytes in 31 bits
_SLACK = 16  # spare bytes that the parsing kernel may write after a data buffer


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """Bounds of what one chunk, and one `getmany`, may hold.

    A chunk has at most `max_chunk_rows` rows. It takes batches up to `max_chunk_bytes` of plain records, and always
    one. A batch of more than `max_decompressed_bytes` is refused, before that much is written when it is compressed.
    `getmany` makes no further chunk once those it has hold `max_poll_bytes`.

    So a consumer holds, whatever arrives, no more than three times `max_chunk_bytes + max_decompressed_bytes` (what is
    decompressed, scratch, columns), `max_poll_bytes` and 30 bytes for each record of the largest batch; twice the
    columns while the caller keeps those of the poll before. Beside that is what the client has fetched: a few times
    `fetch_max_bytes` or the largest batch, for each broker.
    """

    max_chunk_rows: int = 131_072
    max_chunk_bytes: int = 16 << 20
    max_decompressed_bytes: int = 64 << 20
    max_poll_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not 0 < getattr(self, name) <= _MOST:
                raise ConfigError(f"must be between 1 and {_MOST}", where=name)


class LegacyFormatError(Exception):
    """The fetch holds messages older than record batch v2; nothing of it was read."""


class _MalformedBatch(Exception):
    def __init__(self, position: int) -> None:
        self.position = position


class FetchReader:
    """Reads fetches of any partition; keeps its scratch memory between them. Not for use by two threads at once."""

    def __init__(self, limits: ReadLimits, *, headers: bool) -> None:
        self.limits = limits
        self._headers = headers
        self._decompressor = Decompressor(limits.max_chunk_bytes, limits.max_decompressed_bytes)
        self._scratch: dict[str, Bytes] = {}

    def read(
        self,
        data: bytes | memoryview,
        topic: str,
        partition: int,
        from_offset: int,
        *,
        check_crc: bool = True,
        hidden: Hidden | None = None,
    ) -> Iterator[Chunk]:
        """Chunks of the records from an offset on; the next offset of the last is where the next fetch starts.

        A chunk may be empty, to step over control batches, hidden ones and holes. `hidden` is told of all batches in
        order. Raises `CorruptBatchError` and `DecompressionLimitError` after the chunks of the batches before the bad
        one, `LegacyFormatError` before any chunk.
        """
        raw: Bytes = np.frombuffer(data, np.uint8)
        index = self._index(raw, check_crc, f"{topic}-{partition}@{from_offset}")
        status = int(index[-1, parse.BATCH_STATUS])
        good = index if status == parse.OK else index[:-1]
        shown = _shown(good, hidden)
        position = from_offset
        start = 0
        while start < len(good):
            try:
                group, stop = self._unpack(raw, good, shown, start)
                chunk, stop = self._parse(topic, partition, good, group, stop, position)
            except HeadraceError as e:
                e.where = f"{topic}-{partition}@{position}"
                raise
            yield from self.pieces(chunk)
            start, position = stop, chunk.next_offset
        where = f"{topic}-{partition}@{position}"
        if status != parse.OK:
            what = "fails its checksum" if status == parse.BAD_CRC else "has a malformed header"
            raise CorruptBatchError(f"a record batch {what}", where=where)
        if position == from_offset:
            raise CorruptBatchError("a fetch ends before the offset that it was asked for", where=where)

    def pieces(self, chunk: Chunk) -> Iterator[Chunk]:
        """The chunk in slices of at most max_chunk_rows; itself when it is empty."""
        for first in range(0, max(len(chunk), 1), self.limits.max_chunk_rows):
            yield chunk.slice(first, self.limits.max_chunk_rows)

    @staticmethod
    def _index(raw: Bytes, check_crc: bool, where: str) -> Index:
        count = parse.count_batches(raw.ctypes.data, len(raw))
        if count == parse.LEGACY:
            raise LegacyFormatError
        if count == 0:
            raise CorruptBatchError("a fetch does not start with a record batch", where=where)
        index = np.empty((count, parse.INDEX_COLUMNS), np.int64)
        return index[: parse.index_batches(raw.ctypes.data, index, check_crc)]

    def _unpack(self, raw: Bytes, index: Index, shown: npt.NDArray[np.bool_], start: int) -> tuple[list[int], int]:
        """Shown batches from `start` on with plain records, as many as go into one chunk, and where the next starts."""
        self._decompressor.reset()
        group: list[int] = []
        size = 0
        for k in range(start, len(index)):
            if size >= self.limits.max_chunk_bytes:
                return group, k
            if not shown[k]:
                continue
            try:
                size += self._unpack_batch(raw, index[k])
            except HeadraceError:
                if group:
                    return group, k
                raise
            group.append(k)
        return group, len(index)

    def _unpack_batch(self, raw: Bytes, batch: Index) -> int:
        start = int(batch[parse.BATCH_POSITION])
        plain = raw[start : start + int(batch[parse.BATCH_SIZE])]
        codec = int(batch[parse.BATCH_ATTRIBUTES]) & layout.CODEC_MASK
        if codec:
            plain = self._decompressor.decompress(codec, plain)
            batch[parse.BATCH_DATA] = plain.ctypes.data
            batch[parse.BATCH_DATA_END] = plain.ctypes.data + len(plain)
        if len(plain) > self.limits.max_decompressed_bytes:
            raise DecompressionLimitError(f"a record batch of {len(plain)} bytes is above max_decompressed_bytes")
        if batch[parse.BATCH_RECORDS] * layout.MIN_RECORD_SIZE > len(plain):
            raise CorruptBatchError("a record batch claims more records than it has bytes for")
        return len(plain)

    def _parse(
        self, topic: str, partition: int, index: Index, group: list[int], stop: int, from_offset: int
    ) -> tuple[Chunk, int]:
        try:
            return self._columns(
                topic, partition, index[group], from_offset, int(index[stop - 1, parse.BATCH_NEXT_OFFSET])
            ), stop
        except _MalformedBatch as e:
            if e.position == 0:
                raise CorruptBatchError("a record batch has malformed records") from None
            return self._parse(topic, partition, index, group[: e.position], group[e.position], from_offset)

    def _columns(self, topic: str, partition: int, batches: Index, from_offset: int, next_offset: int) -> Chunk:
        rows = int(batches[:, parse.BATCH_RECORDS].sum())
        size = int((batches[:, parse.BATCH_DATA_END] - batches[:, parse.BATCH_DATA]).sum())
        offsets, timestamps = np.empty(rows, np.int64), np.empty(rows, np.int64)
        key_offsets, value_offsets = np.empty(rows + 1, np.int32), np.empty(rows + 1, np.int32)
        header_offsets = np.empty(rows + 1 if self._headers else 0, np.int32)
        key_valid, value_valid = self._bytes("key validity", rows), self._bytes("value validity", rows)
        key_data, header_data = self._bytes("keys", size), self._bytes("headers", size)
        # Nearly all that there is, so it is put where it stays; what is not written to takes no memory.
        value_data = np.empty(size + PADDING, np.uint8)
        columns = (key_valid, key_offsets, key_data, value_valid, value_offsets, value_data)
        rows, key_size, value_size, header_size, null_keys, null_values, with_headers = parse.parse_records(
            batches,
            from_offset,
            (
                *(column.ctypes.data for column in columns),
                header_offsets.ctypes.data if self._headers else 0,
                *(column.ctypes.data for column in (header_data, offsets, timestamps)),
            ),
        )
        if rows < 0:
            raise _MalformedBatch(-1 - rows)
        wire = WireHeaders(header_offsets[: rows + 1], header_data[:header_size].copy()) if with_headers else None
        return Chunk(
            topic,
            partition,
            binary_array(rows, key_valid if null_keys else None, key_offsets, _exact(key_data, key_size)),
            binary_array(rows, value_valid if null_values else None, value_offsets, _cut(value_data, value_size)),
            offsets[:rows],
            timestamps[:rows],
            max(next_offset, from_offset),
            wire,
        )

    def _bytes(self, name: str, size: int) -> Bytes:
        scratch = self._scratch.get(name)
        if scratch is None or len(scratch) < size + _SLACK:
            scratch = self._scratch[name] = np.empty(size + _SLACK, np.uint8)
        return scratch


def _shown(index: Index, hidden: Hidden | None) -> npt.NDArray[np.bool_]:
    shown: npt.NDArray[np.bool_] = (index[:, parse.BATCH_ATTRIBUTES] & layout.CONTROL) == 0
    if hidden is not None:
        fields = [parse.BATCH_BASE_OFFSET, parse.BATCH_PRODUCER_ID, parse.BATCH_ATTRIBUTES, parse.BATCH_MARKER]
        for k, (base_offset, producer_id, attributes, marker) in enumerate(index[:, fields].tolist()):
            if hidden(base_offset, producer_id, attributes, marker):
                shown[k] = False
    return shown


def _cut(data: Bytes, size: int) -> Bytes:
    """The first `size` bytes of a buffer that nothing else holds, then zeros to be read past them; frees the rest."""
    data[size : size + PADDING] = 0
    data.resize(size + PADDING, refcheck=False)
    return data


def _exact(scratch: Bytes, size: int) -> Bytes:
    out = np.empty(size + PADDING, np.uint8)
    out[:size] = scratch[:size]
    out[size:] = 0
    return out
