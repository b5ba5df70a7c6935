"""Tables read through DuckDB at one fixed snapshot each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb

from governance.verify.values import reader_of_arrow
from headrace.config import LakeSettings
from headrace.errors import TerminalError
from headrace.lake import open_duckdb, table_locations

OFFSET = "headrace.offset."
ROWS = 20_000


@dataclass(frozen=True)
class Table:
    """One table at one snapshot. `offsets` are the next offsets that it says it holds, by topic and partition."""

    name: str
    location: str
    columns: dict[str, str]
    properties: dict[str, str]

    def offsets(self, topic: str) -> dict[int, int]:
        prefix = f"{OFFSET}{topic}."
        return {
            int(name.removeprefix(prefix)): int(value)
            for name, value in self.properties.items()
            if name.startswith(prefix) and name.removeprefix(prefix).isdigit()
        }


class Lake:
    def __init__(self, settings: LakeSettings) -> None:
        self._settings = settings
        self._duck = open_duckdb(settings)
        self._locations = table_locations(settings)

    def refresh(self) -> None:
        self._locations = table_locations(self._settings)

    def names(self) -> list[str]:
        return sorted(self._locations)

    def table(self, name: str) -> Table | None:
        location = self._locations.get(name)
        if location is None:
            return None
        path = location.removeprefix("file://")
        row = self._duck.execute("SELECT content FROM read_text(?)", [path]).fetchone()
        if row is None:
            raise TerminalError("its metadata file is gone", where=name)
        metadata = json.loads(row[0])
        if metadata.get("current-snapshot-id", -1) in (-1, None):
            columns: dict[str, str] = {}
        else:
            described = self._duck.execute(f"DESCRIBE FROM {self._scan(location)}").fetchall()
            columns = {column[0]: column[1] for column in described}
        return Table(name, location, columns, metadata.get("properties", {}))

    @staticmethod
    def _scan(location: str) -> str:
        quoted = location.replace("'", "''")
        return f"iceberg_scan('{quoted}')"

    def scan(self, table: Table) -> str:
        """What to write after FROM to read this snapshot."""
        if not table.columns:
            return "(SELECT NULL WHERE false)"
        return self._scan(table.location)

    def execute(self, sql: str, values: list[Any] | None = None) -> duckdb.DuckDBPyConnection:
        return self._duck.cursor().execute(sql, values or [])

    def rows(self, sql: str, values: list[Any] | None = None) -> Iterator[dict[str, Any]]:
        """Rows of a query in canonical form, a bounded number at a time."""
        reader = self.execute(sql, values).to_arrow_reader(ROWS)
        forms = [(field.name, reader_of_arrow(field.type)) for field in reader.schema]
        for batch in reader:
            for row in batch.to_pylist():
                yield {name: form(row[name]) for name, form in forms}
