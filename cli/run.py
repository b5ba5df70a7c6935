"""`headrace run NAME`: one process of the pipeline in the foreground. Compose and Kubernetes call this."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import processes
from cli.processes import PROCESSES, WORLD


def run(
    name: Annotated[str, typer.Argument(help=f"{', '.join(PROCESSES)}; of the demo: {', '.join(WORLD)}")],
    port: Annotated[int | None, typer.Option(help="Port of health and metrics; 0 takes a free one.")] = None,
) -> None:
    """Run one process of the pipeline until SIGTERM; it drains before it ends."""
    if name not in PROCESSES | WORLD:
        raise typer.BadParameter(f"no process {name!r}; there are {', '.join(PROCESSES | WORLD)}")
    raise typer.Exit(processes.run(name, port))
