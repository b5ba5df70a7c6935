"""Values and columns of PostgreSQL that Debezium does not carry, each line of `connectors.limits` that says so."""

from __future__ import annotations

from typing import Any

import pytest

from connectors.connect import Connect, Connector
from connectors.databases import open_source
from connectors.limits import check_columns, uncarried
from governance.verify.avro import Schemas
from governance.verify.kafka import KafkaReader
from headrace.errors import ContractError
from tests.integration.cdc.inventory import until
from tests.integration.cdc.source import Source

# It stops the connector, or is null where that is told to go on.
STOPPING = {
    "list": ("numeric[]", "'{NaN}'"),
    "moods": ("mood[]", "'{happy,null}'"),
    "paths": ("ltree[]", "'{a,null}'"),
    "pairs": ("pair[]", "array[null]::pair[]"),
    "ranges": ("int4multirange[]", "array[null]::int4multirange[]"),
    "words": ("tsvector[]", "array[null]::tsvector[]"),
    "bits": ("bit(8)[]", "array[B'10000001']"),
    "bools": ("bit[]", "array[B'1']"),
    "sparse": ("sparsevec(40000)", "'{32768:1}/40000'"),
}
NOT_FINITE = {"NaN": "NAN", "Infinity": "POSITIVE_INFINITY", "-Infinity": "NEGATIVE_INFINITY"}
# Of these a large value that did not change.
LARGE_STOPPING = {
    "varbits": (
        "varbit",
        "(SELECT string_agg(('x' || md5(i::text))::bit(128)::text, '') FROM generate_series(1, 400) i)::varbit",
    ),
    "floats": ("real[]", "(SELECT array_agg(i::real) FROM generate_series(1, 2000) i)"),
    "embedding": ("vector(600)", "(SELECT array_agg(i::real) FROM generate_series(1, 600) i)::vector"),
}
LEFT_OUT = {
    "spans": ("interval[]", "'{1 day}'"),
    "amounts": ("money[]", "'{1}'"),
    "documents": ("xml[]", "array['<a/>'::xml]"),
    "places": ("point[]", "array['(1,2)'::point]"),
    "names": ("name[]", "'{a}'"),
    "varbits": ("varbit[]", "array[B'1']"),
}
BEFORE_CHRIST = {"d": ("date", "'0044-03-15 BC'"), "days": ("date[]", "'{0044-03-15 BC}'"),
                 "times": ("timestamptz[]", "'{0044-03-15 BC}'")}  # fmt: skip


def _table(name: str, columns: dict[str, tuple[str, str]]) -> str:
    """Statements for a table with one row."""
    declared = ", ".join(f"{column} {type_}" for column, (type_, _) in columns.items())
    values = ", ".join(value for _, value in columns.values())
    return f"CREATE TABLE {name} (id int PRIMARY KEY, {declared}); INSERT INTO {name} SELECT 1, {values}"


TABLES = (
    _table("odd", {"nested": ("text[]", "'{{a,b},{c,d}}'")} | BEFORE_CHRIST | LEFT_OUT),
    _table("stopping", {"n": ("numeric", "1")} | STOPPING | LARGE_STOPPING),
    "CREATE TABLE finite (id int PRIMARY KEY, n numeric)",
)


def going_on(connector: Connector) -> dict[str, str]:
    """A connector that puts null in the place of what it cannot convert."""
    name = f"{connector.name}_on"
    return connector.config | {
        "name": name,
        "topic.prefix": name,
        "slot.name": name,
        "publication.name": name,
        "table.include.list": "public.stopping",
        "decimal.handling.mode": "string",
        "event.converting.failure.handling.mode": "warn",
    }


async def check_what_stops(source: Source, client: Connect, connector: Connector) -> None:
    def reason() -> str:
        status = client.status(source.name)
        return status.reason if status.state == "FAILED" else ""

    config = connector.config | {"name": source.name, "table.include.list": "public.finite"}
    source.execute("INSERT INTO finite VALUES (1, 'NaN')")
    client.call("PUT", f"/connectors/{source.name}/config", body=config)
    await until(lambda: "Failed to properly convert data value for 'public.finite.n'" in reason())
    source.execute("CREATE DOMAIN feeling AS mood")
    client.restart(source.name)
    await until(lambda: "NullPointerException" in reason())


async def check_what_is_null(source: Source, config: dict[str, str]) -> None:
    topic, kafka = f"{config['name']}.public.stopping", KafkaReader(source.settings.kafka)

    def events() -> list[dict[str, Any]]:
        schemas = Schemas(source.settings.registry.url)
        records = kafka.read(topic, 0, *kafka.bounds(topic, 0)) if topic in kafka.topics() else ()
        return [schemas.decode(record.value)[0]["after"] for record in records if record.value is not None]

    source.execute(*(f"UPDATE stopping SET n = '{value}'" for value in NOT_FINITE))
    await until(lambda: len(events()) == 1 + len(NOT_FINITE))
    read, *changed = events()
    assert {name for name in LARGE_STOPPING if read[name] is None} == set()
    assert [row["n"] for row in changed] == list(NOT_FINITE.values())
    for row in (read, *changed):
        assert {name: row[name] for name in STOPPING} == dict.fromkeys(STOPPING)
    for row in changed:
        assert {name: row[name] for name in LARGE_STOPPING} == dict.fromkeys(LARGE_STOPPING)


def check_what_comes_otherwise(source: Source) -> None:
    (row,) = source.rows("odd").values()
    assert [text.partition("@")[0] for text in row.pop("nested")] == ["[Ljava.lang.String;"] * 2
    assert (row["d"].year, row["days"][0].year, row["times"][0].year) == (44, 44, 44)
    assert not LEFT_OUT.keys() & row.keys()
    assert source.verify("odd")[1].total_offences == 1


def check_that_columns_are_told(source: Source, config: dict[str, str], going_on: dict[str, str]) -> None:
    databases = {source.name: source.url, going_on["name"]: source.url}
    settings = source.settings.model_copy(update={"databases": databases})

    def told(config: dict[str, str]) -> dict[str, str]:
        found = open_source(settings, config)
        assert found is not None
        return {column: mend for column, (_, mend) in uncarried(found, config).items()}

    assert told(config).keys() == {"public.feeling", *(f"public.odd.{name}" for name in LEFT_OUT)}
    assert told(config | {"column.exclude.list": "public[.]odd[.].*"}).keys() == {"public.feeling"}
    found = told(going_on)
    assert found.keys() == {"public.feeling", *(f"public.stopping.{name}" for name in ("bits", "bools", "embedding"))}
    source.execute("DROP DOMAIN feeling", "ALTER TABLE stopping DROP bits, DROP bools")
    with pytest.raises(ContractError, match="the connector stops") as refused:
        check_columns(settings, going_on)
    assert refused.value.where == "public.stopping.embedding"
    source.execute(str(refused.value.hint).partition(";")[0])
    check_columns(settings, going_on)
