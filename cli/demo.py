"""`headrace demo`: the world outside, played."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from cli.output import say
from cli.run import Process, run_named
from demo.options import options
from demo.processes import PROCESSES
from demo.shop import create
from headrace.config import load_settings

app = typer.Typer(help="Play the demo's shop, devices and business application.", no_args_is_help=True)


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="One of: " + ", ".join(PROCESSES))],
    port: Annotated[int | None, typer.Option(help="Port of health, metrics and pages; 0 takes a free one.")] = None,
) -> None:
    """Run one of the demo's processes until SIGTERM."""
    if name not in PROCESSES:
        raise typer.BadParameter(f"no process {name!r}; there are {', '.join(PROCESSES)}")
    settings = load_settings({"process": {"name": f"demo-{name}"} | ({} if port is None else {"port": port})})
    process = PROCESSES[name]
    raise typer.Exit(run_named(Process(process.entry, process.about, process.pages), settings))


@app.command()
def prepare() -> None:
    """Create the shop's database and its first rows, so that a connector finds its tables. Idempotent."""
    asyncio.run(create(load_settings(), options()))
    say("database shop is ready")
