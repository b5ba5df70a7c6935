"""Reading the lake with DuckDB."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog

from headrace.config import LakeSettings
from headrace.errors import ConfigError, TerminalError
from headrace.lake import Answer, answer, query, table_locations, tables_of


@pytest.fixture
def lake(tmp_path: Path) -> LakeSettings:
    settings = LakeSettings(uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}/lake")
    catalog = SqlCatalog(settings.catalog, uri=settings.uri, warehouse=settings.warehouse)
    catalog.create_namespace("silver")
    rows = pa.table({"id": [1, 2, 3], "name": ["a", "b", None]})
    catalog.create_table("silver.things", schema=rows.schema).append(rows)
    return settings


def test_query_reads_the_newest_snapshot(lake: LakeSettings) -> None:
    assert query(lake, "SELECT id, name FROM silver.things ORDER BY id").fetchall() == [(1, "a"), (2, "b"), (3, None)]


def test_locations_name_every_table(lake: LakeSettings) -> None:
    assert list(table_locations(lake)) == ["silver.things"]


def test_unknown_table_names_those_that_exist(lake: LakeSettings) -> None:
    with pytest.raises(TerminalError, match=r"no table silver\.nothing.*silver\.things"):
        query(lake, "SELECT * FROM silver.nothing")


@pytest.mark.parametrize("sql", ["DROP TABLE silver.things", "SELECT 1; SELECT 2", "COPY silver.things TO 'x'"])
def test_only_one_select_is_run(sql: str) -> None:
    with pytest.raises(TerminalError, match="one SELECT"):
        tables_of(sql)


def test_wrong_sql_says_so_in_one_line(lake: LakeSettings) -> None:
    with pytest.raises(TerminalError, match="nonesuch"):
        query(lake, "SELECT nonesuch FROM silver.things")


def test_no_catalog_names_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"lake\.uri"):
        table_locations(LakeSettings())


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT content FROM read_text('/etc/hostname')",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM silver.things, read_text('/etc/hostname')",
        "SELECT * FROM read_text('http://127.0.0.1:1/x')",
    ],
)
def test_a_query_reads_tables_and_nothing_else(lake: LakeSettings, sql: str) -> None:
    with pytest.raises(TerminalError, match="Permission"):
        query(lake, sql)


def test_an_answer_says_whether_there_is_more(lake: LakeSettings) -> None:
    assert answer(lake, "SELECT id FROM silver.things ORDER BY id", limit=2) == Answer(["id"], [(1,), (2,)], True)
    assert answer(lake, "SELECT id FROM silver.things ORDER BY id") == Answer(["id"], [(1,), (2,), (3,)])


def test_what_fails_while_rows_are_fetched_says_so_too(lake: LakeSettings) -> None:
    with pytest.raises(TerminalError, match="query: "):
        answer(lake, "SELECT CASE WHEN i > 90000 THEN error('late') ELSE i END FROM range(100000) t(i)")


def test_a_query_without_end_is_ended(lake: LakeSettings) -> None:
    with pytest.raises(TerminalError, match=r"longer than 0\.2 s"):
        answer(lake, "SELECT count(*) FROM range(1000000000000) t(i) WHERE i % 7 = 3", seconds=0.2)
