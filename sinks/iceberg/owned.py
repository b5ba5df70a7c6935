"""A table that this process alone writes: opened at its stored offsets, fed slices, committed, cared for.

`prepare` says which records the table refuses; once those are safe in the quarantine, `commit` lands the rest together
with the offsets. Both may be called again after an `UnavailableError`, and the outcome is the same. Subclasses say
what a slice becomes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from headrace import metrics
from headrace.config import Retyped
from headrace.errors import IdentityError, OffsetGapError, TerminalError
from headrace.logs import get_logger
from schemas.contracts import Contract
from sinks.iceberg import progress
from sinks.iceberg.catalog import create_table, find_table
from sinks.iceberg.commit import Change, TableCommitter, trouble
from sinks.iceberg.compact import EXPIRE_EVERY, KEEP_SNAPSHOTS, TARGET_BYTES, expire
from sinks.iceberg.evolve import Evolution, Refused, changes, distinct_names, evolved, merge, set_aside
from sinks.iceberg.parquet import FileWriter
from sinks.iceberg.shape import arrow_schema, fit_rows
from sinks.iceberg.slices import Reject, Slice
from sinks.iceberg.sweep import Sweeper

TYPE_RULE = "schema: type"
# A backlog is landed first, and what it leaves is compacted once.
PUT_OFF = 4
ADOPT = "headrace table adopt"
ACCEPT_GAP = "headrace table accept-gap"

log = get_logger("iceberg")


@dataclass(frozen=True)
class Source:
    """The topic as the broker knows it now, and the offsets that exist, by partition (end exclusive)."""

    cluster: str
    topic_id: str
    begin: Mapping[int, int]
    end: Mapping[int, int]

    @property
    def identity(self) -> str:
        """What offsets belong to. It is to be compared whole: a topic id may contain the slash too."""
        return f"{self.cluster}/{self.topic_id}"


@dataclass(eq=False)
class Prepared:
    """Slices on their way into a table. `batches` fit `columns`; `state` are further properties to set.

    Repeats are `dropped`, and rows of snapshots that were `stale`. `change` appears once its files are written, so that
    a repeated call goes on from there.
    """

    slices: Sequence[Slice]
    columns: pa.Schema
    batches: list[pa.RecordBatch]
    rejects: list[Reject]
    state: dict[str, str] = field(default_factory=dict)
    dropped: int = 0
    stale: int = 0
    change: Change | None = None

    @property
    def rows(self) -> int:
        return sum(batch.num_rows for batch in self.batches)


class OwnedTable(ABC):
    """One table fed by one topic. Not thread-safe: one thread at a time."""

    def __init__(
        self,
        catalog: Catalog,
        name: str,
        topic: str,
        *,
        contract: Contract | None = None,
        partitioned: bool = False,
        compact_every: int = 30,
        file_bytes: int = TARGET_BYTES,
        retyped: Retyped = "quarantine",
        keep_seconds: float = 0.0,
    ) -> None:
        self.name = name
        self.topic = topic
        self.contract = contract
        self._partitioned = partitioned
        self._catalog = catalog
        self._committer: TableCommitter | None = None
        self._identity = ""
        self._begin: dict[int, int] = {}
        self._compact_every = compact_every
        self._file_bytes = file_bytes
        self._retyped = retyped
        self._keep_seconds = keep_seconds
        # How many snapshots the last expiry left.
        self._snapshots = KEEP_SNAPSHOTS
        # The first commit of a process compacts: how long the table has not been is not known.
        self._uncompacted = compact_every - 1
        self._sweeper = Sweeper()

    @property
    def table(self) -> Table | None:
        """The table as of the last commit; None until something has been landed."""
        return self._committer.table if self._committer else None

    @property
    def properties(self) -> Mapping[str, str]:
        return self._committer.table.metadata.properties if self._committer else {}

    @property
    def offsets(self) -> dict[int, int]:
        """Next offset by partition, of partitions that were ever committed."""
        return progress.stored_offsets(self.properties, self.topic)

    def open(self, source: Source) -> dict[int, int]:
        """Load the table and return where each partition of the topic is to be read from.

        Raises `IdentityError` when the stored offsets are of another cluster or topic or beyond the log's end,
        `OffsetGapError` when records after one are gone (the gap is recorded in the table), `UnavailableError`.
        """
        found = find_table(self._catalog, self.name)
        self._committer = TableCommitter(found) if found is not None else None
        self._identity, self._begin = source.identity, dict(source.begin)
        stored = self.offsets
        known = self.properties.get(progress.identity_property(self.topic), source.identity)
        if known != source.identity:
            raise IdentityError(
                f"offsets belong to {known}, the topic is {source.identity} now",
                where=f"{self.name} from {self.topic}",
                hint=f"was the topic or the cluster recreated? To start it over: {ADOPT} {self.name}",
            )
        for partition, begin in sorted(source.begin.items()):
            at, where = stored.get(partition, begin), f"{self.name} from {self.topic}-{partition}"
            if at > source.end[partition]:
                raise IdentityError(
                    f"the next offset is {at}, but the log ends at {source.end[partition]}",
                    where=where,
                    hint=f"the topic has lost records that the table has. To start it over: {ADOPT} {self.name}",
                )
            if at < begin:
                self._record_gap(partition, at, begin)
                raise OffsetGapError(
                    f"records {at}..{begin} are gone, never read",
                    where=where,
                    hint=f"to go on without them: {ACCEPT_GAP} {self.name}",
                )
        if self._committer is not None:
            self._opened(self._committer.table)
        return {partition: stored.get(partition, begin) for partition, begin in source.begin.items()}

    def admit(self, partition: int, begin: int) -> int:
        """A partition that the topic has got since `open`; returns where it is to be read from."""
        self._begin[partition] = begin
        return self.offsets.get(partition, begin)

    def stages(self, slices: Sequence[Slice]) -> list[list[Slice]]:
        """`slices` in the groups that are to be prepared and committed one after the other; usually one."""
        return [list(slices)]

    @abstractmethod
    def prepare(self, slices: Sequence[Slice]) -> Prepared:
        """What `slices` become, and the records that they lose. Slices of a partition are contiguous, in order."""

    @abstractmethod
    def _plan(self, prepared: Prepared, base: Change, evolution: Evolution, rows: pa.Table) -> Change:
        """Write the files of a change (step 1) and add them to `base`, which has its offsets and its fence."""

    def _opened(self, table: Table) -> None:  # noqa: B027
        """Called with a table that exists, before anything is committed."""

    def _applied(self, prepared: Prepared) -> None:  # noqa: B027
        """Called after `prepared.change` is in the table."""

    def table_properties(self) -> dict[str, str]:
        """What the table is created with beyond the usual."""
        return {}

    def commit(self, prepared: Prepared) -> None:
        """Steps 1 and 2 of the numbered order. Raises `FencedError`, `UnavailableError` (call again)."""
        if self._committer is None:
            self._committer = TableCommitter(self._create(prepared.columns))
            self._opened(self._committer.table)
        if prepared.change is None:
            base = self._change(prepared)
            self._committer.fence(base)
            with trouble(self.name):
                self._say_changes(prepared.columns)
                evolution = evolved(self._committer.table, prepared.columns)
                rows = [fit_rows(batch, prepared.columns) for batch in prepared.batches]
                table = pa.concat_tables(rows) if rows else prepared.columns.empty_table()
                prepared.change = self._plan(prepared, base, evolution, table)
        self._committer.commit(prepared.change)
        self._applied(prepared)
        self._uncompacted += 1

    def care(self, *, busy: bool = False) -> None:
        """After a commit: compact, expire snapshots and remove unreferenced files, each when it is due.

        `busy`: another commit's worth of records waits in Kafka. Then compaction is put off, to `PUT_OFF` times as many
        commits.
        Raises `FencedError` and `UnavailableError` as `commit` does; what was not done is due again later.
        """
        if self._committer is None:
            return
        due = self._compact_every * (PUT_OFF if busy else 1)
        if self._uncompacted >= due:
            self._compact(self._committer)
            self._uncompacted = 0
        else:
            self._relieve(self._committer)
        if len(self._committer.table.metadata.snapshots) >= self._snapshots + EXPIRE_EVERY:
            expire(self._committer, seconds=self._keep_seconds)
            self._snapshots = len(self._committer.table.metadata.snapshots)
        try:
            with trouble(self.name):
                self._sweeper.sweep(self._committer.table)
        except TerminalError as e:
            # Files that stay are no reason to stop landing.
            log.error("files not removed", **e.as_dict())

    def _relieve(self, committer: TableCommitter) -> None:  # noqa: B027
        """Do what cannot wait until compaction is due."""

    @abstractmethod
    def _compact(self, committer: TableCommitter) -> None:
        """Rewrite files that are too small or too dead."""

    def _target(self, table: Table) -> int:
        """Bytes that a rewrite makes of small files; less where it has to hold all of them, to sort them."""
        return self._file_bytes // 4 if table.sort_order().fields else self._file_bytes

    def _writer(self, evolution: Evolution) -> FileWriter:
        return FileWriter.of(self._existing, evolution.schema)

    @property
    def _existing(self) -> Table:
        if self._committer is None:
            raise TerminalError("nothing has been committed yet", where=self.name)
        return self._committer.table

    def _columns(self) -> pa.Schema:
        return arrow_schema(self._existing.schema()) if self._committer else pa.schema([])

    def _change(self, prepared: Prepared) -> Change:
        """The fence and the progress of a change: offsets before and after, whatever its files will be."""
        expected: dict[str, str | None] = {}
        after: dict[str, str] = {}
        for part in prepared.slices:
            name = progress.offset_property(self.topic, part.partition)
            if name not in expected:
                at = self.offsets.get(part.partition)
                if part.start != (self._begin.get(part.partition, 0) if at is None else at):
                    raise TerminalError(
                        f"a batch starts at {part.start}, the table's next offset is {at}",
                        where=f"{self.name} from {self.topic}-{part.partition}",
                    )
                expected[name] = None if at is None else str(at)
                if at is None and part.start > 0:
                    after[progress.gap_property(self.topic, part.partition)] = f"0-{part.start}:before"
            after[name] = str(part.next_offset)
        after[progress.identity_property(self.topic)] = self._identity
        return Change(expected, after | prepared.state)

    def _fit_slices(self, parts: list[tuple[Slice, pa.RecordBatch]], stage: str) -> Prepared:
        """Batches with the table's columns widened by theirs; a batch whose types are refused is rejected whole, or
        has those columns under other names."""
        columns = self._columns()
        batches, rejects = [], []
        for part, batch in parts:
            try:
                distinct_names(batch.schema)
                columns, fitted = self._merge_columns(columns, batch)
                batches.append(fitted)
            except Refused as e:
                own = batch.schema.get_all_field_indices("_offset")[-1]
                rows = np.searchsorted(part.offsets, batch.column(own).to_numpy())
                rejects.append(Reject(part, rows, stage, TYPE_RULE, (str(e),) * len(rows)))
        return Prepared([part for part, _ in parts], columns, batches, rejects)

    def _merge_columns(self, columns: pa.Schema, batch: pa.RecordBatch) -> tuple[pa.Schema, pa.RecordBatch]:
        try:
            return merge(columns, batch.schema), batch
        except Refused:
            aside = set_aside(columns, batch) if self._retyped == "column" else batch
            if not set(self._fixed) <= set(aside.schema.names):
                raise
            return merge(columns, aside.schema), aside

    @property
    def _fixed(self) -> Sequence[str]:
        """Columns whose type never changes: a row is found by them."""
        return ()

    def _say_changes(self, columns: pa.Schema) -> None:
        for change, name in changes(self._columns(), columns):
            metrics.SCHEMA_CHANGES.labels(self.name, change).inc()
            log.warning("the table follows its source", table=self.name, column=name, change=change)

    def _create(self, columns: pa.Schema) -> Table:
        return create_table(
            self._catalog,
            self.name,
            columns,
            contract=self.contract,
            partitioned=self._partitioned,
            properties=self.table_properties(),
        )

    def _record_gap(self, partition: int, at: int, begin: int) -> None:
        committer = self._committer
        name = progress.gap_property(self.topic, partition)
        text = f"{at}-{begin}:open"
        if committer is None or text in self.properties.get(name, "").split(","):
            return
        known = [gap for gap in self.properties.get(name, "").split(",") if gap and not gap.endswith(":open")]
        stored = progress.offset_property(self.topic, partition)
        committer.commit(Change({stored: self.properties.get(stored)}, {name: ",".join([*known, text])}))
