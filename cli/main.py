"""The `headrace` command: noun, then verb. Data on stdout, messages on stderr; exit 0 done, 1 failed, 2 misused."""

from __future__ import annotations

import json
import sys
from importlib import import_module

import typer

from cli.output import say
from headrace.errors import HeadraceError
from headrace.logs import configure_logs

# What may follow `headrace`: nouns, and verbs with the module that has them.
NOUNS = ("config", "contract", "connect", "kpi", "quarantine", "sync", "table", "demo")
VERBS = {"run": "run", "sql": "sql", "verify": "verify", **dict.fromkeys(("up", "status", "logs", "down"), "stack")}


def make_app(word: str = "") -> typer.Typer:
    """The command line with what follows `word` alone, so that nothing else is imported; whole for any other word."""
    app = typer.Typer(
        name="headrace",
        help="A streaming-first lakehouse: databases and devices through Kafka and Faust into Iceberg, KPIs and apps.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    # Without a callback a single verb would be the whole command line.
    app.callback()(lambda: None)
    for noun in NOUNS:
        if word == noun or word not in (*NOUNS, *VERBS):
            app.add_typer(import_module(f"cli.{noun}").app, name=noun)
    for verb, module in VERBS.items():
        if word == verb or word not in (*NOUNS, *VERBS):
            app.command(verb)(getattr(import_module(f"cli.{module}"), verb))
    return app


def main() -> None:
    """Run the command line; a `HeadraceError` becomes one line (or one JSON object) and exit status 1."""
    configure_logs("cli", "ERROR")
    try:
        make_app(*sys.argv[1:2])()
    except HeadraceError as e:
        if "--json" in sys.argv:
            print(json.dumps(e.as_dict(), default=str))
        else:
            say(f"headrace: {e}")
        sys.exit(1)


if __name__ == "__main__":
    main()
