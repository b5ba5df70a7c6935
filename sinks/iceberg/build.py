"""Reading the keys of a table's live rows, for its index: only the key columns, some files at once, in pieces.

Files are read and hashed by a few threads while the caller takes the pieces, so that reading, hashing and inserting
overlap. Memory: a row group's key columns for each thread, and a few pieces (1 MB of hashes and positions each).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from queue import Full, Queue
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.io import FileIO
from pyiceberg.schema import Schema
from pyiceberg.table import FileScanTask

from headrace.keyindex import Keys, hash_keys
from sinks.iceberg.filerows import column_batches, deleted_positions
from sinks.iceberg.locations import distinct

Int64 = npt.NDArray[np.int64]
_Item = TypeVar("_Item")
_Piece = TypeVar("_Piece")

STEP = 1 << 15
THREADS = max(2, min(8, os.cpu_count() or 1))
_LOOK = 0.1  # seconds between looks at whether the other side is still there
_END = object()


@dataclass(frozen=True)
class KeyColumns:
    """The columns of a row's key, its version (an integer or a point in time), and one that is null in rows that count.

    A table has one live row of each key among the rows that count.
    """

    key: tuple[str, ...]
    version: str | None = None
    unless: str | None = None

    @property
    def names(self) -> list[str]:
        return [*self.key, *([self.version] if self.version else []), *([self.unless] if self.unless else [])]

    def counted(self, rows: pa.Table) -> Any:
        """Which rows count, ascending; a slice where all do."""
        if self.unless is None or (ends := rows.column(self.unless)).null_count == len(ends):
            return slice(None)
        return np.flatnonzero(pc.is_null(ends).to_numpy())

    def keys(self, rows: pa.Table) -> Keys:
        return hash_keys([rows.column(name) for name in self.key])

    def versions(self, rows: pa.Table) -> Int64 | None:
        if self.version is None:
            return None
        column = rows.column(self.version)
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.int64())
        versions: Int64 = column.to_numpy().astype(np.int64, copy=False)
        return versions


@dataclass(frozen=True)
class Piece:
    """Keys of some live rows of file `number`, and their positions in it."""

    number: int
    keys: Keys
    positions: Int64
    versions: Int64 | None


def key_pieces(
    io: FileIO, files: Mapping[int, FileScanTask], schema: Schema, columns: KeyColumns, threads: int = THREADS
) -> Iterator[Piece]:
    """The live rows of `files`, by their numbers, in no order of the files. Raises `OSError`."""

    def read(number: int) -> Iterator[Piece]:
        task = files[number]
        dead = distinct(deleted_positions(io, task))
        start = 0
        for rows in column_batches(io, task.file, schema, columns.names):
            end = start + len(rows)
            positions = np.arange(start, end)
            mine = dead[np.searchsorted(dead, start) : np.searchsorted(dead, end)]
            if len(mine):
                alive = np.delete(np.arange(len(rows)), mine - start)
                positions, rows = positions[alive], rows.take(alive)
            counted = columns.counted(rows)
            if not isinstance(counted, slice):
                positions, rows = positions[counted], rows.take(counted)
            if len(rows):
                yield Piece(number, columns.keys(rows), positions, columns.versions(rows))
            start = end

    return in_threads(files, read, threads)


def in_threads(items: Iterable[_Item], read: Callable[[_Item], Iterator[_Piece]], threads: int) -> Iterator[_Piece]:
    """What `read` yields for each item, in no order, read ahead by some threads. Raises what `read` raises.

    The threads end when the iteration ends, also when it is given up.
    """
    waiting = iter(items)
    turn = threading.Lock()
    given_up = threading.Event()
    pieces: Queue[_Piece | BaseException | None] = Queue(2 * threads)

    def put(piece: _Piece | BaseException | None) -> None:
        while not given_up.is_set():
            try:
                return pieces.put(piece, timeout=_LOOK)
            except Full:
                continue

    def work() -> None:
        try:
            while not given_up.is_set():
                with turn:
                    item = next(waiting, _END)
                if item is _END:
                    break
                for piece in read(item):  # type: ignore[arg-type]  # the sentinel is not read
                    put(piece)
        except BaseException as e:  # raised in the thread that iterates
            put(e)
        else:
            put(None)

    workers = [threading.Thread(target=work, name="read-keys", daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    running = threads
    try:
        while running:
            piece = pieces.get()
            if piece is None:
                running -= 1
            elif isinstance(piece, BaseException):
                raise piece
            else:
                yield piece
    finally:
        given_up.set()
        for worker in workers:
            worker.join()
