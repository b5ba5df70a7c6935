"""The `headrace` command: noun, then verb. Data on stdout, messages on stderr; exit 0 done, 1 failed, 2 misused."""

from __future__ import annotations

import json
import sys

import typer

from cli import config, connect, contract, demo, kpi, quarantine, run, sql, stack, sync, table, verify
from cli.output import say
from headrace.errors import HeadraceError
from headrace.logs import configure_logs

app = typer.Typer(
    name="headrace",
    help="A streaming-first lakehouse: databases and devices through Kafka and Faust into Iceberg, KPIs and apps.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(config.app, name="config")
app.add_typer(contract.app, name="contract")
app.add_typer(connect.app, name="connect")
app.add_typer(kpi.app, name="kpi")
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(sync.app, name="sync")
app.add_typer(table.app, name="table")
app.add_typer(demo.app, name="demo")
app.command("run")(run.run)
app.command("sql")(sql.sql)
app.command("verify")(verify.verify)
for command in (stack.up, stack.status, stack.logs, stack.down):
    app.command()(command)


def main() -> None:
    """Run the command line; a `HeadraceError` becomes one line (or one JSON object) and exit status 1."""
    configure_logs("cli", "ERROR")
    try:
        app()
    except HeadraceError as e:
        if "--json" in sys.argv:
            print(json.dumps(e.as_dict(), default=str))
        else:
            say(f"headrace: {e}")
        sys.exit(1)


if __name__ == "__main__":
    main()
