"""The verifier verified: a pipeline's result, made by hand, passes; each way of spoiling it is found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pyarrow as pa
import pytest
from confluent_kafka import Consumer, TopicPartition
from pyiceberg.catalog.sql import SqlCatalog

from governance.verify.agents import check_agent
from governance.verify.avro import Schemas
from governance.verify.current import check_current
from governance.verify.kafka import KafkaReader
from governance.verify.kpis import Published, _check, recompute
from governance.verify.lake import Lake
from governance.verify.landed import check_derived
from governance.verify.ledger import Ledger
from governance.verify.report import Check
from headrace.config import LakeSettings
from schemas.kpis import Kpi
from tests.integration.governance.world import (
    CLEAN,
    ENVELOPE,
    KAFKA,
    START,
    World,
    as_lake,
    change,
    encode,
    produce,
    row,
)


@pytest.fixture(scope="module")
def made(request: pytest.FixtureRequest) -> Iterator[World]:
    """Five rows by snapshot, one updated, one deleted, one inserted; the repeat of a change at the end."""
    stack = request.getfixturevalue("stack")
    settings = stack.need("postgres", "kafka", "registry")
    name = f"v_{uuid4().hex[:8]}"
    topic = f"{name}.public.{name}"
    with psycopg.connect(settings.postgres.url, autocommit=True) as connection:
        connection.execute(
            f"CREATE TABLE {name} (id bigint PRIMARY KEY, country text, amount numeric(12,2), created_at timestamptz)"
        )
        xid = int(connection.execute("SELECT pg_current_xact_id()::text").fetchone()[0])  # type: ignore[index]
        final = [row(1), row(2, "12.50"), row(4), row(5), row(6, "1.00", "DE")]
        for r in final:
            connection.execute(f"INSERT INTO {name} VALUES (%s, %s, %s, %s)", tuple(r.values()))
    changes: list[dict[str, Any]] = [change("r", None, row(n), 100, xid) for n in range(1, 6)]
    update = change("u", row(2), row(2, "12.50"), 200, xid)
    changes += [update, change("d", row(3), None, 300, xid), change("c", None, row(6, "1.00", "DE"), 400, xid), update]
    world = World(settings, topic, settings.postgres.url, changes)
    encoded = encode(settings.registry.url, topic, ENVELOPE | {"namespace": topic})
    produce(settings, topic, [encoded(c) for c in changes])
    at = {"_kafka_partition": 0, "_timestamp": START}
    for offset, c in enumerate(changes):
        images = {"before": as_lake(c["before"]), "after": as_lake(c["after"])}
        world.bronze.append({**c, **images, **at, "_offset": offset})
    offsets = {1: 0, 2: 5, 4: 3, 5: 4, 6: 7}
    world.current += [{**(as_lake(r) or {}), **at, "_offset": offsets[r["id"]]} for r in final]
    yield world
    with psycopg.connect(settings.postgres.url, autocommit=True) as connection:
        connection.execute(f"DROP TABLE {name}")


@pytest.fixture
def world(made: World) -> World:
    return replace(made, bronze=[dict(r) for r in made.bronze], current=[dict(r) for r in made.current])


def failed(checks: dict[str, Check]) -> dict[str, list[str]]:
    return {name: check.offences for name, check in checks.items() if not check.ok}


def test_what_is_right_passes(world: World, tmp_path: Path) -> None:
    checks = world.checks(tmp_path)
    assert failed(checks) == {}
    assert (checks["bronze"].compared, checks["current"].compared) == (9, 5)


def test_a_lost_row_is_found(world: World, tmp_path: Path) -> None:
    del world.bronze[4]
    offences = failed(world.checks(tmp_path))
    assert offences == {"bronze": [f"{world.topic}/0/4: neither in the table nor in the quarantine"]}


def test_a_doubled_row_is_found(world: World, tmp_path: Path) -> None:
    world.bronze.append(world.bronze[4])
    assert failed(world.checks(tmp_path)) == {"bronze": [f"{world.topic}/0/4: more than once in the table"]}


def test_a_changed_value_is_found(world: World, tmp_path: Path) -> None:
    world.bronze[5]["after"] = {**world.bronze[5]["after"], "amount": Decimal("12.51")}
    (offence,) = failed(world.checks(tmp_path))["bronze"]
    assert offence.startswith(f"{world.topic}/0/5: after.amount is Decimal('12.51')")


def test_an_invented_row_is_found(world: World, tmp_path: Path) -> None:
    world.bronze.append({**world.bronze[0], "_offset": 77})
    (offence,) = failed(world.checks(tmp_path))["bronze"]
    assert offence == f"{world.topic}/0/77: in the table, above the offsets committed with it"


@pytest.mark.parametrize(
    ("spoil", "offence"),
    [
        (lambda rows: rows.pop(1), "key (2,) is in the database, not in the table"),
        (lambda rows: rows.append({**rows[1], "_offset": 1}), "key (2,) is there twice"),
        (lambda rows: rows[1].update(amount=Decimal("10.00")), "key (2,): amount is"),
        (lambda rows: rows.append({**rows[0], "id": 3}), "key (3,) is in the table, not in the database"),
    ],
    ids=["lost", "doubled", "stale", "deleted row that stayed"],
)
def test_a_wrong_current_state_is_found(
    world: World, tmp_path: Path, spoil: Callable[[list[dict[str, Any]]], object], offence: str
) -> None:
    spoil(world.current)
    checks = failed(world.checks(tmp_path))
    assert list(checks) == ["current"]
    assert offence in checks["current"][0]


def test_changes_after_the_tables_cut_are_taken_from_kafka(world: World, tmp_path: Path) -> None:
    """The table lags: it holds the snapshot only. What the database has since is in Kafka, so nothing is wrong."""
    at = {"_kafka_partition": 0, "_timestamp": START}
    world.current[:] = [{**(as_lake(row(n)) or {}), **at, "_offset": n - 1} for n in range(1, 6)]
    kafka, schemas = KafkaReader(world.settings.kafka), Schemas(world.settings.registry.url)
    lake = world.lake(tmp_path)
    silver = lake.table("silver.t")
    assert silver is not None
    held = replace(silver, properties={f"headrace.offset.{world.topic}.0": "5"})
    check = check_current(kafka, schemas, lake, world.topic, 1, held, world.database, patience=1.0)
    assert check.offences == []


def test_columns_that_are_not_captured_are_named_and_left_out(world: World, tmp_path: Path) -> None:
    table = world.topic.rpartition(".")[2]
    with psycopg.connect(world.database, autocommit=True) as db:
        db.execute(f"ALTER TABLE {table} ADD COLUMN hidden int DEFAULT 5, ADD COLUMN secret text")
        try:
            check = world.checks(tmp_path)["current"]
            assert (check.offences, check.compared) == ([], 5)
            assert check.note == "columns that no change has had, left out: hidden, secret"
        finally:
            db.execute(f"ALTER TABLE {table} DROP COLUMN hidden, DROP COLUMN secret")


def test_a_column_that_changes_have_and_the_table_has_not_is_found(world: World, tmp_path: Path) -> None:
    lake, kafka = world.lake(tmp_path), KafkaReader(world.settings.kafka)
    silver = lake.table("silver.t")
    assert silver is not None
    narrow = lake.execute(f"SELECT * EXCLUDE (amount) FROM {lake.scan(silver)}").to_arrow_table()
    catalog = SqlCatalog("headrace", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}/lake")
    catalog.create_table("silver.narrow", schema=narrow.schema, properties=silver.properties).append(narrow)
    lake.refresh()
    held = lake.table("silver.narrow")
    assert held is not None
    schemas = Schemas(world.settings.registry.url)
    check = check_current(kafka, schemas, lake, world.topic, 1, held, world.database, patience=0.1)
    assert "amount" in check.offences[0]


def test_a_table_that_the_database_has_not_is_one_offence(world: World, tmp_path: Path) -> None:
    lake, kafka = world.lake(tmp_path), KafkaReader(world.settings.kafka)
    silver = lake.table("silver.t")
    assert silver is not None
    schemas = Schemas(world.settings.registry.url)
    check = check_current(kafka, schemas, lake, "x.public.dropped", 1, silver, world.database, patience=0.1)
    assert (check.total_offences, check.compared) == (1, 0)
    assert "the database has no table public.dropped" in check.offences[0]


KPI = Kpi(
    name="spend", title="Spend", source="x", filter="amount > 1", measure="sum", field="amount", dimensions=("country",)
)


def test_kpis_are_recomputed_with_retractions_and_without_repeats(world: World, tmp_path: Path) -> None:
    lake = world.lake(tmp_path)
    bronze = lake.table(world.bronze_name)
    assert bronze is not None
    total = {(None, '{"country":"FR"}'): 42.5}
    assert recompute(lake, bronze, KPI, {0: 9}) == total
    assert recompute(lake, bronze, KPI, {0: 5}) == {(None, '{"country":"FR"}'): 50.0}
    windowed = KPI.model_copy(update={"window": 4.0, "event_time": "created_at", "lateness": 60.0, "filter": ""})
    found = {
        (start.second, group): value for (start, group), value in recompute(lake, bronze, windowed, {0: 9}).items()
    }  # type: ignore[union-attr]
    assert found == {(0, '{"country":"FR"}'): 22.5, (4, '{"country":"FR"}'): 20.0, (4, '{"country":"DE"}'): 1.0}


def test_what_is_no_change_of_the_table_counts_for_no_kpi(world: World, tmp_path: Path) -> None:
    """Bronze keeps them; each would count, or make the change behind them a repeat."""
    strange = [change("c", None, row(n), 500, 1) for n in range(10, 15)] + [change("c", None, None, 500, 1)]
    strange[0]["source"] |= {"schema": "public", "table": "of another"}
    strange[1]["source"] |= {"sequence": None}
    strange[2]["transaction"] = None
    strange[3]["source"] |= {"sequence": "[null,null]", "lsn": None}
    strange[4]["op"] = "m"
    last = change("c", None, row(20, "7.50"), 450, 1)
    last["source"] |= {"schema": "public", "table": world.topic.rpartition(".")[2]}
    at = {"_kafka_partition": 0, "_timestamp": START}
    for offset, c in enumerate([*strange, last], start=9):
        world.bronze.append({**c, "before": None, "after": as_lake(c["after"]), **at, "_offset": offset})
    lake = world.lake(tmp_path)
    bronze = lake.table(world.bronze_name)
    assert bronze is not None
    kpi = KPI.model_copy(update={"source": world.topic})
    assert recompute(lake, bronze, kpi, {0: 16}) == {(None, '{"country":"FR"}'): 50.0}


def test_counts_leave_nulls_out_and_averages_add_up(world: World, tmp_path: Path) -> None:
    world.bronze[0]["after"] = {**world.bronze[0]["after"], "country": None}
    lake = world.lake(tmp_path)
    bronze = lake.table(world.bronze_name)
    assert bronze is not None
    every = {"filter": "", "dimensions": ()}
    count = KPI.model_copy(update={**every, "measure": "count", "field": "country"})
    assert recompute(lake, bronze, count, {0: 9}) == {(None, "{}"): 4}
    average = KPI.model_copy(update={**every, "measure": "avg", "field": "amount"})
    assert recompute(lake, bronze, average, {0: 9}) == {(None, "{}"): 43.5 / 5}


def test_late_rows_are_left_out_by_the_watermark_of_rows_before_them(world: World, tmp_path: Path) -> None:
    strict = KPI.model_copy(update={"window": 1.0, "event_time": "created_at", "filter": ""})
    for r in world.bronze:
        r["_timestamp"] = START + timedelta(hours=1)
    lake = world.lake(tmp_path)
    bronze = lake.table(world.bronze_name)
    assert bronze is not None
    found = {start.second: value for (start, _), value in recompute(lake, bronze, strict, {0: 9}).items()}  # type: ignore[union-attr]
    assert found == {1: 10.0, 2: 10.0, 3: 10.0, 4: 10.0, 5: 10.0, 6: 1.0}, (
        "the update of 2 and the delete of 3 are late"
    )


@pytest.mark.parametrize(("value", "offences"), [(42.5, 0), (42.51, 1), (None, 1)], ids=["right", "wrong", "withdrawn"])
def test_a_wrong_kpi_is_found(world: World, tmp_path: Path, value: float | None, offences: int) -> None:
    published = Published(3, {0: 9}, {(None, '{"country":"FR"}'): value, (None, '{"country":"IT"}'): 0.0})
    check = Check("kpi spend", "")
    kafka, kpi = KafkaReader(world.settings.kafka), KPI.model_copy(update={"source": world.topic})
    lake = world.lake(tmp_path)
    _check(check, kpi, published, kafka, lake, world.bronze_name, 1.0, 1)
    assert check.total_offences == offences


def test_an_agents_output_is_checked_record_by_record(world: World, tmp_path: Path) -> None:
    settings, output = world.settings, f"{world.topic}.clean"
    write = encode(settings.registry.url, output, CLEAN)
    # Offset 2 is missing, offsets 0 and 1 were sent twice by a replay.
    produce(settings, output, [write({"id": 1, "source_offset": o}) for o in (0, 1, 0, 1, 3, 4, 5, 6, 7, 8)])
    group = f"verify-{uuid4()}"
    consumer = Consumer({"bootstrap.servers": settings.kafka.bootstrap_servers, "group.id": group})
    kafka, schemas = KafkaReader(settings.kafka), Schemas(settings.registry.url)

    def check(committed: int) -> Check:
        (done,) = consumer.commit(offsets=[TopicPartition(world.topic, 0, committed)], asynchronous=False) or []
        assert done.error is None
        held = kafka.committed(group, world.topic, 1)
        assert held == {0: committed}
        return check_agent(kafka, schemas, Ledger(kafka, schemas), held, "agent:x", world.topic, 1, output)

    assert check(2).ok
    assert check(9).offences == [f"{world.topic}/0/2: neither in the output, nor quarantined, nor dropped by a rule"]
    consumer.close()

    # A second agent reads the first one's output: replays there are no records, and coordinates go on.
    second = f"{output}.again"
    again = encode(settings.registry.url, second, CLEAN)
    produce(settings, second, [again({"id": 1, "source_offset": o}) for o in (0, 1, 3, 4, 5, 6, 8)])
    ledger = Ledger(kafka, schemas)
    chained = check_agent(kafka, schemas, ledger, {0: 10}, "agent:y", output, 1, second, chained=True)
    assert chained.offences == [f"{output}/0/8: neither in the output, nor quarantined, nor dropped by a rule"]

    schema = pa.schema([("id", pa.int64()), ("source_offset", pa.int64()), *KAFKA])
    lake = LakeSettings(uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}/lake")
    catalog = SqlCatalog(lake.catalog, uri=lake.uri, warehouse=lake.warehouse)
    catalog.create_namespace("silver")
    table = catalog.create_table("silver.c", schema=schema, properties={f"headrace.offset.{output}.0": "10"})
    firsts = [(0, 0), (1, 1), (4, 3), (5, 4), (6, 5), (7, 6), (8, 7), (9, 8)]
    rows = [{"id": 1, "source_offset": s, "_kafka_partition": 0, "_offset": o, "_timestamp": START} for o, s in firsts]
    table.append(pa.Table.from_pylist(rows, schema=schema))

    def derived() -> Check:
        opened = Lake(lake)
        found = opened.table("silver.c")
        assert found is not None
        return check_derived(kafka, schemas, opened, output, 1, found)

    assert derived().offences == []
    table.append(pa.Table.from_pylist([{**rows[0], "_offset": 2}], schema=schema))
    assert derived().offences == [f"{output}/0/2: in the table, but a replay or no record"]
