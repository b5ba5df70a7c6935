"""`headrace sql "SELECT ..."`: DuckDB over every table of the lake."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from cli.output import JsonFlag, print_json, print_rows, say
from headrace.config import load_settings
from headrace.errors import ContractError, TerminalError
from headrace.lake import answer, table_locations
from schemas.durations import parse_duration


def sql(
    statement: Annotated[str, typer.Argument(help="One SELECT; '-' reads it from standard input.")] = "",
    as_of: Annotated[
        str,
        typer.Option("--as-of", metavar="TIME", help="ISO 8601 (UTC unless it says), or how long ago: 15m, 2h."),
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """Query the lake's newest snapshots, or those of an earlier time; without a statement, list the tables."""
    lake = load_settings().lake
    at = point_in_time(as_of, datetime.now(UTC)) if as_of else None
    if not statement:
        rows = [{"table": name} for name in sorted(table_locations(lake))]
    else:
        found = answer(lake, sys.stdin.read() if statement == "-" else statement, as_of=at)
        for table, source in found.sources.items():
            say(f"{table}: {source}")
        rows = [dict(zip(found.columns, row, strict=True)) for row in found.rows]
    if as_json:
        print_json(rows)
    else:
        print_rows(rows)


def point_in_time(text: str, now: datetime) -> datetime:
    """The time that a person means: ISO 8601, or a duration before now. Raises `TerminalError`."""
    try:
        return now - timedelta(seconds=parse_duration(text))
    except ContractError:
        pass
    try:
        at = datetime.fromisoformat(text)
    except ValueError as e:
        hint = "write 2026-01-31T10:00:00Z, or how long ago: 15m"
        raise TerminalError(f"{text!r} is not a time", where="--as-of", hint=hint) from e
    return at if at.tzinfo else at.replace(tzinfo=UTC)
