"""The shop: a database that changes all the time, as a shop's does.

Orders come in with their lines, move from paid to delivered, are cancelled, corrected, deleted; customers join,
change, leave. Each action is one transaction. A restart goes on from what the database holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from importlib.resources import files
from random import Random
from typing import LiteralString, cast

import psycopg
from prometheus_client import Counter
from psycopg.conninfo import make_conninfo

from demo.model import CATALOG, CURRENCY, MODELS, SEGMENTS, SITES, Unit, fleet, person
from demo.options import Options, options
from headrace.config import Settings
from headrace.logs import get_logger
from headrace.process import Lifecycle

DATABASE = "shop"
NEXT = {"new": "paid", "paid": "shipped", "shipped": "delivered"}
TRANSACTIONS = Counter("headrace_demo_shop_transactions", "Transactions of the simulated shop", ("action",))

Statement = tuple[LiteralString, tuple[object, ...]]
Transaction = list[Statement]


@dataclass
class Order:
    id: int
    customer_id: int
    status: str
    lines: dict[int, tuple[int, Decimal]]
    """Line -> (quantity, unit price)."""

    @property
    def amount(self) -> Decimal:
        return sum((quantity * price for quantity, price in self.lines.values()), Decimal())


class Shop:
    """Decides what happens next. Pure: gives the statements of one transaction, and remembers that it happened."""

    def __init__(
        self, random: Random, countries: dict[int, str], orders: list[Order], devices: list[str], next_order: int
    ) -> None:
        self.random = random
        self.countries = countries
        self.devices = devices
        self.open = {order.id: order for order in orders}
        self.next_order = next_order
        self.next_customer = max(countries, default=0) + 1
        actions: list[tuple[int, Callable[[], Transaction]]] = [
            (22, self.place),
            (63, self.advance),
            (4, self.cancel),
            (4, self.correct),
            (2, self.delete),
            (2, self.join),
            (3, self.change),
            (1, self.leave),
            (1, self.refit),
        ]
        self.weights = [weight for weight, _ in actions]
        self.actions = [action for _, action in actions]

    def step(self) -> tuple[str, Transaction]:
        """The next action's name and its transaction; never empty."""
        while True:
            action = self.random.choices(self.actions, self.weights)[0]
            if transaction := action():
                return action.__name__, transaction

    def _pick(self, *statuses: str) -> Order | None:
        found = [order for order in self.open.values() if order.status in statuses]
        return self.random.choice(found) if found else None

    def place(self) -> Transaction:
        customer = self.random.choice(list(self.countries))
        country = self.countries[customer]
        skus = self.random.sample(list(CATALOG), self.random.randint(1, 4))
        lines = {
            line: (self.random.randint(1, 5), Decimal(CATALOG[sku]).scaleb(-2)) for line, sku in enumerate(skus, 1)
        }
        order = Order(self.next_order, customer, "new", lines)
        self.next_order += 1
        self.open[order.id] = order
        head: Statement = (
            "INSERT INTO orders VALUES (%s, %s, %s, 'new', %s, %s, now(), now())",
            (order.id, customer, country, order.amount, CURRENCY.get(country, "EUR")),
        )
        return [
            head,
            *(
                ("INSERT INTO order_lines VALUES (%s, %s, %s, %s, %s)", (order.id, line, sku, *lines[line]))
                for line, sku in enumerate(skus, 1)
            ),
        ]

    def _set_status(self, order: Order, status: str) -> Transaction:
        order.status = status
        if status in ("delivered", "cancelled"):
            del self.open[order.id]
        return [("UPDATE orders SET status = %s, updated_at = now() WHERE id = %s", (status, order.id))]

    def advance(self) -> Transaction:
        order = self._pick(*NEXT)
        return self._set_status(order, NEXT[order.status]) if order else []

    def cancel(self) -> Transaction:
        order = self._pick("new", "paid")
        return self._set_status(order, "cancelled") if order else []

    def correct(self) -> Transaction:
        """A price was wrong: the line and the order's amount change together."""
        order = self._pick("new", "paid")
        if order is None:
            return []
        line = self.random.choice(list(order.lines))
        quantity, price = order.lines[line]
        factor = Decimal(self.random.choice((80, 90, 110, 125))).scaleb(-2)
        order.lines[line] = quantity, (price * factor).quantize(Decimal("0.01"))
        return [
            (
                "UPDATE order_lines SET unit_price = %s WHERE order_id = %s AND line = %s",
                (order.lines[line][1], order.id, line),
            ),
            ("UPDATE orders SET amount = %s, updated_at = now() WHERE id = %s", (order.amount, order.id)),
        ]

    def _drop(self, order: Order) -> Transaction:
        del self.open[order.id]
        return [
            ("DELETE FROM order_lines WHERE order_id = %s", (order.id,)),
            ("DELETE FROM orders WHERE id = %s", (order.id,)),
        ]

    def delete(self) -> Transaction:
        order = self._pick("new")
        return self._drop(order) if order else []

    def join(self) -> Transaction:
        who = person(self.next_customer, self.random)
        self.next_customer += 1
        self.countries[who.id] = who.country
        return [
            (
                "INSERT INTO customers VALUES (%s, %s, %s, %s, %s, now(), now())",
                (who.id, who.name, who.email, who.country, who.segment),
            )
        ]

    def change(self) -> Transaction:
        customer = self.random.choice(list(self.countries))
        if self.random.random() < 0.5:
            email = f"customer.{customer}.{self.random.randint(1, 9999)}@example.org"
            return [("UPDATE customers SET email = %s, updated_at = now() WHERE id = %s", (email, customer))]
        segment = self.random.choice(SEGMENTS)
        return [("UPDATE customers SET segment = %s, updated_at = now() WHERE id = %s", (segment, customer))]

    def leave(self) -> Transaction:
        """A customer goes, and the orders that are not on their way go with them."""
        customer = self.random.choice(list(self.countries))
        theirs = [order for order in self.open.values() if order.customer_id == customer]
        if len(self.countries) < 10 or any(order.status == "shipped" for order in theirs):
            return []
        del self.countries[customer]
        gone = [statement for order in theirs for statement in self._drop(order)]
        return [*gone, ("DELETE FROM customers WHERE id = %s", (customer,))]

    def refit(self) -> Transaction:
        """A unit is moved, or its thermostat is set anew."""
        if not self.devices:
            return []
        device = self.random.choice(self.devices)
        if self.random.random() < 0.5:
            site = self.random.choice([site for sites in SITES.values() for site in sites])
            return [("UPDATE devices SET site = %s WHERE id = %s", (site, device))]
        shift = self.random.choice((-0.5, 0.5))
        return [
            (
                "UPDATE devices SET min_temperature = min_temperature + %s, max_temperature = max_temperature + %s"
                " WHERE id = %s AND abs(max_temperature + %s) < 30",
                (shift, shift, device, shift),
            )
        ]


def shop_url(settings: Settings) -> str:
    return settings.databases.get("shop") or make_conninfo(settings.postgres.url, dbname=DATABASE)


async def create(settings: Settings, plan: Options) -> None:
    """Database, tables and first customers and devices, where they are missing. Idempotent."""
    admin = await psycopg.AsyncConnection.connect(settings.postgres.url, autocommit=True)
    async with admin:
        found = await admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
        if await found.fetchone() is None:
            await admin.execute("CREATE DATABASE shop")
    async with await psycopg.AsyncConnection.connect(shop_url(settings)) as connection:
        script = (files("demo") / "schema.sql").read_bytes()
        await connection.execute("SELECT pg_advisory_xact_lock(4711)")
        await connection.execute(script)
        found = await connection.execute("SELECT count(*) FROM customers")
        row = await found.fetchone()
        if row is not None and row[0]:
            return
        random = Random(plan.seed)
        people = [person(number, random) for number in range(1, plan.customers + 1)]
        cursor = connection.cursor()
        await cursor.executemany(
            "INSERT INTO customers VALUES (%s, %s, %s, %s, %s, now(), now())",
            [(p.id, p.name, p.email, p.country, p.segment) for p in people],
        )
        await cursor.executemany(
            "INSERT INTO devices VALUES (%s, %s, %s, %s, %s, %s, true, now())",
            [(u.id, u.customer_id, u.model, u.site, *MODELS[u.model]) for u in fleet_of(plan)],
        )


def fleet_of(plan: Options) -> list[Unit]:
    return fleet(plan.devices, plan.customers, plan.seed)


async def resume(connection: psycopg.AsyncConnection[tuple[object, ...]], random: Random) -> Shop:
    """The shop as the database holds it now."""
    countries = {row[0]: row[1] async for row in await connection.execute("SELECT id, country FROM customers")}
    devices = [row[0] async for row in await connection.execute("SELECT id FROM devices ORDER BY id")]
    orders: dict[int, Order] = {}
    wanted = await connection.execute(
        "SELECT o.id, o.customer_id, o.status, l.line, l.quantity, l.unit_price FROM orders o"
        " JOIN order_lines l ON l.order_id = o.id WHERE o.status = ANY(%s) ORDER BY o.id, l.line",
        (list(NEXT),),
    )
    async for row in wanted:
        number, customer, status, line, quantity, price = cast(tuple[int, int, str, int, int, Decimal], row)
        orders.setdefault(number, Order(number, customer, status, {})).lines[line] = quantity, price
    found = await (await connection.execute("SELECT coalesce(max(id), 0) FROM orders")).fetchone()
    last = cast(int, found[0]) if found else 0
    people = cast(dict[int, str], countries)
    return Shop(random, people, list(orders.values()), cast(list[str], devices), last + 1)


async def _trade(settings: Settings, plan: Options, lifecycle: Lifecycle) -> None:
    """Until told to stop or the connection breaks. What was in doubt is settled by reading the database again."""
    async with await psycopg.AsyncConnection.connect(shop_url(settings), autocommit=True) as connection:
        shop = await resume(connection, Random(plan.seed))
        shop.random.seed(plan.seed * 1_000_003 + shop.next_order)
        lifecycle.ready()
        due = time.monotonic()
        while not lifecycle.stopping.is_set():
            name, statements = shop.step()
            async with connection.transaction():
                for statement, values in statements:
                    await connection.execute(statement, values)
            TRANSACTIONS.labels(name).inc()
            due = max(due, time.monotonic() - 1) + shop.random.expovariate(plan.shop_rate)
            await lifecycle.sleep(max(0.0, due - time.monotonic()))


async def run(settings: Settings, lifecycle: Lifecycle) -> None:
    """Trade until the process stops; wait for the database when it is away."""
    log, plan = get_logger("demo.shop"), options()
    away: list[str] = []
    lifecycle.checks["database"] = lambda: away[0] if away else None
    while not lifecycle.stopping.is_set():
        try:
            await create(settings, plan)
            away.clear()
            await _trade(settings, plan, lifecycle)
        except (TimeoutError, psycopg.OperationalError, psycopg.errors.SerializationFailure) as e:
            away[:] = [f"database is away: {type(e).__name__}"]
            log.warning("database is away", error=str(e).splitlines()[0] if str(e) else type(e).__name__)
            await lifecycle.sleep(1)
