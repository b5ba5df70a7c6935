"""`headrace demo`: the world outside, played."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import httpx
import typer

from cli.output import say
from cli.run import WORLD, command
from cli.stack import pipeline, start
from connectors.connect import Connect, connector_files, load_connector
from demo.options import options
from demo.shop import create
from headrace.config import Settings, load_settings
from headrace.errors import UnavailableError
from stack import control
from stack.spec import ProcessSpec

app = typer.Typer(help="Play the demo's shop, devices and business application.", no_args_is_help=True)

PORTS = {"shop": 9111, "devices": 9112, "crm": 8090}
FIRST_KPI_SECONDS = 120.0
NEXT = """
What to try next (in another terminal, from this folder):
  .venv/bin/headrace verify                     prove that nothing was lost or doubled
  .venv/bin/headrace sql "SELECT status, count(*) FROM silver.orders GROUP BY 1"
  .venv/bin/headrace kpi list                   KPIs as they stand
  .venv/bin/headrace quarantine list            readings that broke their contract
  .venv/bin/headrace status                     every server and process
  kill -9 any of them                           and verify again
  make down                                     stop, and remove all state
"""


def world() -> list[ProcessSpec]:
    """The demo's processes for the stack's supervisor."""
    return [ProcessSpec(name, command(name), port=PORTS[name]) for name in WORLD]


@app.command()
def up(
    detach: Annotated[bool, typer.Option("--detach", help="Return as soon as the first KPI is live.")] = False,
    skip: Annotated[list[str] | None, typer.Option(help="Connectors not to apply.")] = None,
) -> None:
    """Start everything: servers, pipeline, shop, devices, business application. Ctrl-C stops it all."""
    attached = not detach
    home = start(control.Options(servers=("postgres",), attached=attached), [])
    asyncio.run(create(load_settings(), options()))
    # The business application may wait for its rows; shop and devices begin when there is somebody to listen.
    outside = {spec.name: spec for spec in world()}
    start(control.Options(attached=attached), [*pipeline(), outside.pop("crm")])
    settings = load_settings()
    connect = Connect(settings.connect.url)
    for path in connector_files(settings.content):
        connector = load_connector(path)
        if connector.name in (skip or ()):
            continue
        connect.check(connector)
        say(f"connector {connector.name}: {connect.apply(connector).state.lower()}")
    start(control.Options(attached=attached), list(outside.values()))
    settings = load_settings()
    dashboard = settings.endpoints["serve"]
    wait_for_kpi(settings, FIRST_KPI_SECONDS)
    say(NEXT)
    say(f"business application: {settings.endpoints['crm']}")
    say(f"dashboard: {dashboard}/")
    if not detach:
        control.hold(home)


def wait_for_kpi(settings: Settings, seconds: float) -> None:
    """Return when the dashboard shows a value. Raises `UnavailableError` saying what it shows instead."""
    url, deadline, said = settings.endpoints["serve"], time.monotonic() + seconds, "nothing yet"
    while time.monotonic() < deadline:
        try:
            if any(kpi["points"] for kpi in httpx.get(f"{url}/api/kpis", timeout=5).json()):
                return
            said = "; ".join(httpx.get(f"{url}/api/health", timeout=5).json()["troubles"]) or "no trouble, no value"
        except (httpx.HTTPError, ValueError) as e:
            said = f"{type(e).__name__}: {e}"
        time.sleep(0.5)
    raise UnavailableError(
        f"no KPI is live after {seconds:.0f} s: {said}", where=url, hint="headrace status; headrace logs"
    )


@app.command()
def prepare() -> None:
    """Create the shop's database and its first rows, so that a connector finds its tables. Idempotent."""
    asyncio.run(create(load_settings(), options()))
    say("database shop is ready")
