"""`headrace demo`: the world outside, played."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event
from typing import Annotated

import httpx
import typer

from cli.output import say
from cli.processes import WORLD, command
from cli.stack import pipeline, start
from connectors.connect import Connect, connector_files, load_connector
from connectors.databases import prepare_source
from demo.options import options
from demo.shop import create
from headrace.config import Settings, explain, load_settings
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
    with ThreadPoolExecutor(1) as beside:
        # Agents wait for the rows that they look up, so connectors must not wait for agents to be ready.
        failed = Event()
        connectors = beside.submit(apply_connectors, frozenset(skip or ()), failed)
        try:
            start(control.Options(attached=attached), [*pipeline(), *world()])
        except BaseException:
            failed.set()
            raise
        for name, state in connectors.result():
            say(f"connector {name}: {state.lower()}")
    settings = load_settings()
    dashboard = settings.endpoints["serve"]
    wait_for_kpi(settings, FIRST_KPI_SECONDS)
    say(NEXT)
    say(f"business application: {settings.endpoints['crm']}")
    say(f"dashboard: {dashboard}/")
    if not detach:
        control.hold(home)


def apply_connectors(skip: frozenset[str], failed: Event, patience: float = 180.0) -> list[tuple[str, str]]:
    """Apply all connector files once this stack's Connect answers; names and states. Raises what Connect says."""
    deadline = time.monotonic() + patience
    connect, settings = None, load_settings()
    while connect is None:
        if failed.wait(0.5) or time.monotonic() > deadline:
            raise UnavailableError("Connect has not started", where="connect.url", hint="headrace logs connect")
        # Until the stack has said where its Connect is, the default address may be somebody else's.
        if all(origin.key != "connect.url" or origin.source == "default" for origin in explain()):
            continue
        settings = load_settings()
        with suppress(UnavailableError):
            Connect(settings.connect.url).statuses()
            connect = Connect(settings.connect.url)
    found = []
    for path in connector_files(settings.content):
        connector = load_connector(path)
        if connector.name not in skip:
            connect.check(connector)
            prepare_source(settings, connector)
            found.append((connector.name, connect.apply(connector).state))
    return found


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
