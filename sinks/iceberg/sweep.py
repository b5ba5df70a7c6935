"""Removal of files that no snapshot of a table refers to: of killed writers, failed commits and expired snapshots.

Two guards keep live files safe. A file younger than `MIN_AGE` stays: it may belong to a commit that is under way (the
age is far above the longest one). And the listing is taken before the metadata is loaded, so a file that became live in
between is seen as live. The running sink adds a third: it removes a file only when an earlier sweep, `GRACE` ago, had
found it unreferenced too, which leaves readers of expired snapshots that long to finish.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from pyarrow.fs import FileSelector, FileSystem, FileType
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.table import Table

from headrace.errors import TerminalError
from headrace.logs import get_logger
from sinks.iceberg.commit import name_of

MIN_AGE = 3600.0
GRACE = 900.0

log = get_logger("iceberg")


@dataclass(frozen=True)
class Orphan:
    """A file below a table's location that nothing refers to; `age` in seconds."""

    path: str
    size: int
    age: float


def orphans(table: Table, *, min_age: float = MIN_AGE) -> list[Orphan]:
    """Unreferenced files of at least this age, by path.

    Raises what the store and the catalog raise, and `TerminalError` when none of the listed files is a live one: then
    the store names its files otherwise than the table does, and everything would look like an orphan.
    """
    fs, folder = _store(table, table.location())
    now = time.time()
    files = [
        Orphan(info.path, info.size or 0, now - (info.mtime_ns or 0) / 1e9)
        for info in fs.get_file_info(FileSelector(folder, recursive=True, allow_not_found=True))
        if info.type == FileType.File
    ]
    live = _referenced(table.catalog.load_table(table.name()))
    if files and live.isdisjoint(file.path for file in files):
        raise TerminalError("none of its files is found under the name it has", where=name_of(table))
    return sorted((f for f in files if f.age >= min_age and f.path not in live), key=lambda f: f.path)


def remove(table: Table, files: list[Orphan]) -> int:
    """Delete these files; returns the bytes freed. One that is gone already is no error."""
    fs, _ = _store(table, table.location())
    freed = 0
    for file in files:
        try:
            fs.delete_file(file.path)
            freed += file.size
        except FileNotFoundError:
            continue
    return freed


class Sweeper:
    """Sweeps of one table over the life of a process, at most one every `GRACE`."""

    def __init__(self, *, min_age: float = MIN_AGE, grace: float = GRACE) -> None:
        self._min_age = min_age
        self._grace = grace
        self._last = time.monotonic()
        self._seen: dict[str, float] = {}

    def sweep(self, table: Table) -> int:
        """Remove what an earlier sweep saw unreferenced too; returns how many files."""
        now = time.monotonic()
        if now - self._last < self._grace:
            return 0
        self._last = now
        found = orphans(table, min_age=self._min_age)
        self._seen = {file.path: self._seen.get(file.path, now) for file in found}
        due = [file for file in found if now - self._seen[file.path] >= self._grace]
        if due:
            log.info("files removed", table=name_of(table), files=len(due), bytes=remove(table, due))
        return len(due)


def _store(table: Table, location: str) -> tuple[FileSystem, str]:
    """The file system and the path in it, whatever FileIO the catalog prefers."""
    io = table.io if isinstance(table.io, PyArrowFileIO) else PyArrowFileIO(table.io.properties)
    scheme, netloc, path = PyArrowFileIO.parse_location(location)
    return io.fs_by_scheme(scheme, netloc), path


def _referenced(table: Table) -> set[str]:
    """Paths, as the file system writes them, of all files that the table's metadata leads to."""
    metadata = table.metadata
    found = {table.metadata_location, *(entry.metadata_file for entry in metadata.metadata_log)}
    found |= {file.statistics_path for file in (*metadata.statistics, *metadata.partition_statistics)}
    manifests = {}
    for snapshot in metadata.snapshots:
        found.add(snapshot.manifest_list)
        manifests.update({m.manifest_path: m for m in snapshot.manifests(table.io)})
    found |= manifests.keys()
    for manifest in manifests.values():
        found |= {e.data_file.file_path for e in manifest.fetch_manifest_entry(table.io, discard_deleted=True)}
    return {PyArrowFileIO.parse_location(path)[2] for path in found}
