"""What Debezium does not carry, said once: for docs/types.md, and for columns that are known by their type alone.

Such a column is told when a connector file is applied and while it runs, before changes are missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from connectors.databases import open_source
from connectors.identity import captures
from connectors.source import Source
from headrace.config import Settings
from headrace.errors import ContractError


@dataclass(frozen=True)
class Limit:
    """What Debezium does not carry: the type or value, what arrives in its place, what to do.

    `types` matches the types, as the database's catalog says them, of which that is sure, and `refused` says which they
    are: `remedied_by_full` only in tables without REPLICA IDENTITY FULL, and of a `table` as a whole even when the
    column is left out.
    """

    what: str
    arrives: str
    instead: str
    types: str = ""
    refused: str = ""
    remedied_by_full: bool = False
    table: bool = False


STOPS = "the connector stops and names the column"
POSTGRESQL = (
    Limit(
        "an array of more than one dimension",
        "nulls for numbers, names of Java objects for text; Debezium says nothing",
        "store it as jsonb; `headrace verify` reports the rows",
    ),
    Limit(
        "`NaN`, `Infinity` in numeric",
        STOPS,
        "use double precision; or `decimal.handling.mode=string`, which makes every decimal text (`NAN`, "
        "`POSITIVE_INFINITY`) but in arrays",
    ),
    Limit("a null element in an array of enum, ltree, composite, multirange or tsvector", STOPS, "store it as text[]"),
    Limit("bit(n)[]", "the connector stops at the first value", "store it as text[]", r"bit(\(\d+\))?\[\]", "yes"),
    Limit(
        "arrays of interval, money, xml, name, point, bit varying",
        "the column is left out",
        "store it as text[] or jsonb",
        r"(interval.*|money|xml|name|point|bit varying(\(\d+\))?)\[\]",
        "yes",
    ),
    Limit(
        "a domain over an enum, wherever in the database",
        "the connector does not start, and does not say why",
        "use the enum itself, and drop the domain",
        "domain over an enum",
        "yes",
        table=True,
    ),
    Limit("sparsevec with an index above 32767", STOPS, "use vector"),
    Limit(
        "years before Christ in date[] and timestamptz[], and in date when a snapshot reads it",
        "the same year after Christ; Debezium says nothing",
        "store them as timestamp; `headrace verify` reports the rows",
    ),
    Limit(
        "a large unchanged value (TOAST) of numeric, bit varying, vector, or an array of other elements than "
        "text, uuid, bytea, json, int, bigint and date, under REPLICA IDENTITY DEFAULT",
        STOPS,
        "ALTER TABLE ... REPLICA IDENTITY FULL",
        r"(.+\.)?(vector\((\d{4,}|[5-9]\d\d)\)|halfvec\(\d{4,}\))",
        "vector of 500 dimensions and more, halfvec of 1000",
        remedied_by_full=True,
    ),
)
MARIADB = (
    Limit(
        "a zero date in a column that is NOT NULL",
        "1970-01-01; Debezium says nothing",
        "let the column be NULL; `headrace verify` reports the rows",
    ),
    Limit(
        "time below 00:00:00 or beyond 24:00:00",
        "the row is quarantined, with the reason",
        "store it as a number of seconds",
    ),
    Limit(
        "float of more than six digits, when a snapshot reads it",
        "six digits, as the server prints it; a change of the row brings all",
        "use double; `headrace verify` reports the rows",
    ),
    Limit(
        "a uuid that ends in `00`, when a change brings it",
        "another one: its bytes shifted to the right; Debezium says nothing",
        "store it as char(36) or binary(16); `headrace verify` reports the rows",
    ),
    Limit("the year 0000", "2000 or 1900; Debezium says nothing", "let it be NULL; `headrace verify` reports the rows"),
    Limit(
        "a column that is added as float4, while changes stream",
        "the connector stops at its first value, and names the column",
        "declare it as float",
    ),
    Limit(
        "a column declared boolean, of a table that is created or altered while changes stream",
        "true for every number but 0, in a boolean column: an int one where a snapshot has read the table",
        "declare it as tinyint(1); `headrace verify` reports the rows",
    ),
    Limit(
        "inet4, inet6",
        "the connector stops: Debezium does not understand the table's definition",
        "store it as varbinary(16) or text",
        "inet[46]",
        "yes",
        table=True,
    ),
    Limit(
        "a table with inet4 or inet6 that is not captured, of any database of the server, and is created or altered "
        "while changes stream",
        "the connector stops, and names neither",
        "`schema.history.internal.skip.unparseable.ddl=true` until it is past; then remove that, for it hides "
        "definitions of captured tables too",
    ),
)


def uncarried(source: Source, config: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Captured columns (`schema.table.column`) that Debezium does not carry: what happens, and what mends it.

    Raises as `Source.columns`.
    """
    found = {}
    for column in source.columns():
        for limit in (*POSTGRESQL, *MARIADB):
            if not re.fullmatch(limit.types, column.type) or (limit.remedied_by_full and column.whole):
                continue
            if not column.table or captures(config, column.table, "" if limit.table else column.name):
                instead = limit.instead.replace("...", column.table)
                mend = instead if limit.table else f"{instead}; or leave it out (column.exclude.list)"
                found[f"{column.table}.{column.name}".lstrip(".")] = f"{column.type}: {limit.arrives}", mend
    return found


def check_columns(settings: Settings, config: Mapping[str, str]) -> None:
    """Raise `ContractError` for the first such column of a connector's database, if the settings name that."""
    source = open_source(settings, config)
    for column, (what, mend) in (uncarried(source, config) if source else {}).items():
        raise ContractError(what, where=column, hint=mend)
