"""A schema of a source database that never stands still, whatever happens to its server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from random import Random
from typing import Any

from tests.e2e.engines import Engine

MOVED = 500
ROWS = 120 * MOVED


class Load:
    """Transactions on two tables in a thread of its own; one that the server's end cut off is given up, never counted.

    `goods` is large and lies in several partitions of its topic. `moved` is small, lies in one, and changes its key.
    """

    def __init__(self, engine: Engine, url: str, schema: str, rng: Random) -> None:
        self.engine, self.url, self.schema = engine, url, schema
        self.commits = 0
        self.columns: list[str] = []
        self._rng = rng
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"load {schema}")
        with self._session() as execute:
            execute(f"CREATE SCHEMA {schema}")
            execute(f"CREATE TABLE {schema}.goods (id int PRIMARY KEY, price int NOT NULL, note text)")
            execute(f"CREATE TABLE {schema}.moved (id int PRIMARY KEY, region int NOT NULL, price int NOT NULL)")
            rows = ", ".join(f"({n}, {n % 7}, 0)" for n in range(1, MOVED + 1))
            execute(f"INSERT INTO {schema}.moved VALUES {rows}")
            execute(
                f"INSERT INTO {schema}.goods SELECT (a.id - 1) * {MOVED} + b.id, 0, repeat('x', mod(b.id, 40))"
                f" FROM {schema}.moved a CROSS JOIN {schema}.moved b WHERE a.id <= {ROWS // MOVED}"
            )
            for statement in engine.prepare:
                execute(statement.format(schema))
        self._next = ROWS

    @contextmanager
    def _session(self) -> Iterator[Callable[..., Any]]:
        """Executes statements of one transaction, committed at the end."""
        with closing(self.engine.connect(self.url)) as db:
            yield db.cursor().execute
            db.commit()

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def finish(self) -> None:
        """End the load; raises what ended it earlier."""
        self.__exit__()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    with closing(self.engine.connect(self.url)) as db:
                        cursor = db.cursor()
                        while not self._stop.is_set():
                            self._change(cursor.execute)
                            db.commit()
                            self.commits += 1
                            time.sleep(0.02)
                except self.engine.away:
                    time.sleep(0.2)
        except BaseException as e:
            self._error = e

    def _change(self, execute: Callable[..., Any]) -> None:
        """One transaction: rows come, change and go in both tables; some of `moved` change their key."""
        pick, goods, moved = self._rng.randint, f"{self.schema}.goods", f"{self.schema}.moved"
        self._next += 1
        ids = [pick(1, self._next) for _ in range(10)]
        execute(f"INSERT INTO {goods} (id, price) VALUES ({self._next}, 1)")
        execute(f"UPDATE {goods} SET price = price + 1 WHERE id IN ({', '.join(map(str, ids))})")
        execute(f"DELETE FROM {goods} WHERE id = {pick(1, self._next)}")
        if self.columns:
            execute(f"UPDATE {goods} SET {self.columns[-1]} = {self._next} WHERE id = {ids[0]}")
        execute(f"UPDATE {moved} SET price = price + 1 WHERE mod(id, 50) = {pick(0, 49)}")
        execute(f"UPDATE {moved} SET id = {self._next} WHERE id = {pick(1, self._next)}")

    def add_column(self) -> str:
        """Add a column with a default to `goods`; its name. Rows that are there have it without being written."""
        name = f"extra_{len(self.columns)}"
        with self._session() as execute:
            execute(f"ALTER TABLE {self.schema}.goods ADD COLUMN {name} int NOT NULL DEFAULT 7")
        self.columns.append(name)
        return name

    def change_key(self) -> None:
        with self._session() as execute:
            execute(f"ALTER TABLE {self.schema}.moved {self.engine.drop_key}, ADD PRIMARY KEY (region, id)")

    def read(self, table: str) -> tuple[list[str], list[tuple[object, ...]]]:
        """Names of columns and all rows, as the server has them now."""
        with closing(self.engine.connect(self.url)) as db:
            cursor = db.cursor()
            cursor.execute(f"SELECT * FROM {self.schema}.{table}")
            return [column[0] for column in cursor.description], list(cursor.fetchall())
