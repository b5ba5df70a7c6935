"""What the parity suite needs of a database engine, and the changes that it makes there at random."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import psycopg

from connectors.connect import Connector
from headrace.config import Settings
from headrace.mysql import connect
from schemas.names import SIGNAL_TABLE
from tests.integration.cdc.capture import captured
from tests.integration.cdc.inventory import inventory
from tests.integration.cdc.rereads import Reader

Row = dict[str, Any]

# `goods` changes in every way, its primary key included, in several partitions; `notices` has no key, `kept` has a
# history: one partition each. No two rows of a table with an id have it in common.
KEYS = {"goods": ("shelf", "id"), "kept": ("id",), "notices": ()}
SETUP = (
    "CREATE TABLE goods (shelf varchar(8) NOT NULL, id int8 NOT NULL, n int4, price numeric(8, 2), "
    "label varchar(40), PRIMARY KEY (shelf, id))",
    "CREATE TABLE kept (id int4 PRIMARY KEY, n int4, label varchar(40))",
    "CREATE TABLE notices (n int4, label varchar(40))",
    "INSERT INTO goods VALUES ('a', 0, 1, 1.5, 'read'), ('b', 1, NULL, NULL, NULL)",
    "INSERT INTO kept VALUES (0, 1, 'read'), (1, 2, NULL)",
    "INSERT INTO notices VALUES (1, 'read'), (1, 'read'), (NULL, NULL)",
)
CONFIG = {
    "topic.creation.groups": "control,single",
    "topic.creation.single.include": ".*[.](kept|notices|notifications)",
    "topic.creation.single.partitions": "1",
    "topic.creation.single.replication.factor": "-1",
    "topic.creation.single.cleanup.policy": "delete",
    "topic.creation.single.retention.ms": "-1",
    "incremental.snapshot.watermarking.strategy": "insert_delete",
    # Many windows, for changes to fall into.
    "incremental.snapshot.chunk.size": "50",
    "notification.enabled.channels": "sink",
}


class Session(Protocol):
    """A connection of the database's client, not in autocommit."""

    def cursor(self) -> Any: ...
    def commit(self) -> None: ...
    def rollback(self) -> None: ...
    def close(self) -> None: ...


class Engine(Protocol):
    """A database that a connector captures into the lake of `settings`; its tables are those of `SETUP`."""

    settings: Settings
    connector: Connector
    url: str
    transactional: bool
    """Whether TRUNCATE can be rolled back. Where it cannot, it fails a snapshot that is being read, as ALTER does."""

    def topic(self, table: str) -> str: ...
    def session(self) -> Session: ...
    def alter_type(self, column: str, declared: str) -> str: ...
    def alter_key(self, columns: str) -> str: ...
    def place(self, change: Row) -> tuple[int, ...]:
        """Where a change of bronze is in the database's log."""
        ...


@dataclass
class Postgresql:
    settings: Settings
    connector: Connector
    url: str
    _topic: Callable[[str], str]
    transactional: bool = True

    def topic(self, table: str) -> str:
        return self._topic(table)

    def session(self) -> Session:
        return psycopg.connect(self.url, options="-c lock_timeout=10s")

    def alter_type(self, column: str, declared: str) -> str:
        return f"ALTER COLUMN {column} TYPE {declared.split(' NOT ')[0]}"

    def alter_key(self, columns: str) -> str:
        return f"DROP CONSTRAINT goods_pkey, ADD PRIMARY KEY ({columns})"

    def place(self, change: Row) -> tuple[int, ...]:
        committed, own = json.loads(change["source"]["sequence"])
        return int(committed or own), change["transaction"]["total_order"]


@dataclass
class Mariadb:
    settings: Settings
    connector: Connector
    url: str
    _topic: Callable[[str], str]
    transactional: bool = False

    def topic(self, table: str) -> str:
        return self._topic(table)

    def session(self) -> Session:
        session = connect(self.url)
        with session.cursor() as cursor:
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
            cursor.execute("SET SESSION innodb_lock_wait_timeout = 10, lock_wait_timeout = 10")
        return session

    def alter_type(self, column: str, declared: str) -> str:
        return f"MODIFY {column} {declared}"

    def alter_key(self, columns: str) -> str:
        return f"DROP PRIMARY KEY, ADD PRIMARY KEY ({columns})"

    def place(self, change: Row) -> tuple[int, ...]:
        source = change["source"]
        return int(source["file"].rpartition(".")[2]), source["pos"], source["row"], change["op"] != "d"


@contextmanager
def postgresql(settings: Settings, need: Callable[[str], str], folder: Path) -> Iterator[Engine]:
    identity = "ALTER TABLE notices REPLICA IDENTITY FULL"
    config = _config("public")
    with captured(settings, need("connect_url"), folder, *SETUP, identity, sink=None, **config) as own:
        yield Postgresql(own.settings, own.connector, own.url, own.topic)


@contextmanager
def mariadb(settings: Settings, need: Callable[[str], str], folder: Path) -> Iterator[Engine]:
    with inventory(settings, need("mariadb_url"), need("connect_url"), folder) as own:
        own.configure(**_config(own.name))
        own.execute(*SETUP)
        yield Mariadb(own.settings, own.connector, own.url, own.topic)


def _config(schema: str) -> dict[str, str]:
    topic = f"n{uuid4().hex[:8]}.notifications"
    signals = f"{schema}.{SIGNAL_TABLE}"
    return CONFIG | {"signal.data.collection": signals, "notification.sink.topic.name": topic}


@dataclass
class Column:
    declared: str
    default: Any = None

    @property
    def text(self) -> str:
        """As a definition says it."""
        return self.declared if self.default is None else f"{self.declared} NOT NULL DEFAULT {self.default!r}"


# Names that both engines know. Single precision is `float(20)`: Debezium for MariaDB stops at a value of a `float4`.
WIDER = {"int4": "int8", "float(20)": "float8", "numeric(8, 2)": "numeric(14, 2)", "varchar(40)": "varchar(90)"}
NARROWER = {wide: narrow for narrow, wide in WIDER.items()}
DEFAULTS = {"int4": 7, "float(20)": 0.5, "numeric(8, 2)": 2, "varchar(40)": "none"}


@dataclass
class Generator:
    """Random statements on two sessions, whose transactions interleave and sometimes are rolled back.

    Each session has keys of its own, the even or the odd: the two never wait for each other. What needs a lock on the
    whole table ends the transactions first.
    """

    engine: Engine
    sessions: Sequence[Session]
    reader: Reader
    chance: random.Random = field(default_factory=random.Random)
    columns: dict[str, dict[str, Column]] = field(
        default_factory=lambda: {
            "goods": {"n": Column("int4"), "price": Column("numeric(8, 2)"), "label": Column("varchar(40)")},
            "kept": {"n": Column("int4"), "label": Column("varchar(40)")},
            "notices": {"n": Column("int4"), "label": Column("varchar(40)")},
        }
    )
    snapshot_read: bool = False
    # What a column was named before.
    former: dict[str, str] = field(default_factory=dict)
    key: str = "shelf, id"
    done: list[str] = field(default_factory=list)
    _added: int = 0

    @property
    def may_define(self) -> bool:
        return self.engine.transactional or self.snapshot_read

    def settle(self) -> None:
        """All that is open ends; then a change of each table, which tells its definition."""
        for number in (0, 1):
            self.end(number)
        for table in KEYS:
            self.insert(table, 0)
        self.end(0, commit=True)

    def _run(self, session: int, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        self.done.append(f"{session}: {statement} {list(values)}"[:300])
        with self.sessions[session].cursor() as cursor:
            cursor.execute(statement, tuple(values) or None)
            return list(cursor.fetchall()) if statement.startswith("SELECT") else []

    def end(self, session: int | None = None, *, commit: bool | None = None) -> None:
        session = self.chance.randrange(2) if session is None else session
        commit = self.chance.random() < 0.75 if commit is None else commit
        self.done.append(f"{session}: {'COMMIT' if commit else 'ROLLBACK'}")
        self.sessions[session].commit() if commit else self.sessions[session].rollback()

    def _table(self) -> tuple[str, int]:
        """One that a session may change. Rows without a key lock each other: they are of the first session."""
        table = self.chance.choice(("goods", "goods", "kept", "notices"))
        return table, 0 if table == "notices" else self.chance.randrange(2)

    def _value(self, column: Column) -> Any:
        if column.default is None and self.chance.random() < 0.2:
            return None
        number = self.chance.randrange(-9999, 9999)
        match column.declared:
            case "int8":
                return number * 10**9
            case "float(20)" | "float8" | "numeric(8, 2)":
                return number / 4
            case "numeric(14, 2)":
                return number * 10**7 + 0.25
            case _:
                return number if column.declared == "int4" else self.chance.choice(("", "é'\\", f"t{number}"))

    def _held(self, table: str, session: int) -> list[tuple[Any, ...]]:
        names = ", ".join(KEYS[table])
        return self._run(session, f"SELECT {names} FROM {table} WHERE mod(id, 2) = {session} ORDER BY {names}")

    def _free(self, table: str, session: int, count: int) -> list[tuple[Any, ...]]:
        """Keys that are not there; those of rows that went come again."""
        held = {key[-1] for key in self._held(table, session)}
        ids = self.chance.sample([n for n in range(session, 400 + 2 * (len(held) + count), 2) if n not in held], count)
        return [(self.chance.choice("abc"), n) if table == "goods" else (n,) for n in ids]

    def _some(self, table: str, session: int) -> list[tuple[Any, ...]]:
        held = self._held(table, session)
        return self.chance.sample(held, min(len(held), self.chance.choice((1, 1, 2, 9))))

    def _where(self, table: str, keys: Sequence[tuple[Any, ...]]) -> tuple[str, list[Any]]:
        one = " AND ".join(f"{name} = %s" for name in KEYS[table])
        return " OR ".join(f"({one})" for _ in keys), [value for key in keys for value in key]

    def insert(self, table: str | None = None, session: int = 0, count: int | None = None) -> None:
        if table is None:
            table, session = self._table()
        count = count or self.chance.choice((1, 1, 3, 15))
        keys = self._free(table, session, count) if KEYS[table] else [()] * count
        columns = self.columns[table]
        names = [*KEYS[table], *columns]
        rows = [[*key, *map(self._value, columns.values())] for key in keys]
        if not KEYS[table] and self.chance.random() < 0.5:
            rows = [rows[0]] * count
        places = ", ".join(f"({', '.join(['%s'] * len(names))})" for _ in rows)
        self._run(
            session, f"INSERT INTO {table} ({', '.join(names)}) VALUES {places}", [v for row in rows for v in row]
        )

    def update(self) -> None:
        table, session = self._table()
        columns = self.columns[table]
        chosen = self.chance.sample(list(columns), self.chance.randint(1, len(columns)))
        sets = ", ".join(f"{name} = %s" for name in chosen)
        where, keys = self._where(table, self._some(table, session)) if KEYS[table] else self._rows()
        if where:
            values = [self._value(columns[name]) for name in chosen]
            self._run(session, f"UPDATE {table} SET {sets} WHERE {where}", [*values, *keys])

    def delete(self) -> None:
        table, session = self._table()
        # Of more keys at once MariaDB would read, and wait for, rows of the other session.
        chosen = [self._where(table, [key]) for key in self._some(table, session)] if KEYS[table] else [self._rows()]
        for where, values in chosen:
            self._run(session, f"DELETE FROM {table} WHERE {where}", values)

    def _rows(self) -> tuple[str, list[Any]]:
        """Some rows without a key."""
        values = self._run(0, "SELECT DISTINCT n FROM notices WHERE n IS NOT NULL ORDER BY n")
        return ("n = %s", list(self.chance.choice(values))) if values else ("n IS NULL", [])

    def move(self) -> None:
        """Keys change, also to those that others have left; the shelf may be a part of one or not."""
        table, session = self.chance.choice(("goods", "kept")), self.chance.randrange(2)
        held = self._some(table, session)
        stay = table == "goods" and self.chance.random() < 0.3
        free = [(self.chance.choice("abc"), key[-1]) for key in held] if stay else self._free(table, session, len(held))
        for key, new in zip(held, free, strict=True):
            sets = ", ".join(f"{name} = %s" for name in KEYS[table])
            where, values = self._where(table, [key])
            self._run(session, f"UPDATE {table} SET {sets} WHERE {where}", [*new, *values])

    def _alone(self) -> None:
        for session in (0, 1):
            self.end(session)

    def truncate(self) -> None:
        self._alone()
        table = self.chance.choice(list(KEYS))
        if self.engine.transactional and self.chance.random() < 0.5:
            self.insert(table, 0, 4)
        self._run(0, f"TRUNCATE TABLE {table}")
        if self.chance.random() < 0.5:
            self.insert(table, 0, 5)
        self.end(0)

    def define(self) -> None:
        self._alone()
        # A history's columns are those of its contract.
        table = self.chance.choice(("goods", "goods", "notices"))
        columns = self.columns[table]
        kind = self.chance.choice(("add", "add", "drop", "widen", "narrow", "rename"))
        droppable = [name for name in columns if table == "goods" or name != "n"]
        if kind == "drop" and len(columns) > 1 and droppable:
            name = self.chance.choice(droppable)
            del columns[name]
            self._alter(table, f"DROP COLUMN {name}")
        elif kind == "widen":
            self._retype(table, WIDER)
        elif kind == "narrow":
            self._retype(table, NARROWER)
        elif kind == "rename" and table == "goods":
            self.rename()
        else:
            name, declared = self._name(), self.chance.choice(list(WIDER))
            columns[name] = Column(declared, self.chance.choice((None, DEFAULTS[declared])))
            self._alter(table, f"ADD COLUMN {name} {columns[name].text}")

    def _alter(self, table: str, clause: str) -> None:
        self.reader.altering(self.engine.topic(table))
        self._run(0, f"ALTER TABLE {table} {clause}")
        self.end(0, commit=True)

    def _name(self) -> str:
        self._added += 1
        return f"c{self._added}"

    def _retype(self, table: str, becomes: Mapping[str, str]) -> None:
        columns = self.columns[table]
        chosen = [name for name, column in columns.items() if column.declared in becomes]
        if not chosen:
            return
        name = self.chance.choice(chosen)
        if columns[name].declared in ("int8", "numeric(14, 2)") and becomes is NARROWER:
            self._run(0, f"UPDATE {table} SET {name} = mod({name}, 9999)")
        columns[name].declared = becomes[columns[name].declared]
        self._alter(table, self.engine.alter_type(name, columns[name].text))

    def rename(self) -> None:
        """The rows that nothing changes have what they had: nobody sends it, until the table is read."""
        self.reader.wait()
        old, new = self.chance.choice(list(self.columns["goods"])), self._name()
        self.columns["goods"][new], self.former[new] = self.columns["goods"].pop(old), old
        self._alter("goods", f"RENAME COLUMN {old} TO {new}")
        self.reader.read(self.engine.topic("goods"))

    def rekey(self) -> None:
        """Another primary key. Every change under the one before must have been applied."""
        self.key = "id" if self.key != "id" else "shelf, id"
        self._alter("goods", self.engine.alter_key(self.key))

    def read_again(self) -> None:
        """While transactions are open."""
        self.reader.read(self.engine.topic(self.chance.choice(("goods", "kept"))))

    def burst(self) -> None:
        """Thousands of changes in one transaction, most of them of the same rows."""
        self._alone()
        self.insert("goods", 0, 1500)
        name = self.chance.choice(list(self.columns["goods"]))
        for _ in range(2):
            self._run(0, f"UPDATE goods SET {name} = %s WHERE id > 20", [self._value(self.columns["goods"][name])])
        self._run(0, "DELETE FROM goods WHERE id > 400")
        self.end(0)
