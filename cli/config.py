"""`headrace config explain`: each setting, its value and where it came from."""

from __future__ import annotations

from dataclasses import asdict

import typer

from cli.output import JsonFlag, print_json, print_rows
from headrace.config import explain

app = typer.Typer(help="Show the resolved configuration.", no_args_is_help=True)


@app.callback()
def main() -> None:
    """Show the resolved configuration."""


@app.command("explain")
def explain_command(as_json: JsonFlag = False) -> None:
    """Each setting, its value (secrets masked) and the layer that it came from."""
    rows = [asdict(origin) for origin in explain()]
    if as_json:
        print_json(rows)
    else:
        print_rows(rows)
