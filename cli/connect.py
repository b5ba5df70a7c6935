"""`headrace connect`: connector files against Kafka Connect."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from cli.output import JsonFlag, print_json, print_rows, say
from connectors import snapshots
from connectors.connect import Connect, connector_files, load_connector
from connectors.databases import prepare_source
from connectors.identity import check_identity
from connectors.limits import check_columns
from connectors.mysql import check_server
from connectors.resnapshot import resnapshot as begin_anew
from connectors.source import LogState
from connectors.watch import Capture, Progress, Watch
from headrace.config import Settings, load_settings
from headrace.errors import ConfigError

COLUMNS = ("name", "state", "tasks", "lag", "log kept", "heartbeat", "last event", "restarts", "reason")

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
        check_identity(settings, connector.config)
        check_columns(settings, connector.config)
    done = []
    for connector in connectors:
        change = client.plan(connector)
        if not dry_run:
            prepare_source(settings, connector)
        state = "validated" if dry_run else client.apply(connector, timeout=timeout).state
        done.append({"name": connector.name, "file": str(connector.path), "change": change, "state": state})
    print_json(done) if as_json else print_rows(done)


@app.command()
def status(
    trace: Annotated[str, typer.Option(metavar="NAME", help="Print what a connector has thrown, whole.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Every connector: worst state, log kept for it, last event, snapshots, why. Exit 1 when one needs somebody."""
    settings = load_settings()
    with closing(Watch(settings)) as watch:
        if trace:
            print(watch.connect.traces(trace) or f"{trace} has thrown nothing")
            return
        found = watch.look()
    restarts = _restarts(settings)
    if as_json:
        extra = {c.name: {"last_event": c.last_event, "restarts": restarts.get(c.name)} for c in found}
        print_json([asdict(c) | extra[c.name] for c in found])
    else:
        print_rows([readable(c, restarts.get(c.name), time.time()) for c in found], COLUMNS)
        if parts := [part for c in found for part in c.snapshots]:
            print_rows([snapshot_row(part) for part in parts])
        for one in found:
            for problem in one.problems:
                say(f"{one.name}: {problem}")
    if watch.divided or any(c.state == "FAILED" or c.fault or c.flaw for c in found):
        raise typer.Exit(1)


@app.command()
def snapshot(
    table: Annotated[str, typer.Argument(help="SCHEMA.TABLE")],
    where: Annotated[str, typer.Option(metavar="SQL", help="Only rows for which this holds.")] = "",
    connector: Annotated[str, typer.Option(help="The connector, where several capture the table.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show progress until it is over.")] = False,
    pause: Annotated[bool, typer.Option("--pause", help="Pause the snapshot under way.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Let it go on.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End it; what was read stays.")] = False,
) -> None:
    """Read a table again while changes stream. It goes on by itself when Connect or the database was away."""
    steps = [name for name, on in (("pause", pause), ("resume", resume), ("stop", stop)) if on]
    if len(steps) > 1 or (steps and where):
        raise typer.BadParameter("--pause, --resume and --stop go alone")
    settings = load_settings()
    with closing(Watch(settings)) as watch:
        target = snapshots.find(watch, settings, table, connector)
        if steps:
            number = snapshots.steer(watch, settings, target, steps[0])
            say(f"{target.name}: told to {steps[0]}")
        else:
            number = snapshots.execute(watch, settings, target, table, where)
            say(f"{target.name}: asked for a snapshot of {table}: {number}")
        if follow:
            done = snapshots.follow(watch, target, number, Lines())
            say(f"{target.name}: {done.state}")


@app.command()
def resnapshot(
    name: str, yes: Annotated[bool, typer.Option("--yes", help="Do not ask for the name again.")] = False
) -> None:
    """Begin anew when changes are missing (slot lost, log purged): all tables are read; rows deleted meanwhile go."""
    _ask_again(name, yes, "read all of its tables again")
    settings = load_settings()
    with closing(Watch(settings)) as watch:
        begin_anew(watch, settings, snapshots.find(watch, settings, "", name), say, Lines())


@app.command()
def restart(
    name: str,
    everything: Annotated[
        bool, typer.Option("--all", help="Also what runs, so that it looks at its tables anew; waits until it runs.")
    ] = False,
) -> None:
    """Restart what has failed of a connector."""
    client = Connect(load_settings().connect.url)
    if everything:
        say(f"{name}: {client.restart_all(name).state}")
    else:
        client.restart(name)
        say(f"{name}: restarting what has failed")


@app.command()
def remove(
    name: str, yes: Annotated[bool, typer.Option("--yes", help="Do not ask for the name again.")] = False
) -> None:
    """Remove a connector. Its topics, offsets and replication slot stay."""
    _ask_again(name, yes, "remove it")
    Connect(load_settings().connect.url).remove(name)
    say(f"{name}: removed; its topics and its replication slot are still there")


def _ask_again(name: str, yes: bool, what: str) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("without a terminal say --yes")
    if typer.prompt(f"Type {name} to {what}") != name:
        raise typer.Exit(1)


def _restarts(settings: Settings) -> dict[str, int]:
    """Restarts in a row by connector, as the process `connectors` counts them; nothing while it does not answer."""
    url = settings.endpoints.get("connectors")
    if not url:
        return {}
    try:
        return {one["name"]: one["restarts"] for one in httpx.get(f"{url}/connectors", timeout=2).json()}
    except (httpx.HTTPError, ValueError):
        say("restarts are not known: headrace run connectors does not answer")
        return {}


def readable(capture: Capture, restarts: int | None, now: float) -> dict[str, Any]:
    """One connector as a row of the table that people read."""
    log = capture.log or LogState()
    return {
        "name": capture.name,
        "state": capture.state,
        "tasks": capture.tasks,
        "lag": size(log.lag_bytes),
        "log kept": size(log.kept_bytes),
        "heartbeat": age(capture.heartbeat, now),
        "last event": age(capture.last_event, now),
        "restarts": restarts,
        "reason": f"{capture.fault}: {capture.remedy}" if capture.fault else capture.reason or capture.flaw,
    }


def snapshot_row(part: Progress) -> dict[str, Any]:
    """A table's part in a snapshot, for people; what is an estimate says so."""
    total = "unknown" if part.total is None else f"about {part.total:,}"
    over = part.state == "completed"
    return {
        "snapshot": part.kind,
        "table": part.table,
        "state": part.state,
        "rows": f"{part.rows:,}",
        "of": "" if over else total,
        "rows/s": f"{part.rows_per_second:,.0f}",
        "left": "" if over else "unknown" if part.seconds_left is None else f"{part.seconds_left:,.0f} s",
    }


def size(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:,.1f} MB"


def age(at: float | None, now: float) -> str:
    return "" if at is None else f"{max(0.0, now - at):,.0f} s ago"


class Lines:
    """Prints a line when a table's progress has changed."""

    def __init__(self) -> None:
        self._shown: dict[str, str] = {}

    def __call__(self, parts: list[Progress]) -> None:
        for part in parts:
            row = snapshot_row(part)
            text = f"{part.table}: {part.state}, {row['rows']} rows"
            if row["of"]:
                text += f" of {row['of']}, {row['rows/s']}/s, time left {row['left']}"
            if self._shown.get(part.table) != text:
                self._shown[part.table] = text
                say(text)
