"""Is a declared KPI sound: does its source exist under a contract, do its names mean something, can it be computed?

The form of the file is `schemas.kpis`'s; what is checked here needs contracts, the registry and, for tables whose
changes are taken back, the database: without full before-images there is nothing to take back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pyarrow as pa
from psycopg import sql

from headrace.config import Settings
from headrace.errors import ContractError, HeadraceError, SchemaNotFoundError, UnavailableError
from headrace.logs import get_logger
from headrace.mysql import is_mysql, require_row_log
from schemas.codec import arrow_schema
from schemas.contracts import ContractSet, Problem, load_contracts
from schemas.envelope import is_envelope, row_schema
from schemas.expressions import compile_expression
from schemas.kpis import FOLDER, Alert, Kpi, kpi_files, load_kpi, load_kpis, read_kpi
from schemas.names import subject
from schemas.registry import Registry
from streams.kpi.partials import check_type

__all__ = ["FOLDER", "Alert", "Kpi", "check_kpis", "load_kpi", "load_kpis", "require_full_identity", "sound_kpis"]

log = get_logger("kpi")

_TABLE_PARTS = 3


@dataclass(frozen=True)
class _Source:
    """Rows of a source topic; `updates` when they are changed and deleted."""

    schema: pa.Schema
    updates: bool


def check_kpi(kpi: Kpi, file: str, contracts: ContractSet, registry: Registry | None) -> list[Problem]:
    """What is wrong with a KPI whose form is right. Without contract, registry or schema the fields stay unchecked."""
    try:
        source = _source(kpi.source, contracts, registry)
    except HeadraceError as e:
        return [Problem(file, "source", f"fields are not checked: {e.what}", e.hint, "warning")]
    problems = []

    def note(at: str, what: str, hint: str = "") -> None:
        problems.append(Problem(file, at, what, hint))

    def type_of(at: str, name: str) -> pa.DataType | None:
        if name in source.schema.names:
            return source.schema.field(name).type
        note(at, f"{kpi.source} has no field {name}", "fields: " + ", ".join(source.schema.names))
        return None

    if source.updates and not kpi.retracts:
        note(
            "measure",
            f"{kpi.measure} cannot take a row back, and rows of {kpi.source} change and go",
            "measure count, sum or avg, or take an append-only topic as source",
        )
    if kpi.field and (kind := type_of("field", kpi.field)) and (why := check_type(kpi, kind)):
        note("field", why)
    for name in kpi.dimensions:
        if (kind := type_of("dimensions", name)) and pa.types.is_nested(kind):
            note("dimensions", f"{name} is {kind}, not a plain value")
    time = type_of("event_time", kpi.event_time) if kpi.event_time else None
    if time and not (pa.types.is_timestamp(time) or pa.types.is_date(time)):
        note("event_time", f"{kpi.event_time} is {time}, not a time")
    if kpi.filter:
        try:
            compile_expression(kpi.filter, source.schema)
        except ContractError as e:
            note("filter", f"{e.what} ({e.where})" if e.where else e.what, e.hint)
    return problems


def _source(topic: str, contracts: ContractSet, registry: Registry | None) -> _Source:
    contract = contracts.by_topic.get(topic)
    if contract is not None:
        return _Source(arrow_schema(contract.avro), contract.is_cdc)
    if registry is None:
        raise SchemaNotFoundError(f"no contract for {topic}", where=topic)
    schema = registry.latest(subject(topic, "value")).schema
    if is_envelope(schema):
        return _Source(arrow_schema(row_schema(schema)), True)
    return _Source(arrow_schema(schema), False)


def require_full_identity(db_url: str, table: str) -> None:
    """`table` is `schema.table`. Returns when the database logs whole rows before each change of it.

    Raises `ContractError` with the statement that makes it so, or when there is no such table, and `UnavailableError`
    when the database cannot be asked.
    """
    if is_mysql(db_url):
        require_row_log(db_url)
        return
    schema, _, name = table.rpartition(".")
    try:
        with psycopg.connect(db_url, connect_timeout=5) as connection:
            row = connection.execute(
                "SELECT c.relreplident::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p')",
                (schema or "public", name),
            ).fetchone()
            statement = sql.SQL("ALTER TABLE {} REPLICA IDENTITY FULL").format(sql.Identifier(schema or "public", name))
            text = statement.as_string(connection)
    except psycopg.Error as e:
        raise UnavailableError(f"the database cannot be asked: {type(e).__name__}", where=table) from e
    if row is None:
        raise ContractError("no such table", where=table)
    if row[0] != "f":
        raise ContractError(
            "changes do not carry the row as it was, so it cannot be taken back", where=table, hint=text
        )


def _identity_problem(kpi: Kpi, file: str, settings: Settings) -> Problem | None:
    prefix, *table = kpi.source.rsplit(".", _TABLE_PARTS - 1)
    url = settings.databases.get(prefix)
    if url is None or len(table) != _TABLE_PARTS - 1:
        return None
    try:
        require_full_identity(url, ".".join(table))
    except UnavailableError as e:
        return Problem(file, "source", f"replica identity is not checked: {e}", severity="warning")
    except ContractError as e:
        missing = "no such table" in e.what
        return Problem(file, "source", str(e.what), e.hint, "warning" if missing else "error")
    return None


def check_kpis(
    settings: Settings, files: Iterable[Path] | None = None, registry: Registry | None = None
) -> tuple[list[Kpi], list[Problem]]:
    """The KPIs of content folders (or of some files), and all that is wrong with them. Blocks."""
    contracts = load_contracts(settings.content)
    found: dict[str, Kpi] = {}
    problems: list[Problem] = []
    for path in kpi_files(settings.content) if files is None else files:
        kpi, wrong = read_kpi(path)
        problems += wrong
        if kpi is None:
            continue
        problems += check_kpi(kpi, str(path), contracts, registry)
        if identity := _identity_problem(kpi, str(path), settings):
            problems.append(identity)
        if kpi.name in found:
            problems.append(Problem(str(path), "name", f"a KPI named {kpi.name} is already declared"))
        found[kpi.name] = kpi
    return list(found.values()), problems


def sound_kpis(settings: Settings, registry: Registry | None = None) -> list[Kpi]:
    """The KPIs to compute. Blocks; logs what could not be checked. Raises `ContractError` for the first wrong one."""
    kpis, problems = check_kpis(settings, registry=registry)
    for problem in problems:
        if problem.severity == "error":
            raise problem.error()
        log.warning("not checked", file=problem.file, at=problem.at, what=problem.what)
    return kpis
