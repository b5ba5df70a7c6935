"""`headrace sync`: rows written back to business applications."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from cli.output import JsonFlag, print_json, print_rows, say
from headrace.config import load_settings
from headrace.errors import ConfigError
from sinks.reverse.declaration import Sync, load_syncs
from sinks.reverse.status import Refused, SyncStatus, ask_replay, reset, sync_status

app = typer.Typer(help="Reverse ETL: see syncs, replay what a target refused.", no_args_is_help=True)


def _find(name: str) -> Sync:
    syncs = load_syncs(load_settings().content)
    if name not in syncs:
        raise ConfigError("no such sync", where=name, hint=f"there are: {', '.join(syncs) or 'none'}")
    return syncs[name]


@app.command("list")
def list_command(as_json: JsonFlag = False) -> None:
    """Every declared sync."""
    syncs = load_syncs(load_settings().content).values()
    rows = [
        {
            "name": s.name,
            "mode": s.mode,
            "sources": ", ".join(s.topics),
            "target": f"{s.target} ({s.type})",
            "doc": s.doc,
        }
        for s in syncs
    ]
    print_json(rows) if as_json else print_rows(rows)


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="One sync, with what its target refused.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Rows proved in the target, rows due, refusals and lag."""
    settings = load_settings()
    syncs = [_find(name)] if name else list(load_syncs(settings.content).values())
    found = [sync_status(sync, settings.kafka) for sync in syncs]
    if as_json:
        print_json([asdict(one) for one in found])
        return
    print_rows([_row(one) for one in found])
    if name and found[0].refused:
        print()
        print_rows([{"times": times, "reason": reason} for reason, times in found[0].reasons().items()])


def _row(one: SyncStatus) -> dict[str, object]:
    row = {"name": one.name, "target": one.target, "rows": one.rows, "due": one.due, "lag": one.lag}
    settled = one.settled_at.isoformat(timespec="seconds") if one.settled_at else "never"
    return row | {"refused": len(one.refused), "settled": settled if one.started else "not started"}


@app.command()
def replay(
    name: str,
    reason: Annotated[str, typer.Option(help="Only what the target refused with this text in its answer.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be tried again.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Ask the running sync to try again what its target refused. A row is sent as it is now."""
    sync, settings = _find(name), load_settings()
    found = [one for one in sync_status(sync, settings.kafka).refused if reason in one.response]
    if found and not dry_run:
        ask_replay(sync, settings.kafka, [one.key for one in found])
    if as_json:
        print_json([asdict(one) for one in found])
    else:
        print_rows([_refusal(one) for one in found], ("change", "attempts", "response"))
        say(f"{len(found)} {'would be' if dry_run else 'will be'} tried again")


def _refusal(one: Refused) -> dict[str, object]:
    return {"change": f"{one.op} from {one.at}", "attempts": one.attempts, "response": one.response}


@app.command("reset")
def reset_command(
    name: str, yes: Annotated[bool, typer.Option("--yes", help="Do not ask for the name again.")] = False
) -> None:
    """Read a sync's topics anew from their beginning. What the target has stays known: only differences are sent."""
    sync = _find(name)
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("without a terminal say --yes")
        if typer.prompt(f"Type {name} to read its topics anew") != name:
            raise typer.Exit(1)
    reset(sync, load_settings())
    say(f"{name}: reads its topics anew")
