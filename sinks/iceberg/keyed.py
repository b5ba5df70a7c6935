"""Tables with one live row a key: a new row goes to a new file, the old one dies by a position delete.

The index says where the live row of each key is. In memory only: at start it is rebuilt from the key columns of the
live files, and it changes only after the commit that it belongs to. Whoever else commits to such a table makes it
wrong, so every commit is fenced by the snapshot that the index describes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.manifest import DataFile
from pyiceberg.table import FileScanTask, Table
from pyiceberg.table.snapshots import Operation

from headrace.errors import TerminalError
from headrace.keyindex import ABSENT, KeyIndex, Keys, slots_for
from headrace.logs import get_logger
from sinks.iceberg import progress
from sinks.iceberg.budget import IndexBudget
from sinks.iceberg.build import KeyColumns, key_pieces
from sinks.iceberg.changes import join
from sinks.iceberg.commit import Change, TableCommitter, trouble
from sinks.iceberg.compact import DEAD_SHARE, choose, paths_of
from sinks.iceberg.evolve import Evolution
from sinks.iceberg.filerows import column_batches, deleted_positions
from sinks.iceberg.livefiles import LiveFiles
from sinks.iceberg.locations import distinct, file_of, locate, position_of
from sinks.iceberg.owned import OwnedTable, Prepared
from sinks.iceberg.parquet import BLOOM_FILTER, FileWriter, Written
from sinks.iceberg.recent import Recent
from sinks.iceberg.rewrite import rewrite
from sinks.iceberg.shape import fit_rows

Int64 = npt.NDArray[np.int64]

# When a file has this many delete files they are merged into one, unless it is rewritten.
DELETE_FILES_TO_MERGE = 8
# Room for new keys in an index that is built: a table that grows by less while the process lives is never rebuilt.
HEADROOM = 1 / 8
# Files that are read or written at once: on an object store each waits for an answer.
AT_ONCE = 8

log = get_logger("iceberg")


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(eq=False)
class Merging(Prepared):
    """Rows to write with their keys (and versions), and all keys whose present rows die; or all rows, by a truncate.

    `closed` are rows to write that no entry of the index leads to, `dying` are locations of such rows that die.
    `written` are the files of the rows, `loose` those of the others, `deletes` those of the rows that die, by the
    number of the file they are in.
    `dead` are rows of a table without a key that die, by file. `recent` is what is known of keys after it.
    """

    keys: Keys = field(default_factory=lambda: join([]))
    touched: Keys = field(default_factory=lambda: join([]))
    versions: Int64 | None = None
    truncate: bool = False
    closed: list[pa.RecordBatch] = field(default_factory=list)
    dying: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    dead: Sequence[tuple[DataFile, Int64]] = ()
    recent: Recent = field(default_factory=Recent)
    written: list[Written] = field(default_factory=list)
    loose: list[DataFile] = field(default_factory=list)
    deletes: dict[int, DataFile] = field(default_factory=dict)


class KeyedTable(OwnedTable):
    """A table kept by position. Subclasses say what key it has: `key` is empty for one without, which only grows.

    What a commit costs depends on its rows and on how many files they touch, not on how many rows the table has.
    After `care` a data file has fewer than `DELETE_FILES_TO_MERGE` delete files. At a compaction, every
    `compact_every` commits, files with more than `DEAD_SHARE` of dead rows are rewritten, as far as they take no more
    bytes than `file_bytes` or 1 / `DEAD_SHARE` times the rows that died since the last one.
    """

    key: tuple[str, ...] = ()
    version: str | None = None

    _index: KeyIndex
    _files: LiveFiles

    def __init__(self, catalog: Catalog, name: str, topic: str, *, budget: IndexBudget | None = None, **more: Any):
        super().__init__(catalog, name, topic, **more)
        self._budget = budget

    @property
    def index(self) -> KeyIndex:
        """Live rows by key; for looking at, not for changing."""
        return self._index

    @property
    def files(self) -> Collection[int]:
        """Live files, as the numbers that locations name them by."""
        return self._files.by_number.keys()

    def table_properties(self) -> dict[str, str]:
        return {progress.KEY: ",".join(self.key)} | {f"{BLOOM_FILTER}{name}": "true" for name in self.key}

    def live_locations(self, keys: Keys) -> Int64:
        """Where the committed rows of keys are, `ABSENT` for keys without one."""
        return self._index.locations(keys) if self.table else np.full(len(keys), ABSENT)

    def read(self, file: int, name: str) -> pa.ChunkedArray:
        """A column of a live file, by the file's number in locations; deleted rows too; nulls where the table has
        no such column. Raises `OSError`."""
        table = self._existing
        batches = column_batches(table.io, self._files[file].file, table.schema(), [name])
        return pa.concat_tables(batches).column(0)

    @property
    def key_columns(self) -> KeyColumns:
        """What of its rows the index is built from."""
        return KeyColumns(self.key, self.version)

    def _indexed(self, files: LiveFiles) -> dict[int, FileScanTask]:
        """The files that have rows with an entry in the index."""
        return files.by_number

    def _new_index(self, keys: int) -> KeyIndex:
        budget = self._budget
        claim = None if budget is None else lambda nbytes: budget.claim(self.name, nbytes)
        return KeyIndex(slots_for(int(keys * (1 + HEADROOM))), versioned=self.version is not None, claim=claim)

    def _opened(self, table: Table) -> None:
        self._files = LiveFiles()
        self._index = self._new_index(0)
        if not self.key:
            return
        started = time.perf_counter()
        with trouble(self.name):
            self._files = LiveFiles(table.scan().plan_files())
            files = self._indexed(self._files)
            self._index = self._new_index(LiveFiles(files.values()).rows)
            for piece in key_pieces(table.io, files, table.schema(), self.key_columns):
                locations = locate(piece.number, piece.positions)
                if self._index.put(piece.keys, locations, piece.versions) != len(piece.keys):
                    raise TerminalError(
                        f"two live rows of one key ({', '.join(self.key)})",
                        where=self.name,
                        hint="another program has written this table; drop it and let it be built again from its topic",
                    )
        seconds = time.perf_counter() - started
        log.info("index built", table=self.name, keys=len(self._index), bytes=self._index.nbytes, seconds=seconds)

    def _plan(self, prepared: Prepared, base: Change, evolution: Evolution, rows: pa.Table) -> Change:
        assert isinstance(prepared, Merging)
        table, writer = self._existing, self._writer(evolution)
        if self.key:
            # Before anything is written: a table that may not grow further stops here.
            self._index.reserve(int((self._index.locations(prepared.keys) < 0).sum()))
        prepared.written, prepared.loose, prepared.deletes = writer.write(rows), [], {}
        if prepared.closed:
            closed = pa.concat_tables([fit_rows(batch, prepared.columns) for batch in prepared.closed])
            prepared.loose = [written.file for written in writer.write(closed)]
        removed: frozenset[str] = frozenset()
        if prepared.truncate:
            files = self._files if self.key else LiveFiles(self._existing.scan().plan_files())
            removed = files.paths()
        elif self.key:
            locations = self._index.locations(prepared.touched)
            prepared.deletes = self._write_deletes(writer, np.concatenate([locations, prepared.dying]))
        else:
            prepared.deletes = dict(enumerate(writer.write_deletes(file, rows) for file, rows in prepared.dead))
        operation = Operation.APPEND
        if prepared.deletes or removed:
            operation = Operation.OVERWRITE if prepared.written or prepared.loose else Operation.DELETE
        return replace(
            base,
            data_files=[*(written.file for written in prepared.written), *prepared.loose],
            delete_files=list(prepared.deletes.values()),
            removed=removed,
            operation=operation,
            head=(table.metadata.current_snapshot_id,) if self.key or removed or prepared.deletes else None,
            columns=evolution.columns,
            schema=evolution.schema,
        )

    def _write_deletes(self, writer: FileWriter, locations: Int64) -> dict[int, DataFile]:
        dead = distinct(locations[locations >= 0])
        numbers, starts = np.unique(file_of(dead), return_index=True)
        groups = zip(numbers.tolist(), np.split(position_of(dead), starts[1:]), strict=False)

        def write(group: tuple[int, Int64]) -> tuple[int, DataFile]:
            number, positions = group
            return number, writer.write_deletes(self._files[number].file, positions)

        return dict(at_once(write, groups))

    def _applied(self, prepared: Prepared) -> None:
        assert isinstance(prepared, Merging)
        if not self.key:
            return
        if prepared.truncate:
            assert prepared.change is not None
            self._index.clear()
            self._files.replaced(prepared.change.removed)
        else:
            self._index.remove(prepared.touched)
        for number, deletes in prepared.deletes.items():
            self._files.add_deletes(number, deletes)
        for file in prepared.loose:
            self._files.add(file)
        for written in prepared.written:
            rows: Any = slice(None) if written.rows is None else written.rows
            versions = None if prepared.versions is None else prepared.versions[rows]
            self._place(written.file, prepared.keys.take(rows), versions)

    def _place(self, file: DataFile, keys: Keys, versions: Int64 | None, positions: Int64 | None = None) -> None:
        """Point the index at the rows of a new file: at all of them, or at those of some positions."""
        number = self._files.add(file)
        at = np.arange(len(keys)) if positions is None else positions
        self._index.put(keys, locate(number, at), versions)

    def _apart(self, task: FileScanTask) -> Any:
        """Files for which this differs are not merged."""

    def _compact(self, committer: TableCommitter) -> None:
        table = committer.table
        with trouble(self.name):
            files = self._files if self.key else LiveFiles(table.scan().plan_files())
            allowance = int(files.killed / DEAD_SHARE * files.row_bytes)
            groups = choose(files, target=self._target(table), allowance=allowance, apart=self._apart)
        self._rewrite(committer, files, groups)
        files.killed = 0

    def _relieve(self, committer: TableCommitter) -> None:
        if self.key and self._files.most_deletes >= DELETE_FILES_TO_MERGE:
            self._rewrite(committer, self._files, [])

    def _rewrite(self, committer: TableCommitter, files: LiveFiles, groups: Sequence[list[FileScanTask]]) -> None:
        """One file in the place of each group, and one delete file where a file has too many."""
        table = committer.table
        writer = self._writer(Evolution(table.schema(), None))
        columns = self.key_columns
        with trouble(self.name):
            made = [new for group in groups if (new := rewrite(table, group, columns.names))]
            chosen = [task for group in groups for task in group]
            skip = frozenset(task.file.file_path for task in chosen)
            many = [t for t in files if len(t.delete_files) >= DELETE_FILES_TO_MERGE and t.file.file_path not in skip]

            def merge(task: FileScanTask) -> DataFile:
                return writer.write_deletes(task.file, distinct(deleted_positions(table.io, task)))

            deletes = at_once(merge, many)
        if not chosen and not many:
            return
        obsolete = paths_of(chosen) | {file.file_path for t in many for file in t.delete_files}
        committer.commit(
            Change(
                {},
                {},
                [new.file for new in made],
                deletes,
                removed=obsolete,
                operation=Operation.REPLACE,
                head=(table.metadata.current_snapshot_id,),
            )
        )
        if self.key:
            files.replaced(skip, zip(many, deletes, strict=True))
            for new in made:
                counted = columns.counted(new.kept)
                if isinstance(counted, slice):
                    self._place(new.file, columns.keys(new.kept), columns.versions(new.kept))
                else:
                    kept = new.kept.take(counted)
                    self._place(new.file, columns.keys(kept), columns.versions(kept), counted)
        log.info("compacted", table=self.name, files=len(chosen), into=len(made), deletes=len(many))


def at_once(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """`work` on each, several at a time, results in order. Raises what the first that fails raises."""
    todo = list(items)
    if len(todo) < 2:
        return [work(item) for item in todo]
    return list(_pool().map(work, todo))


@cache
def _pool() -> ThreadPoolExecutor:
    """One for all tables: starting threads at every commit takes longer than what they do."""
    return ThreadPoolExecutor(AT_ONCE, "files")
