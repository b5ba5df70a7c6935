"""`headrace verify`: prove from the outside that nothing was lost, doubled or changed."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.output import JsonFlag, print_json, print_rows, say
from headrace.config import load_settings


def verify(
    only: Annotated[list[str] | None, typer.Argument(help="Check only flows whose name contains one of these.")] = None,
    kpi: Annotated[bool, typer.Option("--kpi", help="Check only the KPIs.")] = False,
    patience: Annotated[float, typer.Option(help="Seconds to wait for records that are still on their way.")] = 60.0,
    as_json: JsonFlag = False,
) -> None:
    """Compare Kafka, tables, databases and KPIs; exit 1 with the first offending coordinates when anything differs.

    Reads with other code than it checks, at the offsets that each table says it holds. May run at any time.
    """
    from governance.verify.run import Verification

    verification = Verification(
        load_settings(), patience=patience, progress=lambda text: None if as_json else say(text)
    )
    report = verification.run(["kpi"] if kpi else only or ())
    if as_json:
        print_json(report.as_dict())
    else:
        print_rows(
            [
                {
                    "": "ok" if check.ok else "FAILED",
                    "flow": check.flow,
                    "what": check.what,
                    "compared": check.compared,
                    "quarantined": check.quarantined,
                    "dropped": check.dropped,
                    "lag": check.lag,
                    "differences": check.total_offences,
                    "note": check.note,
                }
                for check in report.checks
            ]
        )
        for check in report.checks:
            for offence in check.offences:
                say(f"{check.flow}: {offence}")
        not_compared = sum(check.note.startswith("not compared") for check in report.checks)
        agrees = f"everything agrees{f'; {not_compared} not compared, see the notes' if not_compared else ''}"
        say(agrees if report.ok else f"first difference: {report.first_offence}")
    if not report.ok:
        raise typer.Exit(1)
