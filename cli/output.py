"""How commands speak: data on stdout, messages on stderr, `--json` for machines, one line for an error."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, errors too.")]

messages = Console(stderr=True, highlight=False, soft_wrap=True)
_data = Console(highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line for the person at the terminal (stderr)."""
    messages.print(text, markup=False)


def print_json(value: Any) -> None:
    print(json.dumps(value, default=str, indent=2, ensure_ascii=False))


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """A table on a terminal, tab-separated values elsewhere."""
    names = list(columns or (rows[0].keys() if rows else ()))
    if not sys.stdout.isatty():
        print("\t".join(names))
        for row in rows:
            print("\t".join(_text(row.get(name)) for name in names))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(_text(row.get(name)) for name in names))
    _data.print(table)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,.2f}" if isinstance(value, float) else str(value)
