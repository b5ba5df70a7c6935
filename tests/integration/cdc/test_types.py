"""Every column type of PostgreSQL from a real database through real Debezium to its table, by snapshot and by stream.

One connector and one run of the sink for all of it. The catalogue, which docs/types.md is made of, says what each type
becomes.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from connectors.connect import Connect, Connector, load_connector
from governance.verify.current import _columns, read_database
from governance.verify.lake import Lake
from governance.verify.postgres import Forms
from headrace.config import Settings
from tests.integration.cdc import uncarried
from tests.integration.cdc.catalogue import Type, found_types
from tests.integration.cdc.inventory import until
from tests.integration.cdc.postgresql import ENGINE, PREPARE
from tests.integration.cdc.server import full_postgres
from tests.integration.cdc.source import Source
from tests.integration.sinks.iceberg.shop import made_settings, running

SHOP = Path(__file__).parents[3] / "connectors" / "debezium" / "shop.json"
COLUMNS = {f"c{i}": type_ for i, type_ in enumerate(ENGINE.types)}
ROWS = max(len(type_.samples) for type_ in ENGINE.types)
NOTHING, FILLED, EMPTIED = 900, 901, 902
# Types whose unchanged large values arrive as a placeholder, and values that TOAST stores out of line.
LARGE = {
    "text": "string_agg(md5(i::text), '')",
    "bytea": "string_agg(decode(md5(i::text), 'hex'), '')",
    "jsonb": "jsonb_agg(md5(i::text))",
    "xml": "('<a>' || string_agg(md5(i::text), '') || '</a>')::xml",
    "hstore": "hstore(array_agg(i::text), array_agg(md5(i::text)))",
    "pair": "row(1, string_agg(md5(i::text), ''))::pair",
    "text[]": "array_agg(md5(i::text))",
    "uuid[]": "array_agg(md5(i::text)::uuid)",
    "bytea[]": "array_agg(decode(md5(i::text), 'hex'))",
    "jsonb[]": "array_agg(to_jsonb(md5(i::text)))",
    "integer[]": "array_agg(i * 7919)",
    "bigint[]": "array_agg(i::bigint * 7919)",
    "date[]": "array_agg(date '2020-01-01' + i)",
    "numrange": "numrange(0, string_agg(i::text, '')::numeric)",
}


def _insert(source: Source, start: int) -> None:
    """One row for each place in the samples, null where a type has fewer."""
    source.execute(*(f"INSERT INTO types {_values(start + i, i)}" for i in range(ROWS)))


def _values(row: int, place: int) -> str:
    have = {name: type_.samples[place] for name, type_ in COLUMNS.items() if place < len(type_.samples)}
    return f"(id, {', '.join(have)}) VALUES ({row}, {', '.join(have.values())})"


@pytest.fixture
def source(settings: Settings, tmp_path: Path) -> Iterator[Source]:
    name = f"t{uuid4().hex[:8]}"
    mine = made_settings(settings, tmp_path, name)
    try:
        with full_postgres() as admin:
            with psycopg.connect(admin, autocommit=True) as db:
                db.execute(f'CREATE DATABASE "{name}"')
            yield Source(mine, name, make_conninfo(admin, dbname=name))
    finally:
        with psycopg.connect(settings.postgres.url, autocommit=True) as db:
            db.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


async def test_every_type_from_the_database_to_its_table(source: Source, connect_url: str, tmp_path: Path) -> None:
    await asyncio.to_thread(_prepare, source)
    client, connector = Connect(connect_url), _connector(source, tmp_path)
    going_on = uncarried.going_on(connector)
    try:
        assert (await asyncio.to_thread(client.apply, connector)).running
        client.call("PUT", f"/connectors/{going_on['name']}/config", body=going_on)
        async with running(source.settings):
            await until(lambda: len(source.rows("types")) == ROWS + 3)
            await asyncio.to_thread(_change, source)
            await until(lambda: len(source.rows("types")) == 2 * ROWS + 4)
            await until(lambda: {n: row["n"] for n, row in source.rows("larges").items()} == {1: 2, 2: 3})
            await until(lambda: [row["n"] for row in source.rows("readable").values()] == [2])
        # Without a placeholder the unchanged value would have become NULL.
        source.execute("UPDATE unreadable SET n = 2")
        await until(lambda: client.status(source.name).state == "FAILED")
        assert "Failed to properly convert data value for 'public.unreadable.l'" in client.status(source.name).reason
        await uncarried.check_what_stops(source, client, connector)
        await uncarried.check_what_is_null(source, going_on)
    finally:
        client.remove(source.name)
        client.remove(going_on["name"])
    assert source.rows("readable")[1]["l"] == [float(n) for n in range(1, 2001)]
    _check_types(source)
    _check_values(source)
    uncarried.check_what_comes_otherwise(source)
    uncarried.check_that_columns_are_told(source, connector.config, going_on)
    bronze, current = source.verify("types")
    assert (bronze.offences, current.offences) == ([], [])
    assert (bronze.compared, current.compared) == (2 * ROWS + 6, 2 * ROWS + 4)
    bronze, current = source.verify("larges")
    assert bronze.ok
    assert current.total_offences == 1, current.offences
    assert f"key (2,): l{list(LARGE).index('integer[]')} is [None, None]" in current.offences[0]
    _check_that_verify_notices(source)


def _prepare(source: Source) -> None:
    columns = ", ".join(f"{name} {type_.declared}" for name, type_ in COLUMNS.items())
    large = ", ".join(f"l{i} {declared}" for i, declared in enumerate(LARGE))
    source.execute(
        PREPARE,
        f"CREATE TABLE types (id int PRIMARY KEY, {columns})",
        *(f"ALTER TABLE types ALTER {name} DROP NOT NULL" for name in COLUMNS),
        *(f"ALTER TABLE types ALTER {name} DROP DEFAULT" for name in COLUMNS),
        "ALTER TABLE types REPLICA IDENTITY FULL",
        f"CREATE TABLE larges (id int PRIMARY KEY, n int, {large})",
        *(f"ALTER TABLE larges ALTER l{i} SET STORAGE EXTERNAL" for i in range(len(LARGE))),
        f"INSERT INTO larges SELECT 1, 1, {', '.join(LARGE.values())} FROM generate_series(1, 2000) i",
        *(
            statement
            for table in ("unreadable", "readable")
            for statement in (
                f"CREATE TABLE {table} (id int PRIMARY KEY, n int, l real[])",
                f"ALTER TABLE {table} ALTER l SET STORAGE EXTERNAL",
                f"INSERT INTO {table} SELECT 1, 1, array_agg(i::real) FROM generate_series(1, 2000) i",
            )
        ),
        "ALTER TABLE readable REPLICA IDENTITY FULL",
        *uncarried.TABLES,
        f"INSERT INTO types (id) VALUES ({NOTHING}), ({FILLED})",
        f"INSERT INTO types {_values(EMPTIED, 0)}",
    )
    _insert(source, 0)


def _change(source: Source) -> None:
    """Everything again through the log: rows inserted, one filled, one emptied, large values left alone."""
    _insert(source, 100)
    filled = ", ".join(f"{name} = {type_.samples[0]}" for name, type_ in COLUMNS.items())
    emptied = ", ".join(f"{name} = NULL" for name in COLUMNS)
    source.execute(
        f"UPDATE types SET {filled} WHERE id = {FILLED}",
        f"UPDATE types SET {emptied} WHERE id = {EMPTIED}",
        "UPDATE larges SET n = 2",
        "UPDATE readable SET n = 2",
        f"INSERT INTO larges (id, n, l{list(LARGE).index('integer[]')}) VALUES (2, 3, '{{{{1,2}},{{3,4}}}}')",
        "INSERT INTO types (id) VALUES (999)",
    )


def _connector(source: Source, folder: Path) -> Connector:
    place = psycopg.conninfo.conninfo_to_dict(source.url)
    config = json.loads(SHOP.read_text())["config"] | {
        "database.hostname": place["host"],
        "database.port": place["port"],
        "database.user": "postgres",
        "database.password": "",
        "database.dbname": source.name,
        "topic.prefix": source.name,
        "table.include.list": "public.types,public.larges,public.unreadable,public.readable,public.odd,public.finite",
        "slot.name": source.name,
        "publication.name": source.name,
        "topic.creation.default.partitions": "1",
    }
    file = folder / "source.json"
    file.write_text(json.dumps({"name": source.name, "config": config}))
    connector = load_connector(file)
    assert connector.config.items() >= {setting.name: setting.value for setting in ENGINE.settings}.items()
    return connector


def _check_types(source: Source) -> None:
    """The writer's schema, its columns and the table's types are the catalogue's."""
    table = source.table("types")
    assert table is not None
    found = found_types(source.settings, source.topic("types"), table)
    found = {name: found.get(name) for name in COLUMNS}
    wanted = {name: (type_.semantic, type_.arrow, type_.iceberg) for name, type_ in COLUMNS.items()}
    assert not {COLUMNS[name].declared: (found[name], wanted[name]) for name in COLUMNS if found[name] != wanted[name]}


def _check_values(source: Source) -> None:
    """Each value of the table is what a SQL client reads by the catalogue's rule; nulls are nulls."""
    lake = source.rows("types")
    selected = ", ".join(type_.read.replace("{}", "{0}").format(name) for name, type_ in COLUMNS.items())
    with psycopg.connect(source.url, options="-c timezone=UTC") as db:
        database = {row[0]: row[1:] for row in db.execute(f"SELECT id, {selected} FROM types").fetchall()}
    assert lake.keys() == database.keys()
    wrong = [
        (number, type_.declared, lake[number][name], value)
        for number, row in database.items()
        for (name, type_), value in zip(COLUMNS.items(), row, strict=True)
        if not _same(type_, lake[number][name], value)
    ]
    assert not wrong, "\n".join(f"row {n}, {declared}: {have!r}, not {want!r}" for n, declared, have, want in wrong)
    held = [sum(lake[n][name] is not None for n in lake) for name in COLUMNS]
    assert held == [2 * len(type_.samples) + 1 for type_ in COLUMNS.values()]


def _same(type_: Type, have: Any, want: Any) -> bool:
    if have is None or want is None:
        return have is want
    if type_.semantic in ("string Json", "array of string Json") and type_.declared.startswith("hstore"):
        have, want = (_parsed(value) for value in (have, want))
    if type_.declared == "point":
        have, want = [have["x"], have["y"]], [float(part) for part in want]
    if type_.declared.startswith("sparsevec"):
        cells = ",".join(f"{cell['key']}:{cell['value']:g}" for cell in have["vector"])
        have = f"{{{cells}}}/{have['dimensions']}"
    return type(have) is type(want) and _equal(have, want)


def _parsed(value: Any) -> Any:
    return [_parsed(item) for item in value] if isinstance(value, list) else value and json.loads(value)


def _equal(have: Any, want: Any) -> bool:
    if isinstance(have, list):
        return len(have) == len(want) and all(_equal(*pair) for pair in zip(have, want, strict=True))
    if isinstance(have, float) and isinstance(want, float) and math.isnan(want):
        return math.isnan(have)
    return bool(have == want)


def _check_that_verify_notices(source: Source) -> None:
    """A value that changed behind the pipeline's back is found, whatever its type."""
    single = {name for name, type_ in COLUMNS.items() if len(type_.samples) == 1}
    first = ", ".join(f"{name} = {type_.samples[0]}" for name, type_ in COLUMNS.items() if name not in single)
    source.execute(
        f"UPDATE types SET {first} WHERE id = 1",
        f"UPDATE types SET {', '.join(f'{name} = NULL' for name in single)} WHERE id = 0",
    )
    current = source.verify("types")[1]
    assert current.total_offences == 2
    database, lake = read_database(source.url, "public", "types"), Lake(source.settings.lake)
    silver = lake.table(f"silver.{source.name}_public_types")
    assert silver is not None
    forms = Forms(database.types, _columns(lake, silver))
    held = {row["id"]: forms.held(row) for row in lake.rows(f"SELECT * FROM {lake.scan(silver)}")}
    expected = {row["id"]: forms.expected(row) for row in database.rows}
    for name, type_ in COLUMNS.items():
        changed = 0 if name in single else 1
        unlike = [n for n in expected if expected[n][name] != held[n].get(name)]
        assert unlike == [changed], f"{type_.declared}: {expected[changed][name]!r}, {held[changed].get(name)!r}"
