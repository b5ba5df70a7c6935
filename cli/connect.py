"""`headrace connect`: connector files against Kafka Connect."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.output import JsonFlag, print_json, print_rows, say
from connectors.connect import Connect, connector_files, load_connector
from connectors.mysql import check_server
from headrace.config import load_settings
from headrace.errors import ConfigError

app = typer.Typer(help="Apply and watch Debezium connectors.", no_args_is_help=True)


@app.command()
def apply(
    files: Annotated[list[Path] | None, typer.Argument(help="Connector files; all of the content by default.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Validate and say what would change.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for each connector to run.")] = 60.0,
    as_json: JsonFlag = False,
) -> None:
    """Validate each file, put it, wait until all of its tasks run. Repeating it changes nothing."""
    settings = load_settings()
    paths = files or connector_files(settings.content)
    if not paths:
        raise ConfigError(
            "no connector files", where="connectors/debezium", hint="add NAME.json, or name files as arguments"
        )
    connectors = [load_connector(path) for path in paths]
    client = Connect(settings.connect.url)
    for connector in connectors:
        client.check(connector)
        check_server(connector.config, settings.databases)
    done = []
    for connector in connectors:
        change = client.plan(connector)
        state = "validated" if dry_run else client.apply(connector, timeout=timeout).state
        done.append({"name": connector.name, "file": str(connector.path), "change": change, "state": state})
    print_json(done) if as_json else print_rows(done)


@app.command()
def status(as_json: JsonFlag = False) -> None:
    """Every connector: its worst task's state and why. Exit status 1 when one has failed."""
    found = Connect(load_settings().connect.url).statuses()
    if as_json:
        print_json([asdict(one) for one in found])
    else:
        print_rows(
            [{"name": s.name, "state": s.state, "tasks": len(s.tasks), "reason": s.reason} for s in found],
            ("name", "state", "tasks", "reason"),
        )
    if any(one.state == "FAILED" for one in found):
        raise typer.Exit(1)


@app.command()
def restart(name: str) -> None:
    """Restart what has failed of a connector."""
    Connect(load_settings().connect.url).restart(name)
    say(f"{name}: restarting what has failed")


@app.command()
def remove(
    name: str, yes: Annotated[bool, typer.Option("--yes", help="Do not ask for the name again.")] = False
) -> None:
    """Remove a connector. Its topics, offsets and replication slot stay."""
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("without a terminal say --yes")
        if typer.prompt(f"Type {name} to remove it") != name:
            raise typer.Exit(1)
    Connect(load_settings().connect.url).remove(name)
    say(f"{name}: removed; its topics and its replication slot are still there")
