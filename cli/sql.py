"""`headrace sql "SELECT ..."`: DuckDB over every table of the lake."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cli.output import JsonFlag, print_json, print_rows
from headrace.config import load_settings
from headrace.lake import answer, table_locations


def sql(
    statement: Annotated[str, typer.Argument(help="One SELECT; '-' reads it from standard input.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Query the lake's newest snapshots; without a statement, list the tables."""
    lake = load_settings().lake
    if not statement:
        rows = [{"table": name} for name in sorted(table_locations(lake))]
    else:
        found = answer(lake, sys.stdin.read() if statement == "-" else statement)
        rows = [dict(zip(found.columns, row, strict=True)) for row in found.rows]
    if as_json:
        print_json(rows)
    else:
        print_rows(rows)
