from __future__ import annotations

import sqlite3
from decimal import Decimal
from pathlib import Path
from random import Random

import demo.shop
from demo.model import fleet
from demo.shop import Shop, Transaction


def shop(seed: int) -> Shop:
    return Shop(Random(seed), dict.fromkeys(range(1, 31), "FR"), [], ["fr-0001", "de-0002"], 1)


def test_the_same_seed_does_the_same() -> None:
    def actions() -> list[tuple[str, Transaction]]:
        one = shop(3)
        return [one.step() for _ in range(500)]

    assert actions() == actions()


def test_the_database_stays_sound_and_the_shop_knows_it() -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.create_function("now", 0, lambda: "now")
    for statement in (Path(demo.shop.__file__).parent / "schema.sql").read_text().split(";"):
        if statement.strip().startswith("CREATE"):
            db.execute(statement.replace("numeric(12, 2)", "text").replace("numeric(10, 2)", "text"))
    one, seen = shop(5), set()
    db.executemany("INSERT INTO customers VALUES (?, 'n', 'e', 'FR', 's', 'now', 'now')", [(c,) for c in one.countries])
    for _ in range(4000):
        name, statements = one.step()
        seen.add(name)
        for sql, values in statements:
            db.execute(sql.replace("%s", "?"), [str(v) if isinstance(v, Decimal) else v for v in values])
    assert seen == {"place", "advance", "cancel", "correct", "delete", "join", "change", "leave", "refit"}
    amounts: dict[int, Decimal] = {}
    for order, quantity, price in db.execute("SELECT order_id, quantity, unit_price FROM order_lines"):
        amounts[order] = amounts.get(order, Decimal()) + quantity * Decimal(price)
    stored = db.execute("SELECT id, status, amount FROM orders").fetchall()
    assert {number: Decimal(amount) for number, _, amount in stored} == amounts
    assert {number for number, status, _ in stored if status in demo.shop.NEXT} == set(one.open)
    assert {number for (number,) in db.execute("SELECT id FROM customers")} == set(one.countries)
    assert len(one.open) < 400, "open orders must not pile up"


def test_the_fleet_is_the_same_for_everyone() -> None:
    assert fleet(60, 300, 7) == fleet(60, 300, 7)
    assert len({unit.id for unit in fleet(60, 300, 7)}) == 60
