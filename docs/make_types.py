"""Writes docs/types.md from the catalogues that the tests check against real databases: `python -m docs.make_types`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.integration.cdc.catalogue import Engine
from tests.integration.cdc.mariadb import ENGINE as MARIADB
from tests.integration.cdc.postgresql import ENGINE as POSTGRESQL

PAGE = Path(__file__).with_name("types.md")
ENGINES = (POSTGRESQL, MARIADB)
INTRODUCTION = """\
# Column types

What each column type of a source database becomes in Kafka, in Arrow and in Iceberg. Made by
`python -m docs.make_types` from the catalogue that a test checks against the database; another test compares the two.

Rules for all of them:

- NULL stays NULL. A value is never rounded without being named here.
- Points in time are microseconds. Dates and timestamps have the years 1 to 9999, which is what readers of the lake
  agree on. What is beyond (`infinity`, years before Christ) is stored as the nearer end, so that open-ended rows stay.
- A number that Iceberg has no decimal for is exact text; equal numbers are equal text. To calculate, write
  `CAST(amount AS DECIMAL(38, 9))` in SQL, or declare a precision in the source.
- `headrace verify` compares every row by these rules, with code of its own.
"""
LIMITS = """\
With `databases.<topic.prefix>` set, `headrace connect apply` refuses a connector that captures a column of which the
last column here says so, and names the column; `headrace connect status` tells of one that PostgreSQL has since."""


def render() -> str:
    """The whole page as Markdown."""
    return "\n".join([INTRODUCTION, *(line for engine in ENGINES for line in _engine(engine))]) + "\n"


def _engine(engine: Engine) -> Iterator[str]:
    yield from (
        f"## {engine.name}",
        "",
        engine.introduction,
        "",
        "| connector setting | value | why |",
        "|---|---|---|",
    )
    yield from (_line(f"`{one.name}`", f"`{one.value}`", one.why) for one in engine.settings)
    for group in engine.groups:
        yield from ("", f"### {group.title}", "")
        yield from ("| declared | Debezium sends | Arrow | Iceberg | the table holds |", "|---|---|---|---|---|")
        for type_ in group.types:
            known = (type_.declared, type_.semantic, type_.arrow, type_.iceberg)
            yield _line(*(f"`{text}`" for text in known), type_.reader)
    yield from (
        "",
        "### What Debezium does not carry",
        "",
        LIMITS,
        "",
        "| in the source | what arrives | instead | refused |",
        "|---|---|---|---|",
    )
    yield from (_line(one.what, one.arrives, one.instead, one.refused) for one in engine.limits)


def _line(*cells: str) -> str:
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
