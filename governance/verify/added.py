"""Columns that a table's source has got: what they hold in rows written before, which nobody sends again.

A table in the lake gets them with the first change that has them. Until then the copy in hand follows here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from governance.verify.values import canonical
from schemas.defaults import default_scalar

PROPERTY = "headrace.added."


class Added:
    """Defaults of columns: rows whose writer does not have the column hold it.

    Of the table's own it is what its properties say, of others what the writers' schemas do. A column without a
    default, or with one that Debezium cannot evaluate, is null in rows of before.
    """

    def __init__(self, columns: Iterable[str], properties: Mapping[str, str]) -> None:
        self._columns = set(columns)
        self._defaults: dict[str, Any] = {}
        for name, text in properties.items():
            if name.startswith(PROPERTY):
                self._put(name.removeprefix(PROPERTY), json.loads(text)["field"])

    def learn(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """What rows that are there hold in columns that no change before had, by Avro fields; changes come in the order
        of the log."""
        new = [name for name in fields if name not in self._columns]
        self._columns.update(new)
        for name in new:
            self._put(name, fields[name])
        return {name: self._defaults[name] for name in new if name in self._defaults}

    def filled(self, row: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
        """A row of a change whose writer may not have had some columns yet."""
        return {name: value for name, value in self._defaults.items() if name not in fields} | dict(row)

    def _put(self, name: str, field: Mapping[str, Any]) -> None:
        value = default_scalar(field)
        if value is not None:
            self._defaults[name] = canonical(value.as_py())
