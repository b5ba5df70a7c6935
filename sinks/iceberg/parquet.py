"""Data files and position-delete files: Parquet as `encodings` chooses, described for Iceberg's manifests.

Compared with pyiceberg's own writer: about twice the rate and smaller files, and the caller learns which row went to
which position of which file.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.io import FileIO
from pyiceberg.io.pyarrow import (
    MetricModeTypes,
    compute_statistics_plan,
    data_file_statistics_from_parquet_metadata,
    parquet_path_to_id_mapping,
)
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.partitioning import (
    PartitionField,
    PartitionFieldValue,
    PartitionKey,
    PartitionSpec,
    _to_partition_representation,
)
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.table.locations import LocationProvider
from pyiceberg.table.sorting import UNSORTED_SORT_ORDER, SortOrder
from pyiceberg.transforms import (
    DayTransform,
    HourTransform,
    IdentityTransform,
    MonthTransform,
    Transform,
    YearTransform,
)
from pyiceberg.typedef import Record
from pyiceberg.types import IcebergType

from sinks.iceberg.encodings import ROW_GROUP, writer_options
from sinks.iceberg.shape import arrow_schema, fit_rows
from sinks.iceberg.splice import splice

Int64 = npt.NDArray[np.int64]

# Files that one write makes at most: each costs about as much as thousands of rows, and readers open them all.
MOST_PARTITIONS = 64
# Iceberg's table property that asks for a Bloom filter on a column.
BLOOM_FILTER = "write.parquet.bloom-filter-enabled.column."

# Reserved ids of Iceberg's position-delete columns.
DELETE_PATH_ID, DELETE_POS_ID = 2147483546, 2147483545
_DELETES = pa.schema(
    [
        pa.field("file_path", pa.dictionary(pa.int32(), pa.string()), False, {"PARQUET:field_id": str(DELETE_PATH_ID)}),
        pa.field("pos", pa.int64(), False, {"PARQUET:field_id": str(DELETE_POS_ID)}),
    ]
)
_DELETES_WRITTEN: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": ["file_path"],
    "column_encoding": {"pos": "DELTA_BINARY_PACKED"},
}
_DAY = 86_400_000_000  # microseconds


@dataclass(frozen=True)
class Written:
    """A data file; `rows[i]` is the source row at position i of the file (None: all rows in order)."""

    file: DataFile
    rows: Int64 | None


@dataclass(frozen=True)
class FileWriter:
    """Writes files of one table as of one schema. Immutable: make a new one when the table's metadata changes."""

    schema: Schema
    spec: PartitionSpec
    properties: Mapping[str, str]
    io: FileIO
    locations: LocationProvider
    order: SortOrder = UNSORTED_SORT_ORDER
    # The table's spec without partitions, for what would scatter over too many.
    unpartitioned: PartitionSpec | None = None

    @classmethod
    def of(cls, table: Table, schema: Schema) -> FileWriter:
        """The writer of a table's files in `schema`, its present one or the one that the same commit gives it."""
        return cls(
            schema,
            table.spec(),
            table.metadata.properties,
            table.io,
            table.location_provider(),
            table.sort_order(),
            next((spec for spec in table.specs().values() if spec.is_unpartitioned()), None),
        )

    @cached_property
    def arrow(self) -> pa.Schema:
        return arrow_schema(self.schema)

    @cached_property
    def _statistics(self) -> tuple[Any, dict[str, int]]:
        return compute_statistics_plan(self.schema, dict(self.properties)), parquet_path_to_id_mapping(self.schema)

    @cached_property
    def _without_bounds(self) -> frozenset[str]:
        """Parquet paths of the columns whose metrics mode is `none`."""
        plan, paths = self._statistics
        return frozenset(path for path, number in paths.items() if plan[number].mode.type == MetricModeTypes.NONE)

    @cached_property
    def _filtered(self) -> frozenset[str]:
        wanted = (name for name, value in self.properties.items() if value == "true")
        return frozenset(name.removeprefix(BLOOM_FILTER) for name in wanted if name.startswith(BLOOM_FILTER))

    def write(self, rows: pa.RecordBatch | pa.Table) -> list[Written]:
        """One file for each partition that `rows` touch, sorted by the table's order if it has one.

        Where they touch more than `MOST_PARTITIONS`, the smallest share one file under the table's unpartitioned spec:
        readers look into it whatever they filter by. Raises `OSError`; files written until then are orphans.
        """
        table = fit_rows(rows, self.arrow)
        parts = list(self._partitions(table))
        if len(parts) <= MOST_PARTITIONS or self.unpartitioned is None:
            return [self._write_file(table, take, key) for key, take in parts]
        parts.sort(key=lambda part: len(_rows(part)), reverse=True)
        written = [self._write_file(table, take, key) for key, take in parts[: MOST_PARTITIONS - 1]]
        scattered = np.sort(np.concatenate([_rows(part) for part in parts[MOST_PARTITIONS - 1 :]]))
        return [*written, replace(self, spec=self.unpartitioned)._write_file(table, scattered, None)]

    def open(self, rows: pa.Table) -> OpenFile:
        """A file for `rows` and others of their partition. Whoever writes to it keeps the table's order."""
        key = next(key for key, _ in self._partitions(rows.slice(0, 1)))
        return self._open(rows, key)

    def _partitions(self, table: pa.Table) -> Iterator[tuple[PartitionKey | None, Int64 | None]]:
        if table.num_rows == 0:
            return
        if self.spec.is_unpartitioned():
            yield None, None
            return
        values = [self._transformed(table, field) for field in self.spec.fields]
        codes = np.zeros(table.num_rows, np.int64)
        for column in values:
            dense = column.dictionary_encode(null_encoding="encode")
            codes = codes * (len(dense.dictionary) + 1) + dense.indices.to_numpy(zero_copy_only=False)
        order = np.argsort(codes, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(codes[order]) != 0])
        for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
            first = int(order[start])
            fields = [
                PartitionFieldValue(field, column[first].as_py())
                for field, column in zip(self.spec.fields, values, strict=True)
            ]
            yield PartitionKey(fields, self.spec, self.schema), (None if len(starts) == 1 else order[start:end])

    def _transformed(self, table: pa.Table, field: PartitionField) -> pa.Array:
        source = self.schema.find_field(field.source_id)
        return transformed(table.column(source.name).combine_chunks(), field.transform, source.field_type)

    def _write_file(self, table: pa.Table, take: Int64 | None, key: PartitionKey | None) -> Written:
        if self.order.fields:
            mine = table if take is None else table.take(take)
            sorted_ = pc.sort_indices(mine, sort_keys=self._sort_keys).to_numpy()
            take = sorted_ if take is None else take[sorted_]
        with self._open(table if take is None else table.combine_chunks().take(take), key) as out:
            out.write(out.first)
        return Written(out.file, take)

    @property
    def _sort_keys(self) -> list[tuple[str, str, str]]:
        names = [self.schema.find_column_name(field.source_id) for field in self.order.fields]
        return [(name, "ascending", "at_start") for name in names if name]

    def _open(self, first: pa.Table, key: PartitionKey | None) -> OpenFile:
        options = writer_options(first, self._without_bounds, self._filtered)
        return OpenFile(self, self._new_path(key), key, first, options)

    def _new_path(self, key: PartitionKey | None) -> str:
        return self.locations.new_data_location(f"{uuid.uuid4()}.parquet", key)

    def splice(self, files: Sequence[DataFile]) -> DataFile | None:
        """One file of the rows of several of this spec's, all of one partition, without decoding them; None where they
        must be decoded. Raises `OSError`."""
        values = files[0].partition
        fields = [PartitionFieldValue(field, values[at]) for at, field in enumerate(self.spec.fields)]
        key = PartitionKey(fields, self.spec, self.schema) if fields else None
        path = self._new_path(key)
        spliced = splice(self.io, files, path)
        return self._described(path, key, *spliced) if spliced else None

    def _described(self, path: str, key: PartitionKey | None, metadata: pq.FileMetaData, size: int) -> DataFile:
        plan, paths = self._statistics
        statistics = data_file_statistics_from_parquet_metadata(metadata, plan, paths)
        file = DataFile.from_args(
            content=DataFileContent.DATA,
            file_path=path,
            file_format=FileFormat.PARQUET,
            partition=key.partition if key else Record(),
            file_size_in_bytes=size,
            sort_order_id=self.order.order_id if self.order.fields else None,
            spec_id=self.spec.spec_id,
            equality_ids=None,
            key_metadata=None,
            **statistics.to_serialized_dict(),
        )
        file.spec_id = self.spec.spec_id
        return file

    def write_deletes(self, of: DataFile, positions: Int64) -> DataFile:
        """A position-delete file for one data file (file-scoped: Polars reads no others right)."""
        paths = pa.DictionaryArray.from_arrays(np.zeros(len(positions), np.int32), pa.array([of.file_path]))
        rows = pa.table([paths, np.sort(positions)], schema=_DELETES)
        path = self.locations.new_data_location(f"{uuid.uuid4()}-deletes.parquet")
        size = _write(self.io, path, rows, **_DELETES_WRITTEN)
        bound = {DELETE_PATH_ID: of.file_path.encode()}
        file = DataFile.from_args(
            content=DataFileContent.POSITION_DELETES,
            file_path=path,
            file_format=FileFormat.PARQUET,
            partition=of.partition,
            record_count=len(positions),
            file_size_in_bytes=size,
            lower_bounds=bound,
            upper_bounds=bound,
        )
        file.spec_id = of.spec_id
        return file


def _rows(part: tuple[PartitionKey | None, Int64 | None]) -> Int64:
    _, take = part
    assert take is not None, "one partition of many"
    return take


class OpenFile:
    """A data file that is being written, as a context; `file` describes it afterwards."""

    file: DataFile

    def __init__(
        self, writer: FileWriter, path: str, key: PartitionKey | None, first: pa.Table, options: dict[str, Any]
    ) -> None:
        self.first = first
        self._writer, self._path, self._key, self._options = writer, path, key, options

    def __enter__(self) -> OpenFile:
        self._stream = self._writer.io.new_output(self._path).create(overwrite=True)
        self._parquet = pq.ParquetWriter(self._stream, self.first.schema, store_schema=False, **self._options)
        return self

    def write(self, rows: pa.Table) -> None:
        """Append rows of the same schema as full row groups and a rest. Raises `OSError`."""
        self._parquet.write_table(rows, row_group_size=ROW_GROUP)

    def __exit__(self, kind: object, error: object, _: object) -> None:
        with self._stream:
            self._parquet.close()
            size = self._stream.tell()
        if error is None:
            self.file = self._writer._described(self._path, self._key, self._parquet.writer.metadata, size)


def _write(io: FileIO, path: str, table: pa.Table, **options: Any) -> int:
    with io.new_output(path).create(overwrite=True) as stream:
        pq.write_table(table, stream, store_schema=False, **options)
        return stream.tell()


def transformed(column: pa.Array, transform: Transform[Any, Any], kind: IcebergType) -> pa.Array:
    """Partition values of a column, as Iceberg represents them. Times are computed in columns, the rest (buckets,
    truncation) once a distinct value."""
    if isinstance(transform, IdentityTransform):
        return column
    if isinstance(transform, YearTransform | MonthTransform):
        years = pc.subtract(pc.year(column), 1970)
        if isinstance(transform, YearTransform):
            return years.cast(pa.int32())
        return pc.add(pc.multiply(years, 12), pc.subtract(pc.month(column), 1)).cast(pa.int32())
    if isinstance(transform, DayTransform | HourTransform):
        if pa.types.is_date(column.type):
            return column.view(pa.int32())
        unit = _DAY if isinstance(transform, DayTransform) else _DAY // 24
        micros = column.view(pa.int64())
        floored = np.floor_divide(pc.fill_null(micros, 0).to_numpy(), unit)
        return pa.array(floored, pa.int32(), mask=pc.is_null(micros).to_numpy(zero_copy_only=False))
    encoded = column.dictionary_encode()
    apply = transform.transform(kind)
    values = pa.array([apply(_to_partition_representation(kind, value)) for value in encoded.dictionary.to_pylist()])
    return values.take(encoded.indices)
