"""The data files of a table and the delete files of each, as the one process that commits to the table knows them.

Kept from commit to commit, so that neither a commit nor a compaction has to read all manifests to learn them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pyiceberg.manifest import DataFile
from pyiceberg.table import FileScanTask

from sinks.iceberg.compact import dead_rows, paths_of


class LiveFiles:
    """Files by number; numbers are never used again. `killed` counts rows that died since it was last set to 0."""

    def __init__(self, tasks: Iterable[FileScanTask] = ()) -> None:
        self.by_number = dict(enumerate(tasks, 1))
        self._next = len(self.by_number)
        self.killed = 0
        # Delete files of the data file that has most.
        self.most_deletes = max((len(task.delete_files) for task in self.by_number.values()), default=0)

    def __iter__(self) -> Iterator[FileScanTask]:
        return iter(self.by_number.values())

    def __getitem__(self, number: int) -> FileScanTask:
        return self.by_number[number]

    @property
    def rows(self) -> int:
        """Rows that live."""
        return sum(task.file.record_count - dead_rows(task) for task in self)

    @property
    def row_bytes(self) -> float:
        """What a row takes in a file, on average."""
        rows = sum(task.file.record_count for task in self)
        return sum(task.file.file_size_in_bytes for task in self) / max(1, rows)

    def add(self, file: DataFile) -> int:
        """A new file, and the number that it has from now on."""
        self._next += 1
        self.by_number[self._next] = FileScanTask(file)
        return self._next

    def add_deletes(self, number: int, file: DataFile) -> None:
        """A further delete file of a data file, of rows that none of those before removes."""
        task = self.by_number[number]
        task.delete_files.add(file)
        self.killed += file.record_count
        self.most_deletes = max(self.most_deletes, len(task.delete_files))

    def replaced(self, removed: frozenset[str], merged: Iterable[tuple[FileScanTask, DataFile]] = ()) -> None:
        """Forget data files by their paths; files of which all deletes are in one now."""
        self.by_number = {n: task for n, task in self.by_number.items() if task.file.file_path not in removed}
        for task, deletes in merged:
            task.delete_files = {deletes}
        self.most_deletes = max((len(task.delete_files) for task in self), default=0)

    def paths(self) -> frozenset[str]:
        """Every data file and delete file."""
        return paths_of(list(self))
