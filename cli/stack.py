"""`headrace up | status | logs | down`: the local stack."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.output import JsonFlag, messages, print_json, print_rows, say
from cli.processes import PROCESSES, command
from headrace.config import load_settings
from headrace.errors import StackError
from stack import control
from stack.progress import Show
from stack.spec import ProcessSpec

app = typer.Typer(help="Start, watch and stop the local stack.", no_args_is_help=True)

PORTS = {
    "serve": 8080,
    "worker": 9101,
    "merger": 9102,
    "sink": 9103,
    "kpi-sink": 9104,
    "sync": 9105,
    "bridge": 9106,
    "connectors": 9107,
}


def pipeline() -> list[ProcessSpec]:
    """Headrace's own processes, each `headrace run NAME`."""
    return [ProcessSpec(name, command(name), port=PORTS.get(name, 9110)) for name in PROCESSES]


def start(options: control.Options, processes: list[ProcessSpec]) -> Path:
    """`up` with progress shown; returns the stack's home. Raises `StackError`."""
    home = load_settings().state
    with Show(messages) as show:
        started = control.up(home, options, processes, show.child, show.download)
    troubled = [f"{row['name']}: {row['reason']}" for row in control.status(home) if row["state"] == "unhealthy"]
    say("everything is up" if started else "already running")
    for trouble in troubled:
        say(f"but not well: {trouble}")
    return home


def _pairs(values: list[str], what: str) -> dict[str, str]:
    found = {}
    for value in values:
        name, sep, right = value.partition("=")
        if not (sep and name and right):
            raise typer.BadParameter(f"{value!r} is not NAME={what}")
        found[name] = right
    return found


@app.command()
def up(
    servers_only: Annotated[bool, typer.Option("--servers-only", help="Without Headrace's own processes.")] = False,
    s3: Annotated[bool, typer.Option("--s3", help="Keep the lake in SeaweedFS (S3) instead of a folder.")] = False,
    mariadb: Annotated[bool, typer.Option("--mariadb", help="With a MariaDB server to capture changes from.")] = False,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay, and stop everything on Ctrl-C.")] = False,
    port: Annotated[list[str] | None, typer.Option(metavar="NAME=NUMBER", help="Fix a port.")] = None,
    heap: Annotated[list[str] | None, typer.Option(metavar="SERVER=SIZE", help="JVM heap, e.g. kafka=1g.")] = None,
) -> None:
    """Start the servers and Headrace's processes, wait until all are well. Does nothing to what runs already."""
    numbers = _pairs(port or [], "NUMBER")
    if wrong := next((value for value in numbers.values() if not value.isdigit()), None):
        raise typer.BadParameter(f"{wrong!r} is not a port number")
    options = control.Options(
        s3=s3,
        mariadb=mariadb,
        ports={name: int(value) for name, value in numbers.items()},
        heaps=_pairs(heap or [], "SIZE"),
        attached=foreground,
    )
    home = start(options, [] if servers_only else pipeline())
    if foreground:
        say("Ctrl-C stops everything")
        control.hold(home)


@app.command()
def status(as_json: JsonFlag = False) -> None:
    """Each server and process: state, pid, port, uptime, restarts, memory, and what is wrong. Exit 1 unless all run."""
    rows = control.status(load_settings().state)
    if as_json:
        print_json(rows)
    elif rows:
        print_rows([_readable(row) for row in rows])
    else:
        say("nothing has been started here: headrace up")
    if not rows or any(row["state"] not in ("running", "yours") for row in rows):
        raise typer.Exit(1)


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    seconds, size = row.pop("uptime_seconds"), row.pop("memory_bytes")
    row["uptime"] = (
        None if seconds is None else f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"
    )
    row["memory"] = None if size is None else f"{size / 2**20:.0f} MB"
    row["reason"] = row.pop("reason")
    return row


@app.command()
def logs(
    name: Annotated[str, typer.Argument(help="A server or process; all without it.")] = "",
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="Lines from the end of each log.")] = 50,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as lines are written.")] = False,
) -> None:
    """What servers and processes have written."""
    files = control.log_files(load_settings().state)
    if name and name not in files:
        raise StackError(f"no log of {name!r}", hint=f"there are {', '.join(files) or 'none'}")
    chosen = {name: files[name]} if name else files

    def prefix(of: str) -> str:
        return "" if name else f"{of} | "

    for one, path in chosen.items():
        for line in control.tail(path, lines):
            print(prefix(one) + line.rstrip("\n"))
    if follow:
        try:
            for one, line in control.follow(chosen):
                print(prefix(one) + line, flush=True)
        except KeyboardInterrupt:
            return


@app.command()
def down(
    purge: Annotated[bool, typer.Option("--purge", help="Remove all state too: topics, tables, databases.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Stop everything; with --purge remove all state."""
    home = load_settings().state
    if purge and home.exists() and not yes:
        if not sys.stdin.isatty():
            raise StackError("would remove all state", where=str(home), hint="say it again with --yes")
        if typer.prompt(f"This removes all state in {home}. Type {home.name} to go on", err=True) != home.name:
            raise StackError("nothing stopped, nothing removed", where=str(home))
    with Show(messages) as show:
        stopped = control.stop(home, on_child=show.child)
    if purge:
        control.purge(home)
        say(f"removed {home}")
    elif not stopped:
        say("nothing was running")
