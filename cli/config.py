"""`headrace config explain | get`: each setting, its value and where it came from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cli.output import JsonFlag, print_json, print_rows
from headrace.config import explain
from headrace.errors import ConfigError

app = typer.Typer(help="Show the resolved configuration.", no_args_is_help=True)


@app.command("explain")
def explain_command(as_json: JsonFlag = False) -> None:
    """Each setting, its value (secrets masked) and the layer that it came from."""
    rows = [asdict(origin) for origin in explain()]
    if as_json:
        print_json(rows)
    else:
        print_rows(rows)


@app.command()
def get(key: Annotated[str, typer.Argument(help="Such as kafka.bootstrap_servers or endpoints.serve.")]) -> None:
    """One resolved value, for scripts. Secrets stay masked."""
    found = {origin.key: origin.value for origin in explain()}
    if key not in found:
        raise ConfigError("no such setting, or it has no value", where=key, hint="headrace config explain")
    print(found[key])
