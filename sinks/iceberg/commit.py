"""The one way into a table: a fenced snapshot that holds rows, deletes and offsets, or nothing at all.

The order, for every table and every commit:
1. write files: data files and position-delete files, referenced by nothing yet;
2. commit the table: one snapshot with those files, the new offsets as table properties, and our token
   (`headrace.commit-id`) in its summary, on condition that the offsets are still those the rows start at;
3. only then commit the group's offsets in Kafka, for lag monitoring alone: on restart the table's offsets win.

`TableCommitter` is step 2. pyiceberg's own retries are not used: after a conflict they refresh and append again, so a
zombie would double rows, and they send the properties again blindly. Here every attempt is a new transaction on freshly
loaded metadata with the fence checked first; the catalog accepts it only if that metadata is still current. When an
attempt ends without an answer its outcome is unknown until the table has been loaded and its lineage searched for the
token. No file is ever deleted here: what a failed attempt leaves behind is the sweep's, once it is old.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import sqlalchemy.exc
from pyiceberg.exceptions import (
    CommitFailedException,
    CommitStateUnknownException,
    NoSuchTableError,
    RESTError,
    ValidationException,
)
from pyiceberg.manifest import (
    DataFile,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestFile,
    ManifestWriter,
    ManifestWriterV2,
)
from pyiceberg.schema import Schema
from pyiceberg.table import Table, Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Operation, Summary, ancestors_of
from pyiceberg.table.update import UpdateTableMetadata
from pyiceberg.table.update.snapshot import _MergeAppendFiles
from pyiceberg.typedef import EMPTY_DICT

from headrace.errors import FencedError, UnavailableError
from headrace.logs import get_logger
from sinks.iceberg.metadata_cache import transaction
from sinks.iceberg.progress import COMMIT_ID

ATTEMPTS = 5
# What a server or a disk in trouble raises; the outcome of a commit that raised one is unknown.
TROUBLE = (OSError, sqlalchemy.exc.SQLAlchemyError, RESTError, CommitStateUnknownException)

log = get_logger("iceberg")


@dataclass(frozen=True)
class Change:
    """The content of one snapshot.

    `expected` are property values that must still hold (None: absent), `head` the snapshot that positions refer to
    (for tables with an index: nobody else may have committed). `removed` are paths of data and delete files to drop.
    `forgotten` are properties to unset. `schema` is the table's after `columns` are merged in: the files carry its ids.
    """

    expected: Mapping[str, str | None]
    properties: Mapping[str, str]
    data_files: Sequence[DataFile] = ()
    delete_files: Sequence[DataFile] = ()
    removed: frozenset[str] = frozenset()
    forgotten: frozenset[str] = frozenset()
    operation: Operation = Operation.APPEND
    head: tuple[int | None] | None = None
    columns: pa.Schema | None = None
    schema: Schema | None = None
    token: str = field(default_factory=lambda: uuid.uuid4().hex)


class TableCommitter:
    """Commits changes to one table, of which this process is the only committer."""

    def __init__(self, table: Table) -> None:
        self.table = table
        # Whether an attempt at the present change ended without an answer: it may land even later.
        self._in_doubt = False

    def fence(self, change: Change) -> None:
        """Raise `FencedError` when the table is not as `change` expects it."""
        check_fence(self.table, change)

    def commit(self, change: Change) -> None:
        """Return when the change is in the table, once.

        Raises `FencedError` when another writer moved the table, and `UnavailableError` when servers do not answer:
        then call again with the same change, before anything else is committed here.
        """
        if self._in_doubt:
            self.reload()
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(0.05 * 2**attempt)
            if self._in_doubt and landed(self.table.metadata, change.token):
                break
            self.fence(change)
            try:
                self._attempt(change)
                break
            except ValidationException as e:
                raise FencedError(str(e), where=name_of(self.table)) from e
            except (CommitFailedException, *TROUBLE) as e:
                log.warning("commit failed", table=name_of(self.table), error=type(e).__name__)
                self._in_doubt = self._in_doubt or not isinstance(e, CommitFailedException)
                self.reload()
        else:
            raise UnavailableError(f"{ATTEMPTS} attempts to commit failed", where=name_of(self.table))
        self._in_doubt = False

    def reload(self) -> None:
        """Load the table's newest metadata. Raises `UnavailableError`."""
        with trouble(name_of(self.table)):
            try:
                self.table = self.table.catalog.load_table(self.table.name())
            except NoSuchTableError as e:
                raise FencedError("the table was dropped", where=name_of(self.table)) from e

    def _attempt(self, change: Change) -> None:
        staged = transaction(self.table)
        if change.columns is not None:
            merge_columns(staged, change.columns)
            if staged.table_metadata.schema() != change.schema:
                raise ValidationException("the schema was changed by another writer")
        _Delta(staged, change).commit()
        if change.properties:
            staged.set_properties(dict(change.properties))
        if change.forgotten:
            staged.remove_properties(*change.forgotten)
        self.table = staged.commit_transaction()


class trouble:
    """Context manager: what a server or a disk in trouble raises becomes `UnavailableError`."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, TROUBLE):
            raise UnavailableError(f"{type(error).__name__}: {error}", where=self.where) from error


def name_of(table: Table) -> str:
    return ".".join(table.name())


def check_fence(table: Table, change: Change) -> None:
    """The fence itself. A second writer that still believes in old offsets stops here."""
    have = table.metadata.properties
    moved = {k: (v, have.get(k)) for k, v in change.expected.items() if have.get(k) != v}
    if moved:
        name, (expected, stored) = next(iter(moved.items()))
        raise FencedError(
            f"{name} is {stored}, this writer expected {expected}",
            where=name_of(table),
            hint="another sink writes this table; run only one",
        )
    if change.head is not None and (table.metadata.current_snapshot_id,) != change.head:
        raise FencedError(
            "another writer has committed a snapshot to a table that is kept by position",
            where=name_of(table),
            hint="restart the sink, and let only it write this table",
        )


def landed(metadata: TableMetadata, token: str) -> bool:
    """Whether a snapshot with this token is in the current lineage."""
    lineage = ancestors_of(metadata.current_snapshot(), metadata)
    return any(s.summary is not None and s.summary.additional_properties.get(COMMIT_ID) == token for s in lineage)


def merge_columns(staged: Transaction, columns: pa.Schema) -> None:
    """Stage the addition and widening of columns by name."""
    with staged.update_schema() as update:
        update.union_by_name(columns)


class _DeleteManifestWriter(ManifestWriterV2):
    def content(self) -> ManifestContent:
        return ManifestContent.DELETES

    @property
    def _meta(self) -> dict[str, str]:
        return {**super()._meta, "content": "deletes"}


class _Delta(_MergeAppendFiles):
    """Adds data files and delete files and drops files in one snapshot, which pyiceberg 0.12 has no producer for."""

    def __init__(self, staged: Transaction, change: Change) -> None:
        summary = {**change.properties, COMMIT_ID: change.token}
        super().__init__(Operation.OVERWRITE, staged, staged._table.io, snapshot_properties=summary)
        self._change = change
        self._dropped: list[DataFile] = []
        # The library writes all files that it knows of into one manifest, of the table's default spec.
        usual = staged.table_metadata.default_spec_id
        self._added_data_files = [file for file in change.data_files if file.spec_id == usual]
        self._scattered = [file for file in change.data_files if file.spec_id != usual]

    def commit(self) -> None:
        # Not registered with the transaction: that is what turns the library's blind retries on.
        UpdateTableMetadata.commit(self)

    def _existing_manifests(self) -> list[ManifestFile]:
        existing = self._fewer_delete_manifests(self._without_removed(super()._existing_manifests()))
        mine = self._added(ManifestContent.DATA, self._scattered)
        mine += self._added(ManifestContent.DELETES, self._change.delete_files)
        return mine + existing

    def _writer(self, content: ManifestContent, spec_id: int) -> ManifestWriter:
        if content is not ManifestContent.DELETES:
            return self.new_manifest_writer(self.spec(spec_id))
        return _DeleteManifestWriter(
            self.spec(spec_id), self.schema(), self.new_manifest_output(), self._snapshot_id, self._compression
        )

    def _added(self, content: ManifestContent, files: Sequence[DataFile]) -> list[ManifestFile]:
        """Manifests of new files, one for each partition spec."""
        manifests = []
        for spec_id in sorted({file.spec_id for file in files}):
            with self._writer(content, spec_id) as writer:
                for file in files:
                    if file.spec_id == spec_id:
                        writer.add(_entry(ManifestEntryStatus.ADDED, self._snapshot_id, None, None, file))
            manifests.append(writer.to_manifest_file())
        return manifests

    def _fewer_delete_manifests(self, manifests: list[ManifestFile]) -> list[ManifestFile]:
        """Delete manifests merged into one of each spec when they are many: the library does so for data alone."""
        deletes = [m for m in manifests if m.content == ManifestContent.DELETES]
        if len(deletes) < self._min_count_to_merge:
            return manifests
        merged = [m for m in manifests if m.content != ManifestContent.DELETES]
        for spec_id in sorted({m.partition_spec_id for m in deletes}):
            with self._writer(ManifestContent.DELETES, spec_id) as writer:
                for manifest in deletes:
                    # What an earlier step of this commit removed must stay told.
                    if manifest.partition_spec_id == spec_id:
                        for e in manifest.fetch_manifest_entry(self._io, discard_deleted=False):
                            gone = e.status == ManifestEntryStatus.DELETED
                            if not gone or e.snapshot_id == self._snapshot_id:
                                status = ManifestEntryStatus.DELETED if gone else ManifestEntryStatus.EXISTING
                                writer.add_entry(
                                    _entry(
                                        status, e.snapshot_id, e.sequence_number, e.file_sequence_number, e.data_file
                                    )
                                )
            merged.append(writer.to_manifest_file())
        return merged

    def _without_removed(self, manifests: list[ManifestFile]) -> list[ManifestFile]:
        """Manifests without the files to drop. Read are those of delete files first, for often nothing else is dropped,
        and no more than it takes to find all: what is dropped soon after it was added is in the first ones. Those of
        delete files that are written anew become one, so the next time there are fewer to read."""
        left = set(self._change.removed)
        touched: set[str] = set()
        groups: dict[tuple[int, str], list[ManifestEntry]] = defaultdict(list)
        for manifest in sorted(manifests, key=lambda m: m.content != ManifestContent.DELETES):
            if not left:
                break
            entries = manifest.fetch_manifest_entry(self._io, discard_deleted=True)
            gone = {e.data_file.file_path for e in entries} & left
            if gone:
                left -= gone
                touched.add(manifest.manifest_path)
                apart = "" if manifest.content == ManifestContent.DELETES else manifest.manifest_path
                groups[manifest.partition_spec_id, apart] += entries
        if left:
            raise ValidationException(f"{len(left)} file(s) to drop are gone")
        written = []
        for (spec_id, apart), entries in groups.items():
            content = ManifestContent.DATA if apart else ManifestContent.DELETES
            written.append(self._without(content, spec_id, entries))
        return written + [manifest for manifest in manifests if manifest.manifest_path not in touched]

    def _without(self, content: ManifestContent, spec_id: int, entries: Sequence[ManifestEntry]) -> ManifestFile:
        with self._writer(content, spec_id) as writer:
            for e in entries:
                gone = e.data_file.file_path in self._change.removed
                if gone:
                    self._dropped.append(e.data_file)
                status = ManifestEntryStatus.DELETED if gone else ManifestEntryStatus.EXISTING
                snapshot = self._snapshot_id if gone else e.snapshot_id
                writer.add_entry(_entry(status, snapshot, e.sequence_number, e.file_sequence_number, e.data_file))
        return writer.to_manifest_file()

    def _summary(self, snapshot_properties: dict[str, str] = EMPTY_DICT) -> Summary:
        # The library counts added delete files and dropped files only when it added them itself.
        known = self._added_data_files
        self._added_data_files = [*self._change.data_files, *self._change.delete_files]
        self._deleted_data_files = set(self._dropped)
        try:
            summary = super()._summary(snapshot_properties)
        finally:
            self._added_data_files = known
            self._deleted_data_files = set()
        return Summary(self._change.operation, **summary.additional_properties)


def _entry(
    status: ManifestEntryStatus, snapshot: int | None, sequence: int | None, file_sequence: int | None, file: DataFile
) -> ManifestEntry:
    return ManifestEntry.from_args(
        status=status,
        snapshot_id=snapshot,
        sequence_number=sequence,
        file_sequence_number=file_sequence,
        data_file=file,
    )
