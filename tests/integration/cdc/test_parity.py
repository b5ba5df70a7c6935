"""Random changes of rows and definitions, through the real connector and sink: at every checkpoint the current state is
what a SELECT says, and so is the changelog replayed, and the open versions of the history; `headrace verify` agrees.

A Hypothesis state machine whose examples follow each other on one live database: each begins where the one before ended
and ends with a checkpoint. A failure is neither shrunk nor tried again, since that would begin from another state.

`HEADRACE_PARITY_STEPS=5000 pytest tests/integration/cdc/test_parity.py` is the long form, with a seed of its own each
time. `HEADRACE_PARITY_SEED` does a run again.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, seed
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from connectors.connect import Connect
from governance.verify.avro import Schemas
from governance.verify.current import check_current
from governance.verify.kafka import KafkaReader
from governance.verify.lake import Lake
from headrace.config import Settings
from headrace.process import Lifecycle
from schemas.names import table_name
from sinks.iceberg.catalog import find_table, open_catalog
from tests.integration.cdc.parity import KEYS, Engine, Generator, Row, mariadb, postgresql
from tests.integration.cdc.rereads import Reader, supervised
from tests.integration.sinks.iceberg.shop import running

STEPS = int(os.environ.get("HEADRACE_PARITY_STEPS", "120"))
SEED = int(
    os.environ.get("HEADRACE_PARITY_SEED") or (random.randrange(10**6) if "HEADRACE_PARITY_STEPS" in os.environ else 5)
)
BETWEEN_CHECKPOINTS = 60
CHECKPOINTS = max(1, STEPS // BETWEEN_CHECKPOINTS)
# In one example: what empties tables, changes their columns, takes thousands of rows, or reads tables again.
RARE = {"truncate": 2, "define": 4, "burst": 1, "read": 2}
Step = TypeVar("Step", bound=Callable[..., None])
Made = Callable[[Settings, Callable[[str], str], Path], AbstractContextManager[Engine]]


@dataclass
class Capture:
    """A database that is being captured and landed, and what was done to it."""

    engine: Engine
    generator: Generator
    client: Connect
    lifecycle: Lifecycle
    checkpoints: int = 0

    def check(self) -> None:
        """Raises AssertionError for any difference, told with what was done last."""
        self.generator.settle()
        self.generator.reader.wait()
        # The table may be behind: what it lacks is in Kafka.
        live = [verified(self.engine, table) for table in KEYS if self.checkpoints]
        wrong = settled(self.engine, self.generator)
        said = [self.client.status(self.engine.connector.name).reason, str(self.lifecycle.problems())]
        trace = "\n".join([*said, *self.generator.done[-150:]])
        assert not wrong, f"HEADRACE_PARITY_SEED={SEED}, checkpoint {self.checkpoints}: {wrong}\n{trace}"
        checks = [verified(self.engine, table) for table in KEYS]
        self.generator.snapshot_read = True
        assert not any(live + checks), f"HEADRACE_PARITY_SEED={SEED}: verify: {live}, {checks}\n{trace}"
        self.checkpoints += 1

    def redefine(self) -> None:
        topic = self.engine.topic("goods")
        kafka, lake = KafkaReader(self.engine.settings.kafka), Lake(self.engine.settings.lake)
        ends = {p: kafka.bounds(topic, p)[1] for p in range(kafka.topics()[topic])}
        deadline = time.monotonic() + 60
        while (held := lake.table(_name(self.engine, "silver", "goods"))) is None or held.offsets(topic) != ends:
            assert time.monotonic() < deadline, f"{held} has not all of {ends}"
            time.sleep(0.2)
            lake.refresh()
        self.generator.rekey()
        self.generator.rename()


class Failure(BaseException):
    """Of an example. Hypothesis would try an Exception's again, and tell of that instead."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def once(step: Step) -> Step:
    @functools.wraps(step)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            step(*args, **kwargs)
        except Exception as error:
            raise Failure(error) from error

    return cast(Step, run)


class Changes(RuleBasedStateMachine):
    """Hypothesis chooses what is done; a seed of its choice, to which rows and values."""

    capture: Capture

    def __init__(self) -> None:
        super().__init__()
        self.generator = self.capture.generator
        self.left = dict(RARE)

    def may(self, kind: str) -> bool:
        return self.left[kind] > 0 and (kind == "burst" or self.generator.may_define)

    @initialize(chance=st.randoms(use_true_random=True))
    @once
    def begin(self, chance: random.Random) -> None:
        self.generator.chance = chance
        if self.capture.checkpoints:
            self.capture.redefine()

    @rule(times=st.integers(1, 4))
    @once
    def insert(self, times: int) -> None:
        for _ in range(times):
            self.generator.insert()

    @rule(times=st.integers(1, 4))
    @once
    def update(self, times: int) -> None:
        for _ in range(times):
            self.generator.update()

    @rule()
    @once
    def delete(self) -> None:
        self.generator.delete()

    @rule()
    @once
    def move(self) -> None:
        self.generator.move()

    @rule()
    @once
    def end(self) -> None:
        self.generator.end()

    @precondition(lambda self: self.may("truncate"))
    @rule()
    @once
    def truncate(self) -> None:
        self.left["truncate"] -= 1
        self.generator.truncate()

    @precondition(lambda self: self.may("define"))
    @rule()
    @once
    def define(self) -> None:
        self.left["define"] -= 1
        self.generator.define()

    @precondition(lambda self: self.may("burst"))
    @rule()
    @once
    def burst(self) -> None:
        self.left["burst"] -= 1
        self.generator.burst()

    @precondition(lambda self: self.may("read"))
    @rule()
    @once
    def read_again(self) -> None:
        self.left["read"] -= 1
        self.generator.read_again()

    @once
    def teardown(self) -> None:
        self.capture.check()


def change(capture: Capture) -> None:
    machine = seed(SEED)(type("Changes", (Changes,), {"capture": capture}))
    chosen = hypothesis.settings(
        max_examples=CHECKPOINTS,
        stateful_step_count=BETWEEN_CHECKPOINTS,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
        deadline=None,
    )
    try:
        # The first example would be the shortest that there is.
        run_state_machine_as_test(machine, settings=chosen, _min_steps=BETWEEN_CHECKPOINTS)
    except Failure as failure:
        raise failure.error from None


@pytest.mark.timeout(300 + 2 * STEPS)
@pytest.mark.parametrize("made", [postgresql, mariadb])
async def test_the_lake_is_what_the_database_is(
    made: Made, settings: Settings, connect_url: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with made(settings, request.getfixturevalue, tmp_path) as engine:
        declare_history(engine, tmp_path)
        with (
            closing(engine.session()) as one,
            closing(engine.session()) as two,
            closing(Reader(engine.settings, engine.connector)) as reader,
        ):
            client = Connect(connect_url)
            await asyncio.to_thread(client.apply, engine.connector)
            async with supervised(engine.settings), running(engine.settings) as lifecycle:
                # The first changes come while the snapshot is read.
                capture = Capture(engine, Generator(engine, (one, two), reader), client, lifecycle)
                await asyncio.to_thread(change, capture)
                # An example for which nothing was left to do ends early, and does not count for Hypothesis.
                assert capture.checkpoints >= CHECKPOINTS
                assert lifecycle.problems() == {}


def declare_history(engine: Engine, folder: Path) -> None:
    contracts = folder / "schemas" / "contracts"
    contracts.mkdir(parents=True)
    storage = {"table": _name(engine, "silver", "kept"), "history": _name(engine, "silver", "kept_history")}
    fields: list[Row] = [{"name": "id", "type": "int"}]
    fields += [{"name": n, "type": ["null", t], "default": None} for n, t in (("n", "int"), ("label", "string"))]
    contract: Row = {
        "type": "record",
        "name": "Kept",
        "owner": "somebody",
        "topic": engine.topic("kept"),
        "key": ["id"],
    }
    contract |= {"envelope": "debezium", "storage": storage | {"mode": "current"}, "fields": fields}
    (contracts / "kept.avsc").write_text(json.dumps(contract))


def _name(engine: Engine, layer: str, table: str) -> str:
    return table_name(layer, engine.topic(table))


def settled(engine: Engine, generator: Generator, seconds: float = 150) -> str:
    """What still differs after that time."""
    deadline = time.monotonic() + seconds
    catalog = open_catalog(engine.settings.lake)
    wanted = {table: select(engine, table) for table in KEYS}

    def landed(layer: str, table: str) -> list[Row]:
        found = find_table(catalog, _name(engine, layer, table))
        return [] if found is None else found.scan().to_arrow().to_pylist()

    def differences() -> str:
        for table, (columns, rows) in wanted.items():
            if wrong := unlike(rows, landed("silver", table), columns):
                return f"the current state of {table}: {wrong}"
        for table, (columns, rows) in wanted.items():
            defaults = {name: column.default for name, column in generator.columns[table].items()}
            changes = [named(change, generator.former) for change in landed("bronze", table)]
            if wrong := unlike(rows, replayed(engine, KEYS[table][-1:], changes, columns, defaults), columns, defaults):
                return f"the changelog of {table}, replayed: {wrong}"
        columns, rows = wanted["kept"]
        open_ones = [row for row in landed("silver", "kept_history") if row["valid_to"] is None]
        if wrong := unlike(rows, open_ones, columns):
            return f"the open versions of kept: {wrong}"
        quarantine = find_table(catalog, "ops.quarantine")
        refused = [] if quarantine is None else quarantine.scan().to_arrow().to_pylist()
        mine = {engine.topic(table) for table in KEYS}
        return "; ".join({f"quarantined: {q['reason']}" for q in refused if q["source_topic"] in mine})

    while (wrong := differences()) and time.monotonic() < deadline:
        time.sleep(0.3)
    return wrong


def select(engine: Engine, table: str) -> tuple[list[str], list[Row]]:
    with closing(engine.session()) as session, session.cursor() as cursor:
        cursor.execute(f"SELECT * FROM {table}")
        columns = [column[0] for column in cursor.description]
        return columns, [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]


def unlike(want: list[Row], have: list[Row], columns: list[str], defaults: dict[str, Any] | None = None) -> str | None:
    """Rows of one side alone, by the database's columns. `defaults`: what an absent value stands for."""

    def counted(rows: list[Row]) -> Counter[tuple[Any, ...]]:
        return Counter(_values(row, columns, defaults or {}) for row in rows)

    missing, surplus = counted(want) - counted(have), counted(have) - counted(want)
    if not missing and not surplus:
        return None
    return f"{columns}: database only {list(missing.items())[:4]}, lake only {list(surplus.items())[:4]}"


def named(change: Row, former: Mapping[str, str]) -> Row:
    """A change with the values of columns under the names that they have now."""

    def value(row: Row, name: str | None) -> Any:
        return None if name is None else row[name] if row.get(name) is not None else value(row, former.get(name))

    rows = {side: change[side] for side in ("before", "after") if change[side] is not None}
    return change | {side: row | {name: value(row, name) for name in former} for side, row in rows.items()}


def replayed(
    engine: Engine, key: tuple[str, ...], changes: list[Row], columns: list[str], defaults: dict[str, Any]
) -> list[Row]:
    """The rows that the changes leave, applied one by one in the order of the database's log, what was read first."""
    changes = [change for change in changes if change["op"] is not None]  # tombstones have none
    changes.sort(key=lambda change: _turn(engine, change))
    state: dict[Any, Row] = {}
    spare: dict[Any, list[Any]] = {}

    def name(row: Row, number: int) -> Any:
        return tuple(row[n] for n in key) if key else number

    for number, change in enumerate(changes):
        before, after = change["before"], change["after"]
        if change["op"] == "t":
            state.clear()
            spare.clear()
        if change["op"] in ("u", "d"):
            if key:
                state.pop(name(before or after, number), None)
            else:
                del state[spare[_values(before, columns, defaults)].pop()]
        if after is not None:
            state[name(after, number)] = after
            if not key:
                spare.setdefault(_values(after, columns, defaults), []).append(number)
    return list(state.values())


def _turn(engine: Engine, change: Row) -> tuple[Any, ...]:
    place = () if change["op"] == "r" else engine.place(change)
    return place, change["_kafka_partition"], change["_offset"]


def _values(row: Row, columns: list[str], defaults: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(defaults.get(name) if row.get(name) is None else row[name] for name in columns)


def verified(engine: Engine, table: str) -> list[str]:
    """What `headrace verify` finds of the current state, now."""
    kafka, schemas, lake = (
        KafkaReader(engine.settings.kafka),
        Schemas(engine.settings.registry.url),
        Lake(engine.settings.lake),
    )
    held = lake.table(_name(engine, "silver", table))
    assert held is not None
    topic = engine.topic(table)
    check = check_current(kafka, schemas, lake, topic, kafka.topics()[topic], held, engine.url, patience=20)
    return check.offences
