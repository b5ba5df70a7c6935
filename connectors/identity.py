"""Captured tables whose deletes do not say which row is gone.

Debezium's keys are the columns of a table's primary key, but a delete has what its REPLICA IDENTITY is made of. Where
that is an index which lacks a column of the primary key, Debezium puts a default in its place, and the row stays in
the lake.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from connectors.databases import open_source
from connectors.mysql import is_binlog
from connectors.source import Source
from headrace.config import Settings
from headrace.errors import ContractError

NAMELESS = "its deletes do not say which row is gone: its REPLICA IDENTITY is an index without its primary key"


def captures(config: Mapping[str, str], table: str, column: str = "") -> bool:
    """Whether a connector reads a table (`schema.table`), and a column of it where one is given, by its lists of
    expressions as Debezium takes them. Pure."""
    lists = [("database" if is_binlog(config) else "schema", table.partition(".")[0]), ("table", table)]
    lists += [("column", f"{table}.{column}")] if column else []
    for kind, name in lists:
        included, excluded = (config.get(f"{kind}.{way}.list", "") for way in ("include", "exclude"))
        if (included and not _one_of(included, name)) or (excluded and _one_of(excluded, name)):
            return False
    return True


def nameless(source: Source, config: Mapping[str, str]) -> dict[str, str]:
    """Captured tables whose deletes do not say which row is gone, each with the statement that mends it.

    Not those that `message.key.columns` gives another key. Raises as `Source.nameless`.
    """
    keyed = ",".join(part.rpartition(":")[0] for part in config.get("message.key.columns", "").split(";"))
    found = source.nameless().items()
    return {table: mend for table, mend in found if captures(config, table) and not _one_of(keyed, table)}


def check_identity(settings: Settings, config: Mapping[str, str]) -> None:
    """Raise `ContractError` for the first such table of a connector's database, if the settings name that."""
    source = open_source(settings, config)
    for table, mend in (nameless(source, config) if source else {}).items():
        raise ContractError(NAMELESS, where=table, hint=mend)


def _one_of(expressions: str, name: str) -> bool:
    return any(re.fullmatch(one.strip(), name, re.IGNORECASE) for one in expressions.split(",") if one.strip())
