"""`python -m benchmarks`: what each hop costs, with other ways of doing the same beside it, on one machine in one run.

Starts servers of its own, fills the topics, and runs every system in a process of its own, one by one.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys

from benchmarks.bars import EVENTS
from benchmarks.clients import CLIENTS
from benchmarks.hops import HOPS, TITLES
from benchmarks.page import write_page
from benchmarks.peers import connect
from benchmarks.session import Session
from stack.testing import SessionStack

QUICK_EVENTS = 100_000
SYSTEMS = list(
    dict.fromkeys([system for _, system in CLIENTS] + [s.name for hop in HOPS.values() for s in hop.systems])
)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--events", type=int, help=f"in each long run; {EVENTS:,} unless told, {QUICK_EVENTS:,} if quick"
    )
    parser.add_argument("--quick", action="store_true", help="few events, one run: is everything right, not how fast")
    parser.add_argument(
        "--hops", nargs="+", choices=TITLES, default=list(TITLES), metavar="HOP", help=", ".join(TITLES)
    )
    parser.add_argument(
        "--systems", nargs="+", choices=SYSTEMS, default=[], metavar="SYSTEM", help=", ".join(map(repr, SYSTEMS))
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks")
    return parser.parse_args(arguments)


def servers(asked: argparse.Namespace) -> list[str]:
    """What must run: the catalog of the Connect sink is on Postgres."""
    wanted = not asked.systems or connect.NAME in asked.systems
    postgres = ["postgres"] if wanted and {"append", "freshness"} & set(asked.hops) else []
    return ["kafka", "registry", *postgres]


def ended(number: int, _: object) -> None:
    """Told to end: leave as after Ctrl-C, so that everything that was started is ended."""
    raise KeyboardInterrupt(signal.Signals(number).name)


def main() -> int:
    asked = parse()
    events = asked.events or (QUICK_EVENTS if asked.quick else EVENTS)
    signal.signal(signal.SIGTERM, ended)
    stack = SessionStack()
    try:
        session = Session(stack.need(*servers(asked)), events, asked.systems, quick=asked.quick)
        try:
            for hop in asked.hops:
                session.run(hop)
        finally:
            if asked.json:
                print(json.dumps([row.as_dict() for row in session.rows], indent=1))
            session.close()
        if asked.write:
            write_page(session.rows, shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]))
    except KeyboardInterrupt:
        print("interrupted: everything that was started is ended", file=sys.stderr)
        return 130
    finally:
        stack.close()
    wrong = [row for row in session.rows if row.system == "headrace" and not row.rows_ok]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
