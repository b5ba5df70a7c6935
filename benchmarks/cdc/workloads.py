"""What the source databases hold and how they change: pgbench's tables, and orders with their lines as TPC-H has them.

Made by SQL alone. `check` is one statement, read alike by Postgres and DuckDB, whose answer tells two contents apart.
"""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from benchmarks.peers.environment import INSTALL_SECONDS
from headrace.errors import TerminalError
from stack.servers.postgres import BINARIES

Connection = Any


@dataclass
class Workload(ABC):
    """`tables`: name -> key and the SQL of a check, `{}` for the table. `size` is the workload's own."""

    name: str
    size: int
    tables: dict[str, str] = field(default_factory=dict)

    @abstractmethod
    def create(self, url: str, connection: Connection) -> None:
        """Make and fill the tables."""

    @abstractmethod
    def step(self, connection: Connection, changes: int) -> int:
        """About so many changed rows in one transaction; returns how many records Debezium makes of them."""


def pgbench(scale: int) -> Workload:
    checks = {
        "pgbench_accounts": "SELECT count(*), count(DISTINCT aid), sum(aid::bigint * (abalance + 7)) FROM {}",
        "pgbench_tellers": "SELECT count(*), count(DISTINCT tid), sum(tid::bigint * (tbalance + 7)) FROM {}",
        "pgbench_branches": "SELECT count(*), count(DISTINCT bid), sum(bid::bigint * (bbalance + 7)) FROM {}",
    }
    return _Pgbench("pgbench", scale, checks)


class _Pgbench(Workload):
    """`size` is pgbench's scale: 100,000 accounts each. Changes are its own kind, balances of random accounts, but many
    in a transaction: one by one they would not reach Debezium's limit."""

    def create(self, url: str, connection: Connection) -> None:
        made = subprocess.run(
            [str(BINARIES / "pgbench"), "-i", "-q", "-s", str(self.size), url],
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
        )
        if made.returncode:
            raise TerminalError(f"failed: {made.stderr[-300:]}", where="pgbench -i")

    def step(self, connection: Connection, changes: int) -> int:
        done = connection.execute(
            "UPDATE pgbench_accounts SET abalance = abalance + 1 + (random() * 1000)::int WHERE aid IN "
            "(SELECT 1 + floor(random() * %s)::int FROM generate_series(1, %s))",
            (self.size * 100_000, changes),
        )
        return int(done.rowcount)


def tpch(orders: int) -> Workload:
    checks = {
        "orders": "SELECT count(*), sum(o_orderkey * (o_custkey % 97)), sum(o_totalprice) FROM {}",
        "lineitem": "SELECT count(*), sum(l_orderkey * l_linenumber), sum(l_quantity * l_extendedprice) FROM {}",
    }
    return _Tpch("TPC-H orders and lineitem", orders, checks)


ORDERS = """\
CREATE TABLE orders (o_orderkey bigint PRIMARY KEY, o_custkey bigint NOT NULL, o_orderstatus char(1) NOT NULL,
  o_totalprice numeric(15,2) NOT NULL, o_orderdate date NOT NULL, o_orderpriority char(15) NOT NULL,
  o_clerk char(15) NOT NULL, o_shippriority int NOT NULL, o_comment varchar(79) NOT NULL);
CREATE TABLE lineitem (l_orderkey bigint NOT NULL, l_partkey bigint NOT NULL, l_suppkey bigint NOT NULL,
  l_linenumber int NOT NULL, l_quantity numeric(15,2) NOT NULL, l_extendedprice numeric(15,2) NOT NULL,
  l_discount numeric(15,2) NOT NULL, l_tax numeric(15,2) NOT NULL, l_returnflag char(1) NOT NULL,
  l_linestatus char(1) NOT NULL, l_shipdate date NOT NULL, l_commitdate date NOT NULL, l_receiptdate date NOT NULL,
  l_shipinstruct char(25) NOT NULL, l_shipmode char(10) NOT NULL, l_comment varchar(44) NOT NULL,
  PRIMARY KEY (l_orderkey, l_linenumber))"""
NEW_ORDERS = """\
INSERT INTO orders SELECT i, (random() * 150000)::bigint, 'O', (random() * 500000)::numeric(15,2),
  date '1992-01-01' + (random() * 2400)::int, '3-MEDIUM', 'Clerk#' || lpad((i %% 1000)::text, 9, '0'), 0,
  md5(i::text) FROM generate_series(%(first)s::bigint, %(last)s::bigint) i"""
NEW_LINES = """\
INSERT INTO lineitem SELECT i, (random() * 200000)::bigint, (random() * 10000)::bigint, n,
  1 + (random() * 49)::int, (900 + random() * 100000)::numeric(15,2), (random() * 0.1)::numeric(15,2),
  (random() * 0.08)::numeric(15,2), 'N', 'O', d, d + 30, d + 45, 'DELIVER IN PERSON', 'TRUCK', md5((i * 7 + n)::text)
  FROM generate_series(%(first)s::bigint, %(last)s::bigint) i, generate_series(1, 4) n,
  LATERAL (SELECT date '1992-01-01' + (i %% 2400)::int AS d) at"""
LINES = 4


class _Tpch(Workload):
    """`size` is orders, with four lines each. Changes are TPC-H's refresh functions: new orders with their lines come,
    as many of the oldest go; and prices of others change."""

    def create(self, url: str, connection: Connection) -> None:
        connection.execute(ORDERS)
        span = {"first": 1, "last": self.size}
        connection.execute(NEW_ORDERS, span)
        connection.execute(NEW_LINES, span)
        self._oldest, self._newest = 1, self.size

    def step(self, connection: Connection, changes: int) -> int:
        # Four rows of five are lines; a delete is two records, itself and its tombstone.
        orders = max(1, changes // (2 * (1 + LINES) + 1))
        with connection.transaction():
            connection.execute(NEW_ORDERS, {"first": self._newest + 1, "last": self._newest + orders})
            connection.execute(NEW_LINES, {"first": self._newest + 1, "last": self._newest + orders})
            last = self._oldest + orders - 1
            gone = connection.execute("DELETE FROM lineitem WHERE l_orderkey <= %s", (last,)).rowcount
            gone += connection.execute("DELETE FROM orders WHERE o_orderkey <= %s", (last,)).rowcount
            repriced = connection.execute(
                "UPDATE orders SET o_totalprice = o_totalprice + 1 WHERE o_orderkey BETWEEN %s AND %s",
                (self._newest - orders + 1, self._newest),
            ).rowcount
        self._oldest, self._newest = last + 1, self._newest + orders
        return orders * (1 + LINES) + 2 * int(gone) + int(repriced)
