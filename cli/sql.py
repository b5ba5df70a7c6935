"""`headrace sql "SELECT ..."`: DuckDB over every table of the lake."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cli.output import JsonFlag, print_json, print_rows
from headrace.config import load_settings
from headrace.lake import query, table_locations


def sql(
    statement: Annotated[str, typer.Argument(help="One SELECT; '-' reads it from standard input.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Query the lake's newest snapshots; without a statement, list the tables."""
    lake = load_settings().lake
    if not statement:
        rows = [{"table": name} for name in sorted(table_locations(lake))]
    else:
        cursor = query(lake, sys.stdin.read() if statement == "-" else statement)
        names = [column[0] for column in cursor.description or []]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    if as_json:
        print_json(rows)
    else:
        print_rows(rows)
