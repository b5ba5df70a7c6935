"""Every column type of MariaDB from a real server through real Debezium to its table, by snapshot and by stream."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from connectors.connect import Connect
from connectors.limits import check_columns
from governance.verify.current import _columns, read_database
from governance.verify.lake import Lake
from governance.verify.mariadb import Forms
from headrace.config import Settings
from headrace.errors import ContractError
from headrace.mysql import connect
from schemas.names import table_name
from sinks.iceberg.catalog import find_table, open_catalog
from tests.integration.cdc.catalogue import found_types
from tests.integration.cdc.inventory import Inventory, inventory, until
from tests.integration.cdc.mariadb import ENGINE
from tests.integration.sinks.iceberg.shop import running

COLUMNS = {f"c{i}": type_ for i, type_ in enumerate(ENGINE.types)}
ROWS = max(len(type_.samples) for type_ in ENGINE.types)
NOTHING, FILLED, EMPTIED = 900, 901, 902
UUIDS = (
    "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a00",
    "0190163d-8694-739b-aea5-966c26f8ad91",
)
LATER = "(id int PRIMARY KEY, j json, b boolean, y year)"


@pytest.fixture
def own(settings: Settings, mariadb_url: str, connect_url: str, tmp_path: Path) -> Iterator[Inventory]:
    with inventory(settings, mariadb_url, connect_url, tmp_path) as made:
        made.configure(**{"table.include.list": f"{made.name}\\.(types|zeros|spans|later|ids)"})
        yield made


async def test_every_type_from_the_server_to_its_table(own: Inventory, connect_url: str) -> None:
    wanted = {setting.name: setting.value for setting in ENGINE.settings}
    assert own.connector.config.items() >= wanted.items()
    _prepare(own)
    await asyncio.to_thread(Connect(connect_url).apply, own.connector)
    async with running(own.settings):
        await until(lambda: len(own.landed("types")) == ROWS + 3)
        _run(own, *_inserts(100), f"UPDATE types SET {_filled()} WHERE id = {FILLED}")
        _run(own, f"UPDATE types SET {', '.join(f'{name} = NULL' for name in COLUMNS)} WHERE id = {EMPTIED}")
        _run(own, "INSERT INTO zeros VALUES (2, '0000-00-00')", "INSERT INTO spans VALUES (3, '-00:00:01', 2.5)")
        _run(own, "UPDATE spans SET f = 16777215 WHERE id = 4", "INSERT INTO types (id) VALUES (999)")
        await until(lambda: 999 in {row["id"] for row in own.landed("types")})
        await until(lambda: len(own.landed("zeros")) == 2)
        await until(lambda: 16777215.0 in {row["f"] for row in own.landed("spans")})
        _run(own, *(f"INSERT INTO ids VALUES ({n + 100}, '{uuid}', 2024)" for n, uuid in enumerate(UUIDS)))
        await until(lambda: len(own.landed("ids")) == 2 * len(UUIDS))
        # Debezium learns of this table from the log, not from the server.
        rows = "(1, '{\"a\": 1}', true, 2024), (2, '{}', 2, 2024)"
        _run(own, f"CREATE TABLE later {LATER}", f"INSERT INTO later VALUES {rows}")
        await until(lambda: len(own.landed("later")) == 2)
        later = (await asyncio.to_thread(own.check, "later", patience=0)).offences
        assert ["b is True, expected 2" in told for told in later] == [True]
        await _check_what_stops(own, Connect(connect_url))
    _check_that_columns_are_told(own)
    _check_types(own)
    current = own.check("types", patience=0)
    assert current.offences == []
    assert current.compared == 2 * ROWS + 4
    _check_values(own)
    _check_what_is_not_carried(own)
    _check_that_verify_notices(own)


async def _check_what_stops(own: Inventory, client: Connect) -> None:
    def failed(why: str) -> bool:
        status = client.status(own.name)
        return status.state == "FAILED" and why in status.reason

    nets = f"CREATE TABLE {own.name}_other.nets (address inet6)"
    _run(own, f"CREATE DATABASE {own.name}_other", nets, f"DROP DATABASE {own.name}_other")
    await until(lambda: failed("NoViableAltException"))
    past = own.connector.config | {"name": own.name, "schema.history.internal.skip.unparseable.ddl": "true"}
    client.call("PUT", f"/connectors/{own.name}/config", body=past)
    _run(own, "ALTER TABLE later ADD f float", "INSERT INTO later VALUES (3, NULL, NULL, NULL, 16777215)")
    await until(lambda: len(own.landed("later")) == 3)
    _run(own, "ALTER TABLE later ADD g float4", "INSERT INTO later VALUES (4, NULL, NULL, NULL, NULL, 1.5)")
    await until(lambda: failed(f"Failed to properly convert data value for '{own.name}.later.g'"))


def _check_that_columns_are_told(own: Inventory) -> None:
    _run(own, "CREATE TABLE nets (id int PRIMARY KEY, six inet6, four inet4)")
    settings = own.settings.model_copy(update={"databases": {own.name: own.url}})
    check_columns(settings, own.connector.config)
    config = own.connector.config | {"table.include.list": f"{own.name}[.]nets", "column.exclude.list": ".*"}
    with pytest.raises(ContractError, match="does not understand the table's definition") as refused:
        check_columns(settings, config)
    assert refused.value.where == f"{own.name}.nets.four"
    check_columns(settings, config | {"database.include.list": "another"})


def _run(own: Inventory, *statements: str) -> None:
    """In a session that takes zero dates."""
    with connect(own.url) as db, db.cursor() as cursor:
        cursor.execute("SET sql_mode = 'ALLOW_INVALID_DATES'")
        for statement in statements:
            cursor.execute(statement)
        db.commit()


def _values(row: int, place: int) -> str:
    have = {name: type_.samples[place] for name, type_ in COLUMNS.items() if place < len(type_.samples)}
    return f"(id, {', '.join(have)}) VALUES ({row}, {', '.join(have.values())})"


def _inserts(start: int) -> list[str]:
    return [f"INSERT INTO types {_values(start + i, i)}" for i in range(ROWS)]


def _filled() -> str:
    return ", ".join(f"{name} = {type_.samples[0]}" for name, type_ in COLUMNS.items())


def _prepare(own: Inventory) -> None:
    columns = ", ".join(f"{name} {type_.declared} NULL" for name, type_ in COLUMNS.items())
    _run(
        own,
        f"CREATE TABLE types (id int PRIMARY KEY, {columns})",
        *_inserts(0),
        f"INSERT INTO types (id) VALUES ({NOTHING}), ({FILLED})",
        f"INSERT INTO types {_values(EMPTIED, 0)}",
        "CREATE TABLE ids (id int PRIMARY KEY, u uuid, y year)",
        *(f"INSERT INTO ids VALUES ({n}, '{uuid}', 0)" for n, uuid in enumerate(UUIDS)),
        "CREATE TABLE zeros (id int PRIMARY KEY, d date NOT NULL)",
        "INSERT INTO zeros VALUES (1, '2024-02-29')",
        "CREATE TABLE spans (id int PRIMARY KEY, t time, f float)",
        "INSERT INTO spans VALUES (1, '838:59:59', 1.5), (2, '12:00:00', 16777215), (4, '12:00:00', 1)",
    )


def _check_types(own: Inventory) -> None:
    table = find_table(open_catalog(own.settings.lake), table_name("silver", own.topic("types")))
    assert table is not None
    found = found_types(own.settings, own.topic("types"), table)
    wanted = {name: (type_.semantic, type_.arrow, type_.iceberg) for name, type_ in COLUMNS.items()}
    assert not {type_.declared: (found.get(n), wanted[n]) for n, type_ in COLUMNS.items() if found.get(n) != wanted[n]}


def _check_values(own: Inventory) -> None:
    """Nulls are nulls, and all else is there: as many values as samples, less the zero dates."""
    rows = own.landed("types")
    held = {type_.declared: sum(row[name] is not None for row in rows) for name, type_ in COLUMNS.items()}
    # A change brings a zero timestamp as another value.
    zero = {type_.declared: sum("-00" in s for s in type_.samples if "zero" in type_.reader) for type_ in ENGINE.types}
    assert held == {
        type_.declared: 2 * len(type_.samples) + 1 - zero[type_.declared] * (1 if "timestamp" in type_.declared else 2)
        for type_ in ENGINE.types
    }
    by_name = {type_.declared: {row["id"]: row[name] for row in rows} for name, type_ in COLUMNS.items()}
    assert [str(by_name["bigint unsigned"][n]) for n in (0, 101)] == ["18446744073709551615", "9223372036854775808"]
    assert {str(by_name["date"][n]) for n in (1, 101)} == {"0001-01-01"}
    assert {by_name["year"][n] for n in (0, 100, 1, 101)} == {1901, 2155}
    assert {by_name["bit(16)"][n].hex() for n in (0, 100)} == {"3180"}


def _check_what_is_not_carried(own: Inventory) -> None:
    assert {row["id"]: str(row["d"]) for row in own.landed("zeros")} == {1: "2024-02-29", 2: "1970-01-01"}
    assert [one.partition(": ")[2] for one in own.check("zeros", patience=0).offences] != []
    assert {row["id"]: row["f"] for row in own.landed("spans")} == {2: 16777200.0, 4: 16777215.0}
    assert {row["u"] for row in own.landed("ids")} == {*UUIDS, "00a0eebc-999c-0b4e-f8bb-6d6bb9bd380a"}
    told = own.check("ids", patience=0).offences
    assert len(told) == len(UUIDS) + 1
    assert sum("y is 2000, expected 0" in one for one in told) == len(UUIDS)
    found = find_table(open_catalog(own.settings.lake), "ops.quarantine")
    assert found is not None
    refused = [row for row in found.scan().to_arrow().to_pylist() if row["source_topic"] == own.topic("spans")]
    assert len({(row["source_partition"], row["source_offset"]) for row in refused}) == 2
    said = " ".join(own.check("spans", patience=0).offences)
    assert all(f"key ({n},)" in said for n in (1, 2, 3))
    assert "key (4,)" not in said


def _check_that_verify_notices(own: Inventory) -> None:
    """A value that changed behind the pipeline's back is found, whatever its type."""
    with connect(own.url) as db, db.cursor() as cursor:
        cursor.execute("SET SESSION sql_log_bin = 0")
        cursor.execute(f"UPDATE types SET {', '.join(f'{name} = NULL' for name in COLUMNS)} WHERE id = 0")
        cursor.execute("SET sql_mode = 'ALLOW_INVALID_DATES'")
        single = {name for name, type_ in COLUMNS.items() if len(type_.samples) == 1}
        some = ", ".join(f"{name} = {type_.samples[0]}" for name, type_ in COLUMNS.items() if name not in single)
        cursor.execute(f"UPDATE types SET {some} WHERE id = 1")
        db.commit()
    schema = own.topic("types").split(".")[1]
    database, lake = read_database(own.url, schema, "types"), Lake(own.settings.lake)
    silver = lake.table(table_name("silver", own.topic("types")))
    assert silver is not None
    forms = Forms(database.types, _columns(lake, silver))
    held: dict[int, Any] = {row["id"]: forms.held(row) for row in lake.rows(f"SELECT * FROM {lake.scan(silver)}")}
    expected = {row["id"]: forms.expected(row) for row in database.rows}
    for name, type_ in COLUMNS.items():
        unlike = [n for n in sorted(expected) if expected[n][name] != held[n].get(name)]
        assert unlike == ([0] if name in single else [0, 1]), type_.declared
