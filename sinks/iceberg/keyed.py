"""Tables with one live row a key: a new row goes to a new file, the old one dies by a position delete.

The index says where the live row of each key is. In memory only: at start it is rebuilt from the key columns of the
live files, and it changes only after the commit that it belongs to. Whoever else commits to such a table makes it
wrong, so every commit is fenced by the snapshot that the index describes.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.io import FileIO
from pyiceberg.manifest import DataFile
from pyiceberg.schema import Schema
from pyiceberg.table import FileScanTask, Table
from pyiceberg.table.snapshots import Operation

from headrace.errors import TerminalError
from headrace.keyindex import ABSENT, KeyIndex, Keys, hash_keys
from headrace.logs import get_logger
from sinks.iceberg import progress
from sinks.iceberg.changes import join
from sinks.iceberg.commit import Change, TableCommitter, trouble
from sinks.iceberg.compact import choose, paths_of
from sinks.iceberg.evolve import Evolution
from sinks.iceberg.locations import file_of, locate, position_of
from sinks.iceberg.owned import OwnedTable, Prepared
from sinks.iceberg.parquet import BLOOM_FILTER, FileWriter, Written
from sinks.iceberg.rewrite import deleted_positions, rewrite
from sinks.iceberg.shape import field_id

Int64 = npt.NDArray[np.int64]

# A file that is not rewritten gets its delete files merged when it has this many.
DELETE_FILES_TO_MERGE = 8

log = get_logger("iceberg")


@dataclass(eq=False)
class Merging(Prepared):
    """Rows to write with their keys (and versions), and all keys whose present rows die; or all rows, by a truncate.

    `dead` are rows of a table without a key that die, by file.
    """

    keys: Keys = field(default_factory=lambda: join([]))
    touched: Keys = field(default_factory=lambda: join([]))
    versions: Int64 | None = None
    truncate: bool = False
    dead: Sequence[tuple[DataFile, Int64]] = ()
    written: list[Written] = field(default_factory=list)


class KeyedTable(OwnedTable):
    """A table kept by position. Subclasses say what key it has: `key` is empty for one without, which only grows."""

    key: tuple[str, ...] = ()
    version: str | None = None

    _index: KeyIndex
    _files: dict[int, DataFile]
    _next_file: int

    @property
    def index(self) -> KeyIndex:
        """Live rows by key; for looking at, not for changing."""
        return self._index

    @property
    def files(self) -> Collection[int]:
        """Live files, as the numbers that locations name them by."""
        return self._files.keys()

    def table_properties(self) -> dict[str, str]:
        return {progress.KEY: ",".join(self.key)} | {f"{BLOOM_FILTER}{name}": "true" for name in self.key}

    def live_locations(self, keys: Keys) -> Int64:
        """Where the committed rows of keys are, `ABSENT` for keys without one."""
        return self._index.locations(keys) if self.table else np.full(len(keys), ABSENT)

    def read(self, file: int, name: str) -> pa.ChunkedArray:
        """A column of a live file, by the file's number in locations; deleted rows too. Raises `OSError`."""
        table = self._existing
        return read_columns(table.io, self._files[file], table.schema(), [name]).column(0)

    def _opened(self, table: Table) -> None:
        self._index = KeyIndex(versioned=self.version is not None)
        self._files, self._next_file = {}, 0
        if not self.key:
            return
        started = time.perf_counter()
        with trouble(self.name):
            for task in table.scan().plan_files():
                self._add_file(task, table)
        log.info("index built", table=self.name, keys=len(self._index), seconds=time.perf_counter() - started)

    def _add_file(self, task: FileScanTask, table: Table) -> None:
        names = [*self.key, *([self.version] if self.version else [])]
        columns = read_columns(table.io, task.file, table.schema(), names)
        positions = np.arange(columns.num_rows)
        if task.delete_files:
            alive = np.ones(columns.num_rows, np.bool_)
            alive[deleted_positions(table.io, task)] = False
            positions = np.flatnonzero(alive)
            columns = columns.take(positions)
        number = self._number(task.file)
        keys = hash_keys([columns.column(name) for name in self.key])
        if self._index.put(keys, locate(number, positions), self._versions(columns)) != len(keys):
            raise TerminalError(
                f"two live rows of one key ({', '.join(self.key)})",
                where=self.name,
                hint="another program has written this table; drop it and let it be built again from its topic",
            )

    def _number(self, file: DataFile) -> int:
        self._next_file += 1
        self._files[self._next_file] = file
        return self._next_file

    def _versions(self, columns: pa.Table) -> Int64 | None:
        if self.version is None:
            return None
        versions: Int64 = columns.column(self.version).to_numpy().astype(np.int64, copy=False)
        return versions

    def _plan(self, prepared: Prepared, base: Change, evolution: Evolution, rows: pa.Table) -> Change:
        assert isinstance(prepared, Merging)
        table, writer = self._existing, self._writer(evolution)
        prepared.written = writer.write(rows)
        deletes: list[DataFile] = []
        removed: frozenset[str] = frozenset()
        if prepared.truncate:
            removed = paths_of(list(table.scan().plan_files()))
        elif self.key:
            deletes = self._write_deletes(writer, self._index.locations(prepared.touched))
        else:
            deletes = [writer.write_deletes(file, positions) for file, positions in prepared.dead]
        operation = Operation.APPEND
        if deletes or removed:
            operation = Operation.OVERWRITE if prepared.written else Operation.DELETE
        return replace(
            base,
            data_files=[written.file for written in prepared.written],
            delete_files=deletes,
            removed=removed,
            operation=operation,
            head=(table.metadata.current_snapshot_id,) if self.key or removed or deletes else None,
            columns=evolution.columns,
            schema=evolution.schema,
        )

    def _write_deletes(self, writer: FileWriter, locations: Int64) -> list[DataFile]:
        dead = np.unique(locations[locations >= 0])
        numbers, starts = np.unique(file_of(dead), return_index=True)
        groups = np.split(position_of(dead), starts[1:])
        return [writer.write_deletes(self._files[int(n)], group) for n, group in zip(numbers, groups, strict=False)]

    def _applied(self, prepared: Prepared) -> None:
        assert isinstance(prepared, Merging)
        if not self.key:
            return
        if prepared.truncate:
            self._index.clear()
            self._files.clear()
        else:
            self._index.remove(prepared.touched)
        for written in prepared.written:
            self._place(written, prepared.keys, prepared.versions)

    def _place(self, written: Written, keys: Keys, versions: Int64 | None) -> None:
        """Point the index at the rows of a new file."""
        rows: Any = slice(None) if written.rows is None else written.rows
        keys = keys.take(rows)
        locations = locate(self._number(written.file), np.arange(len(keys)))
        self._index.put(keys, locations, None if versions is None else versions[rows])

    def _compact(self, committer: TableCommitter) -> None:
        table = committer.table
        writer = self._writer(Evolution(table.schema(), None))
        names = [*self.key, *([self.version] if self.version else [])]
        with trouble(self.name):
            tasks = list(table.scan().plan_files())
            groups = choose(tasks, at_least=2, target=self._target(table))
            files = [new for group in groups if (new := rewrite(table, group, names))]
            chosen = [task for group in groups for task in group]
            skip = {task.file.file_path for task in chosen}
            many = [t for t in tasks if len(t.delete_files) >= DELETE_FILES_TO_MERGE and t.file.file_path not in skip]
            deletes = [writer.write_deletes(t.file, np.unique(deleted_positions(table.io, t))) for t in many]
        if not chosen and not many:
            return
        obsolete = paths_of(chosen) | {file.file_path for t in many for file in t.delete_files}
        committer.commit(
            Change(
                {},
                {},
                [new.file for new in files],
                deletes,
                removed=obsolete,
                operation=Operation.REPLACE,
                head=(table.metadata.current_snapshot_id,),
            )
        )
        if self.key:
            self._files = {n: f for n, f in self._files.items() if f.file_path not in skip}
            for new in files:
                keys = hash_keys([new.kept.column(name) for name in self.key])
                self._place(Written(new.file, None), keys, self._versions(new.kept))
        log.info("compacted", table=self.name, files=len(chosen), into=len(files), deletes=len(many))


def read_columns(io: FileIO, file: DataFile, schema: Schema, names: Sequence[str]) -> pa.Table:
    """Columns of a data file by the field ids that the table's schema gives to `names`; all rows, deleted ones too."""
    with io.new_input(file.file_path).open() as stream, pq.ParquetFile(stream) as parquet:
        by_id: Mapping[int | None, str] = {field_id(f): f.name for f in parquet.schema_arrow}
        have = {name: by_id.get(schema.find_field(name).field_id) for name in names}
        found = parquet.read(columns=[column for column in have.values() if column is not None])
        columns = [pa.nulls(found.num_rows) if at is None else found.column(at) for at in have.values()]
        return pa.table(columns, names=list(have))
