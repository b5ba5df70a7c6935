"""The processes of the pipeline. `python -m cli.processes NAME` is `headrace run NAME` without the other commands: a
second and 140 MB less for each process, which is how stacks start them.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

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
    return [sys.executable, "-P", "-m", "cli.processes", name]


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


def run(name: str, port: int | None = None) -> int:
    """Run one process by its name until SIGTERM and return the exit status."""
    settings = load_settings({"process": {"name": name} | ({} if port is None else {"port": port})})
    return run_named((PROCESSES | WORLD)[name], settings)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cli.processes", description=__doc__)
    parser.add_argument("name", choices=PROCESSES | WORLD)
    parser.add_argument("--port", type=int, help="of health and metrics; 0 takes a free one")
    asked = parser.parse_args()
    return run(asked.name, asked.port)


if __name__ == "__main__":
    sys.exit(main())
