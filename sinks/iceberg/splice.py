"""Parquet files joined without decoding them: their row groups are copied as they are, under one new footer.

Compaction reads and writes every row again where small files are merged; from files whose row groups are large enough
already that would make nothing that copying does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.io import FileIO, InputStream, OutputStream
from pyiceberg.manifest import DataFile

from sinks.iceberg.encodings import ROW_GROUP
from sinks.iceberg.footer import MAGIC, Footer, joined, length, parse

# Row groups that are smaller on average are worth decoding: by rows, and by bytes.
SMALLEST_ROWS, SMALLEST_BYTES = ROW_GROUP // 4, 1 << 20
_TAIL = 64 << 10
_STEP = 4 << 20


def footers_to_join(streams: Sequence[tuple[InputStream, int]]) -> list[Footer] | None:
    """The footers of files, each with its size in bytes; None unless they can be joined and are worth it. Raises
    `OSError`."""
    footers = [_footer(stream, size) for stream, size in streams]
    if not all(footer.movable and footer.schema == footers[0].schema for footer in footers):
        return None
    groups = sum(footer.row_groups for footer in footers)
    rows, nbytes = sum(footer.rows for footer in footers), sum(footer.body for footer in footers)
    return footers if groups and (rows >= groups * SMALLEST_ROWS or nbytes >= groups * SMALLEST_BYTES) else None


def splice(io: FileIO, files: Sequence[DataFile], path: str) -> tuple[pq.FileMetaData, int] | None:
    """Write a file with the row groups of `files`, in their order; None, and no file, where they must be decoded.
    Returns what its footer says, and its size. Raises `OSError`."""
    with ExitStack() as stack:
        sizes = [file.file_size_in_bytes for file in files]
        streams = [stack.enter_context(io.new_input(file.file_path).open()) for file in files]
        footers = footers_to_join(list(zip(streams, sizes, strict=True)))
        if footers is None:
            return None
        end = joined(footers)
        with io.new_output(path).create(overwrite=True) as out:
            out.write(MAGIC)
            for stream, footer in zip(streams, footers, strict=True):
                _copy(stream, out, footer.body - len(MAGIC))
            out.write(end)
    size = sum(footer.body - len(MAGIC) for footer in footers) + len(MAGIC) + len(end)
    return pq.read_metadata(pa.BufferReader(MAGIC + end)), size


def _footer(stream: InputStream, size: int) -> Footer:
    tail = _last(stream, size, _TAIL)
    if length(tail) + 8 > len(tail):
        tail = _last(stream, size, length(tail) + 8)
    return parse(tail, size)


def _last(stream: InputStream, size: int, nbytes: int) -> bytes:
    stream.seek(max(0, size - nbytes))
    return stream.read(min(size, nbytes))


def _copy(stream: InputStream, out: OutputStream, nbytes: int) -> None:
    stream.seek(len(MAGIC))
    while nbytes:
        data = stream.read(min(nbytes, _STEP))
        if not data:
            raise OSError("a data file is shorter than its table says")
        out.write(data)
        nbytes -= len(data)
