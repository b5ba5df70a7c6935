"""Tables of the lake: rows, files, size and when each was last committed, from its current metadata."""

from __future__ import annotations

from dataclasses import dataclass

import orjson
from pyiceberg.io import load_file_io

from headrace.config import LakeSettings
from headrace.lake import table_locations


@dataclass(frozen=True)
class TableState:
    """`rows` counts live rows: position-deleted ones are taken off."""

    name: str
    rows: int
    files: int
    delete_files: int
    bytes: int
    snapshots: int
    snapshot_id: int | None
    committed_at: float | None
    """Seconds since the epoch."""


def read_tables(lake: LakeSettings) -> list[TableState]:
    """Every table of the catalog, by name. Blocks: call it in a thread."""
    return [_state(lake, name, location) for name, location in sorted(table_locations(lake).items())]


def _state(lake: LakeSettings, name: str, location: str) -> TableState:
    with load_file_io(lake.properties, location).new_input(location).open() as stream:
        metadata = orjson.loads(stream.read())
    current = metadata.get("current-snapshot-id")
    snapshots = metadata.get("snapshots", [])
    snapshot = next((s for s in snapshots if s["snapshot-id"] == current), None)
    summary = snapshot["summary"] if snapshot else {}
    return TableState(
        name=name,
        rows=int(summary.get("total-records", 0)) - int(summary.get("total-position-deletes", 0)),
        files=int(summary.get("total-data-files", 0)),
        delete_files=int(summary.get("total-delete-files", 0)),
        bytes=int(summary.get("total-files-size", 0)),
        snapshots=len(snapshots),
        snapshot_id=current if snapshot else None,
        committed_at=snapshot["timestamp-ms"] / 1000 if snapshot else None,
    )
