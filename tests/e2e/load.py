"""A schema of a source database that never stands still, whatever happens to its server."""

from __future__ import annotations

import threading
import time
from random import Random

import psycopg
from psycopg import sql

ROWS = 60_000
MOVED = 500


class Load:
    """Transactions on two tables in a thread of its own; one that the server's end cut off is given up, never counted.

    `rows` is large and lies in several partitions of its topic. `moved` is small, lies in one, and changes its key.
    """

    def __init__(self, url: str, schema: str, rng: Random) -> None:
        self.url, self.schema = url, schema
        self.commits = 0
        self.outages = 0
        self.columns: list[str] = []
        self._rng = rng
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"load {schema}")
        with self._connect() as db:
            db.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
            db.execute("CREATE TABLE rows (id int PRIMARY KEY, price int NOT NULL, note text)")
            db.execute("INSERT INTO rows SELECT n, 0, repeat('x', n %% 40) FROM generate_series(1, %s) n", (ROWS,))
            db.execute("CREATE TABLE moved (id int PRIMARY KEY, region int NOT NULL, price int NOT NULL)")
            db.execute("ALTER TABLE moved REPLICA IDENTITY FULL")
            db.execute("INSERT INTO moved SELECT n, n %% 7, 0 FROM generate_series(1, %s) n", (MOVED,))
            db.execute("ANALYZE")
        self._next = ROWS

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        options = f"-c search_path={self.schema} -c timezone=UTC"
        return psycopg.connect(self.url, autocommit=True, connect_timeout=5, options=options)

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
                    with self._connect() as db:
                        while not self._stop.is_set():
                            self._change(db)
                            self.commits += 1
                            time.sleep(0.02)
                except psycopg.OperationalError:
                    self.outages += 1
                    time.sleep(0.2)
        except BaseException as e:
            self._error = e

    def _change(self, db: psycopg.Connection[tuple[object, ...]]) -> None:
        """One transaction: rows come, change and go in both tables; some of `moved` change their key."""
        pick = self._rng.randint
        self._next += 1
        with db.transaction():
            db.execute("INSERT INTO rows (id, price) VALUES (%s, 1) ON CONFLICT DO NOTHING", (self._next,))
            ids = [pick(1, self._next) for _ in range(10)]
            db.execute("UPDATE rows SET price = price + 1 WHERE id = ANY(%s)", (ids,))
            db.execute("DELETE FROM rows WHERE id = %s", (pick(1, self._next),))
            if self.columns:
                column = sql.Identifier(self.columns[-1])
                db.execute(sql.SQL("UPDATE rows SET {} = %s WHERE id = %s").format(column), (self._next, ids[0]))
            db.execute("UPDATE moved SET price = price + 1 WHERE id %% 50 = %s", (pick(0, 49),))
            db.execute("UPDATE moved SET id = %s WHERE id = %s", (self._next, pick(1, self._next)))

    def add_column(self) -> str:
        """Add a column with a default to `rows`; its name. Rows that are there have it without being written."""
        name = f"extra_{len(self.columns)}"
        with self._connect() as db:
            db.execute(sql.SQL("ALTER TABLE rows ADD COLUMN {} int NOT NULL DEFAULT 7").format(sql.Identifier(name)))
        self.columns.append(name)
        return name

    def change_key(self) -> None:
        with self._connect() as db:
            db.execute("ALTER TABLE moved DROP CONSTRAINT moved_pkey, ADD PRIMARY KEY (region, id)")

    def read(self, table: str) -> tuple[list[str], list[tuple[object, ...]]]:
        """Names of columns and all rows, as the server has them now."""
        with self._connect() as db:
            cursor = db.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(table)))
            assert cursor.description is not None
            return [column.name for column in cursor.description], cursor.fetchall()
