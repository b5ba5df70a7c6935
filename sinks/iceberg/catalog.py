"""The catalog from settings, and tables made with the properties that a streaming writer needs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pyarrow as pa
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import NamespaceAlreadyExistsError, NoSuchTableError, TableAlreadyExistsError
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC, PartitionField, PartitionSpec
from pyiceberg.schema import Schema, assign_fresh_schema_ids
from pyiceberg.table import Table
from pyiceberg.table.sorting import UNSORTED_SORT_ORDER, NullOrder, SortDirection, SortField, SortOrder
from pyiceberg.table.update import AddPartitionSpecUpdate
from pyiceberg.transforms import (
    BucketTransform,
    DayTransform,
    HourTransform,
    IdentityTransform,
    MonthTransform,
    Transform,
    TruncateTransform,
    YearTransform,
)
from pyiceberg.types import DoubleType, FloatType
from sqlalchemy import make_url
from sqlalchemy.exc import IntegrityError, ProgrammingError

from headrace.config import LakeSettings
from headrace.errors import ConfigError, ContractError
from schemas.contracts import Contract, Storage
from schemas.contracts import PartitionField as ContractPartition
from schemas.envelope import is_envelope
from sinks.iceberg.commit import trouble
from sinks.iceberg.metadata_cache import CachedSqlCatalog, transaction

TABLE_PROPERTIES = {
    # Commit time stays flat over thousands of commits.
    "commit.manifest-merge.enabled": "true",
    "commit.manifest.min-count-to-merge": "30",
    "write.metadata.delete-after-commit.enabled": "true",
    # A reader that has just been told where the metadata is must still find it minutes later.
    "write.metadata.previous-versions-max": "100",
    # Snapshot isolation: the default rejects a compaction that raced an append.
    "write.delete.isolation-level": "snapshot",
    "write.parquet.compression-codec": "zstd",
    # Spark's vectorised reader of Iceberg knows delta and byte-split encodings only in its newest releases.
    "read.parquet.vectorization.enabled": "false",
}
# Columns of change events that nobody looks rows up by: constants, and texts that only say an order.
_NOT_SEARCHED = [
    *(f"source.{name}" for name in ("version", "connector", "name", "snapshot", "db", "schema", "table", "sequence")),
    "transaction.id",
]
SQL_CATALOG = f"{CachedSqlCatalog.__module__}.{CachedSqlCatalog.__name__}"
_TIMEOUTS = {
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "5",
    "tcp_user_timeout": "15000",
}


def open_catalog(lake: LakeSettings) -> Catalog:
    """The Iceberg catalog: REST for an http URL, else SQL. Raises `ConfigError`, `UnavailableError`."""
    if not lake.uri:
        raise ConfigError("no catalog is configured", where="lake.uri", hint="start the local stack: headrace up")
    if not lake.warehouse:
        raise ConfigError("no warehouse is configured", where="lake.warehouse", hint="file:///folder or s3://bucket")
    if lake.uri.startswith(("http://", "https://")):
        options = {"type": "rest", "uri": lake.uri}
    else:
        # Who names a type of their own, as glue, gets that.
        kind = {} if "type" in lake.properties else {"py-catalog-impl": SQL_CATALOG}
        options = {**kind, "uri": with_timeouts(lake.uri), "pool_pre_ping": "true"}
    chosen = options | {"warehouse": lake.warehouse} | lake.properties
    with trouble("catalog"):
        try:
            return load_catalog(lake.catalog, **chosen)
        except (IntegrityError, ProgrammingError):
            # Two processes made the catalog's tables at once; now they are there.
            return load_catalog(lake.catalog, **chosen)


def with_timeouts(uri: str) -> str:
    """A Postgres URI whose connections notice a server that is gone, in seconds and not in hours."""
    url = make_url(uri)
    if url.get_backend_name() != "postgresql":
        return uri
    said = url.query
    return url.update_query_dict({k: v for k, v in _TIMEOUTS.items() if k not in said}).render_as_string(False)


def find_table(catalog: Catalog, name: str) -> Table | None:
    """The table, or None when there is none yet. Raises `UnavailableError`."""
    with trouble(name):
        try:
            return catalog.load_table(name)
        except NoSuchTableError:
            return None


def create_table(
    catalog: Catalog,
    name: str,
    columns: pa.Schema,
    *,
    contract: Contract | None = None,
    partitioned: bool = False,
    properties: Mapping[str, str] | None = None,
) -> Table:
    """Create `name` with `columns`; the existing table when there is one. `partitioned`: and sorted, by the contract.

    Columns that the contract marks as personal data get no bounds, neither in manifests nor in files, and can't be
    partitioned by.
    Raises `ContractError` for a partition or an order that cannot be, `UnavailableError`.
    """
    namespace, _, _ = name.rpartition(".")
    # Ids to refer to columns by until the catalog assigns its own.
    schema = assign_fresh_schema_ids(Catalog._convert_schema_if_needed(columns))
    spec, order = UNPARTITIONED_PARTITION_SPEC, UNSORTED_SORT_ORDER
    chosen = {**TABLE_PROPERTIES, **_metrics(schema, contract, is_envelope(columns)), **(properties or {})}
    if partitioned and contract is not None and contract.storage is not None:
        spec = _partition_spec(schema, contract, contract.storage)
        order = _sort_order(schema, contract, contract.storage)
    with trouble(name):
        with suppress(NamespaceAlreadyExistsError):
            catalog.create_namespace(namespace)
        try:
            table = catalog.create_table(name, schema, partition_spec=spec, sort_order=order, properties=chosen)
            return table if spec.is_unpartitioned() else _with_unpartitioned_spec(table)
        except TableAlreadyExistsError:
            return catalog.load_table(name)


def _with_unpartitioned_spec(table: Table) -> Table:
    """A second spec beside the default one, for rows that would scatter over too many partitions."""
    staged = transaction(table)
    staged._apply((AddPartitionSpecUpdate(spec=PartitionSpec(spec_id=max(table.specs()) + 1)),))
    return staged.commit_transaction()


def _metrics(schema: Schema, contract: Contract | None, envelope: bool) -> dict[str, str]:
    """No bounds of keys and personal data, which erasure would not reach there, nor of what nobody looks up."""
    columns = ["_key"]
    if envelope:
        columns += [*_NOT_SEARCHED, *(name for name in schema.column_names if name.startswith("before."))]
    if contract is not None:
        personal = [path for path, spec in contract.walk() if spec.pii]
        columns += [prefix + path for path in personal for prefix in ("", "before.", "after.")]
    have = set(schema.column_names)
    return {f"write.metadata.metrics.column.{name}": "none" for name in columns if name in have}


def _partition_spec(schema: Schema, contract: Contract, storage: Storage) -> PartitionSpec:
    personal = {path for path, spec in contract.walk() if spec.pii}
    fields = []
    for number, wanted in enumerate(storage.partition):
        where = f"{contract.path}: storage.partition"
        if wanted.column not in schema.column_names:
            raise ContractError(f"no column {wanted.column}", where=where)
        if wanted.column in personal:
            raise ContractError(f"{wanted.column} is personal data: it would stay in paths for ever", where=where)
        source = schema.find_field(wanted.column)
        transform = _transform(wanted)
        if not transform.can_transform(source.field_type):
            raise ContractError(f"{wanted.transform} does not apply to {source.field_type}", where=where)
        suffix = "" if wanted.transform == "identity" else f"_{wanted.transform}"
        fields.append(PartitionField(source.field_id, 1000 + number, transform, wanted.column + suffix))
    return PartitionSpec(*fields)


def _sort_order(schema: Schema, contract: Contract, storage: Storage) -> SortOrder:
    where = f"{contract.path}: storage.sort"
    fields = []
    for name in storage.sort:
        if name not in {field.name for field in schema.fields}:
            raise ContractError(f"no column {name}: sort takes top-level fields", where=where)
        column = schema.find_field(name)
        # NaN has another place in Iceberg's order than in Arrow's.
        if isinstance(column.field_type, FloatType | DoubleType) or not column.field_type.is_primitive:
            raise ContractError(f"{name} is {column.field_type}, which nothing is sorted by", where=where)
        fields.append(SortField(column.field_id, IdentityTransform(), SortDirection.ASC, NullOrder.NULLS_FIRST))
    return SortOrder(*fields) if fields else UNSORTED_SORT_ORDER


def _transform(wanted: ContractPartition) -> Transform[Any, Any]:
    match wanted.transform:
        case "identity":
            return IdentityTransform()
        case "year":
            return YearTransform()
        case "month":
            return MonthTransform()
        case "day":
            return DayTransform()
        case "hour":
            return HourTransform()
        case "bucket":
            return BucketTransform(num_buckets=wanted.argument or 1)
        case "truncate":
            return TruncateTransform(width=wanted.argument or 1)
