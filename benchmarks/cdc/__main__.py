"""`python -m benchmarks.cdc`: change data capture side by side with other ways, on one machine in one run.

A backlog of changes in Kafka into a large table, by Headrace, pyiceberg's upsert, DuckDB's MERGE and Kafka Connect's
Iceberg sink; that table read by DuckDB; and databases through Debezium at Debezium's own limit. Starts its servers.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys

from benchmarks.__main__ import ended
from benchmarks.cdc.figures import CHANGES, OURS, ROWS
from benchmarks.cdc.page import write_page
from benchmarks.cdc.peers import PEERS
from benchmarks.cdc.session import Session
from benchmarks.cdc.stream import Plan
from benchmarks.cdc.workloads import pgbench, tpch
from stack.testing import SessionStack

WORKLOADS = {"pgbench": (pgbench, 50), "tpch": (tpch, 300_000)}
QUICK_SIZES = {"pgbench": 1, "tpch": 4_000}
QUICK_ROWS, QUICK_CHANGES = 200_000, 50_000
PLAN, QUICK_PLAN = Plan(300_000, 60.0), Plan(10_000, 5.0)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cdc", description=__doc__)
    parser.add_argument("--rows", type=int, help=f"of the large table; {ROWS:,} unless told, {QUICK_ROWS:,} if quick")
    parser.add_argument(
        "--changes", type=int, help=f"in the backlog; {CHANGES:,} unless told, {QUICK_CHANGES:,} if quick"
    )
    parser.add_argument("--quick", action="store_true", help="small and short: is everything right, not how fast")
    parser.add_argument(
        "--systems",
        nargs="*",
        choices=[OURS, *PEERS],
        metavar="SYSTEM",
        help=f"of the backlog: {', '.join(map(repr, [OURS, *PEERS]))}; ours always runs; none leaves the backlog out",
    )
    parser.add_argument(
        "--workloads", nargs="*", choices=WORKLOADS, default=list(WORKLOADS), help="through Debezium; may be none"
    )
    parser.add_argument("--scale", type=int, help=f"of pgbench: {WORKLOADS['pgbench'][1]} (5 M accounts) unless told")
    parser.add_argument("--orders", type=int, help=f"of TPC-H: {WORKLOADS['tpch'][1]:,} unless told")
    parser.add_argument("--seconds", type=float, help="of the steady stream")
    parser.add_argument(
        "--freshness", type=float, nargs="+", default=PLAN.targets, help="targets of the sink, seconds: its own, and 1"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/cdc.md and cdc.json")
    return parser.parse_args(arguments)


def measure(asked: argparse.Namespace, stack: SessionStack) -> Session:
    merging = asked.systems is None or bool(asked.systems)
    # All at once, so that no server starts while something is measured.
    servers = ["kafka", "registry", "postgres", *(["connect"] if asked.workloads else [])]
    session = Session(stack.need(*servers), asked.systems or [])
    if merging:
        rows = asked.rows or (QUICK_ROWS if asked.quick else ROWS)
        session.backlog(rows, asked.changes or (QUICK_CHANGES if asked.quick else CHANGES))
    plan = QUICK_PLAN if asked.quick else PLAN
    plan = Plan(plan.burst, asked.seconds or plan.seconds, tuple(asked.freshness))
    told = {"pgbench": asked.scale, "tpch": asked.orders}
    for name in asked.workloads:
        make, size = WORKLOADS[name]
        session.stream(stack.home, make(told[name] or (QUICK_SIZES[name] if asked.quick else size)), plan)
    return session


def main() -> int:
    asked = parse()
    signal.signal(signal.SIGTERM, ended)
    stack = SessionStack()
    try:
        report = measure(asked, stack).report
    except KeyboardInterrupt:
        print("interrupted: everything that was started is ended", file=sys.stderr)
        return 130
    finally:
        stack.close()
    if asked.json:
        print(json.dumps(report.as_dict(), indent=1))
    if asked.write:
        write_page(report, shlex.join(["python", "-m", "benchmarks.cdc", *sys.argv[1:]]))
    return 0 if report.right else 1


if __name__ == "__main__":
    sys.exit(main())
