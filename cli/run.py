"""`headrace run NAME`: one process of the pipeline in the foreground. Stacks, Compose and Kubernetes call this.

Also `python -m cli.run NAME`, which imports nothing of the other commands: a second and 140 MB less for each process.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer

from demo.processes import PROCESSES as DEMO
from headrace.config import Settings, load_settings
from headrace.logs import configure_logs, get_logger
from headrace.process import Lifecycle, run_process


@dataclass(frozen=True)
class Process:
    """`entry` is `module:function`: an async body of (settings, lifecycle) or, with `pages`, a function of the settings
    that makes the process's own web application and its body."""

    entry: str
    about: str
    pages: bool = False


PROCESSES = {
    "worker": Process("streams.app:run", "Faust agents: clean, enrich, KPI state"),
    "merger": Process("streams.kpi.merger:run", "adds KPI contributions up and publishes kpi.values"),
    "sink": Process("sinks.iceberg.service:run", "lands topics in Iceberg, exactly once"),
    "kpi-sink": Process("sinks.kpi.service:run", "pushes KPI values to Redis and Prometheus"),
    "sync": Process("sinks.reverse.service:run", "writes back to business applications (reverse ETL)"),
    "bridge": Process("connectors.mqtt:run", "carries MQTT messages into Kafka"),
    "connectors": Process("connectors.supervise:service", "watches connectors and restarts what failed", pages=True),
    "serve": Process("serving.app:service", "dashboard, HTTP ingest, SQL", pages=True),
}


WORLD = {process.name: Process(process.entry, process.about, process.pages) for process in DEMO.values()}
"""What plays the world outside in the demo; run the same way."""


def command(name: str) -> list[str]:
    """The command line that runs one of the processes; a folder that happens to be called `schemas` is not imported."""
    return [sys.executable, "-P", "-m", "cli.run", name]


def _resolve(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def run_named(process: Process, settings: Settings) -> int:
    """Run until SIGTERM and return the exit status."""
    # The 200,000 objects that are imported stay. To look through them for garbage while they come takes a tenth of the
    # imports' time, and 0.1 s at each full collection ever after.
    gc.disable()
    entry = _resolve(process.entry)
    gc.freeze()
    gc.enable()
    # A process without kernels does without LLVM too.
    if kernels := sys.modules.get("headrace.kernels"):
        configure_logs(settings.process.name)
        kernels.prepare(lambda symbol: get_logger("kernels").info("compiled", kernel=symbol))
    if process.pages:
        pages, serve = entry(settings)
        return run_process(serve, settings.process, pages)
    body: Callable[[Settings, Lifecycle], Awaitable[None]] = entry
    return run_process(lambda lifecycle: body(settings, lifecycle), settings.process)


def run(
    name: Annotated[str, typer.Argument(help=f"{', '.join(PROCESSES)}; of the demo: {', '.join(WORLD)}")],
    port: Annotated[int | None, typer.Option(help="Port of health and metrics; 0 takes a free one.")] = None,
) -> None:
    """Run one process of the pipeline until SIGTERM; it drains before it ends."""
    processes = PROCESSES | WORLD
    if name not in processes:
        raise typer.BadParameter(f"no process {name!r}; there are {', '.join(processes)}")
    settings = load_settings({"process": {"name": name} | ({} if port is None else {"port": port})})
    raise typer.Exit(run_named(processes[name], settings))


if __name__ == "__main__":
    typer.run(run)
