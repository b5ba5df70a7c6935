"""`headrace table`: what the lake's tables are made of, and decisions about them."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer
from pyiceberg.catalog import Catalog

from cli.output import JsonFlag, print_json, print_rows, say
from headrace.config import load_settings
from headrace.errors import TerminalError
from sinks.iceberg.catalog import open_catalog
from sinks.iceberg.commit import trouble
from sinks.iceberg.operate import accept_gaps, adopt, existing_table, table_names, table_state
from sinks.iceberg.progress import topics
from sinks.iceberg.sweep import MIN_AGE, orphans, remove

app = typer.Typer(help="Look at tables, sweep their orphans, decide what halted them.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Such as silver.readings.")]


def _catalog() -> Catalog:
    return open_catalog(load_settings().lake)


@app.command("list")
def list_(as_json: JsonFlag = False) -> None:
    """Every table: rows, files, size, last commit."""
    catalog = _catalog()
    rows = [asdict(table_state(existing_table(catalog, name))) for name in table_names(catalog)]
    if as_json:
        print_json(rows)
    else:
        columns = ["table", "rows", "dead_rows", "files", "small_files", "bytes", "snapshots", "committed_seconds_ago"]
        print_rows(rows, columns)


@app.command()
def show(name: Name, as_json: JsonFlag = False) -> None:
    """One table: also its topics with the next offset of each partition, and the gaps that were recorded."""
    state = asdict(table_state(existing_table(_catalog(), name)))
    if as_json:
        print_json(state)
        return
    fed = state.pop("topics")
    print_rows([{"what": key, "value": value} for key, value in state.items()])
    for topic, known in fed.items():
        print_rows(
            [
                {"topic": topic, "partition": p, "next_offset": o, "gaps": ", ".join(known["gaps"].get(p, []))}
                for p, o in sorted(known["offsets"].items())
            ]
        )


@app.command()
def sweep(
    names: Annotated[list[str] | None, typer.Argument(help="Tables; all by default.")] = None,
    min_age: Annotated[float, typer.Option(help="Seconds; younger files may belong to a running commit.")] = MIN_AGE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove files that nothing refers to. The running sink does this too, by itself."""
    catalog = _catalog()
    found = []
    for name in names or table_names(catalog):
        table = existing_table(catalog, name)
        with trouble(name):
            files = orphans(table, min_age=min_age)
            if not dry_run:
                remove(table, files)
        found += [{"table": name, **asdict(file)} for file in files]
    if as_json:
        print_json(found)
    elif found:
        print_rows(found)
    say(f"{len(found)} files, {sum(f['size'] for f in found)} bytes{' would be' if dry_run else ''} removed")


@app.command("accept-gap")
def accept_gap(name: Name, as_json: JsonFlag = False) -> None:
    """Let a table go on behind records that were lost before it read them; the gap stays recorded."""
    accepted = accept_gaps(existing_table(_catalog(), name))
    if as_json:
        print_json(accepted)
    say(f"accepted: {', '.join(accepted)}" if accepted else "no gap waits for a decision")


@app.command("adopt")
def adopt_(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Let a table start over at the beginning of its topic, which was recreated or moved. Its rows stay.

    An append table gets twice what it has and the topic still holds.
    """
    table = existing_table(_catalog(), name)
    if (known := topics(table.properties)) and not yes:
        what = f"starts over from {', '.join(known)}: an append table gets twice what it has and the topic still holds"
        if not sys.stdin.isatty():
            raise TerminalError(f"would forget where it was; it {what}", where=name, hint="say it again with --yes")
        if typer.prompt(f"The table forgets where it was and {what}. Type {name} to go on", err=True) != name:
            raise TerminalError("not adopted", where=name)
    adopted = adopt(table)
    if as_json:
        print_json(adopted)
    say(f"{name} starts over from {', '.join(adopted)}" if adopted else f"{name} is fed by no topic")
