"""Tables as they were: which snapshot was the newest at a time, or which rows of a history were valid then."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow.compute as pc
from pyiceberg.io import load_file_io
from pyiceberg.serializers import FromInputFile
from pyiceberg.table import StaticTable
from pyiceberg.table.metadata import TableMetadata

from headrace.config import LakeSettings
from headrace.errors import TerminalError, UnavailableError

# Property of a history: the table whose versions it has. Its columns beside that table's.
HISTORY_OF = "headrace.history-of"
BEGIN, END = "valid_from", "valid_to"


@dataclass(frozen=True)
class Past:
    """A table as of a time: SQL that gives its rows for DuckDB, and what it is read from, for people."""

    sql: str
    source: str


def past(lake: LakeSettings, locations: dict[str, str], name: str, at: datetime) -> Past:
    """The table `name` as of `at`: its newest snapshot that is not later.

    When that one is not kept any more, the versions valid at `at` of the table's history, if it has one and it reaches
    back so far. Raises `TerminalError` with the earliest time that can be read, and `UnavailableError`.
    """
    metadata = _metadata(lake, locations[name])
    millis = int(at.timestamp() * 1000)
    kept = {snapshot.snapshot_id for snapshot in metadata.snapshots}
    # The log names what has been the current snapshot, and when, so nothing of other branches.
    log = [entry for entry in metadata.snapshot_log if entry.snapshot_id in kept]
    if before := [entry for entry in log if entry.timestamp_ms <= millis]:
        found = before[-1]
        sql = f"FROM iceberg_scan({_quoted(locations[name])}, snapshot_from_id => {found.snapshot_id})"
        return Past(sql, f"snapshot of {_text(found.timestamp_ms)}")
    earliest = log[0].timestamp_ms if log else None
    if history := _history_of(lake, locations, name):
        begin = _begin(lake, locations[history])
        if begin is not None and begin <= at:
            have = set(_metadata(lake, locations[history]).schema().column_names)
            names = [field.name for field in metadata.schema().fields]
            columns = ", ".join(f'"{name}"' if name in have else f'NULL AS "{name}"' for name in names)
            time = f"TIMESTAMPTZ '{at.astimezone(UTC).isoformat()}'"
            valid = f"{BEGIN} <= {time} AND ({END} IS NULL OR {END} > {time})"
            scan = f"iceberg_scan({_quoted(locations[history])})"
            return Past(f"SELECT {columns} FROM {scan} WHERE {valid}", f"versions in {history}")
        if begin is not None:
            earliest = min(int(begin.timestamp() * 1000), earliest or 1 << 62)
    reach = f"the earliest time that can be read is {_text(earliest)}" if earliest else "it has no snapshot yet"
    raise TerminalError(
        f"nothing is kept of {at.astimezone(UTC).isoformat(timespec='seconds')}: {reach}",
        where=name,
        hint="snapshots are kept for sink.keep_snapshots_seconds; a history (storage.history) keeps all versions",
    )


def _history_of(lake: LakeSettings, locations: dict[str, str], name: str) -> str | None:
    """The table that has the versions of `name`'s rows."""
    for other, location in locations.items():
        if _metadata(lake, location).properties.get(HISTORY_OF) == name:
            return other
    return None


def _begin(lake: LakeSettings, location: str) -> datetime | None:
    """When the first version of a history began."""
    try:
        table = StaticTable.from_metadata(location, lake.properties)
        first: datetime | None = pc.min(table.scan(selected_fields=(BEGIN,)).to_arrow().column(BEGIN)).as_py()
    except OSError as e:
        raise UnavailableError(f"the table cannot be read: {type(e).__name__}", where=location) from e
    return first


def _metadata(lake: LakeSettings, location: str) -> TableMetadata:
    try:
        return FromInputFile.table_metadata(load_file_io(lake.properties, location).new_input(location))
    except OSError as e:
        raise UnavailableError(f"the table's metadata cannot be read: {type(e).__name__}", where=location) from e


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _text(millis: int) -> str:
    return datetime.fromtimestamp(millis / 1000, UTC).isoformat(timespec="milliseconds")
