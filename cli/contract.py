"""`headrace contract`: check, register, draft, list and compare the contracts of the content folders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.output import JsonFlag, print_json, print_rows, say
from headrace.config import Settings, load_settings
from headrace.errors import ConfigError, ContractError, SchemaNotFoundError, UnavailableError
from schemas.check import Report, check_folders
from schemas.contracts import FOLDER, Contract, Problem, load_contracts
from schemas.diff import Difference, differences, history
from schemas.draft import contract_text, draft_contract, file_name
from schemas.names import subject
from schemas.register import current_version, register_contracts, registered
from schemas.registry import Registry
from schemas.release import write_released
from schemas.rules import compile_rules
from schemas.sample import decode_values, recent_values

app = typer.Typer(help="Check, register, draft, list and compare contracts.", no_args_is_help=True)


@app.command()
def check(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Content folders; the configured ones by default.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Report every problem with file and field, and what breaks a released version. Exit status 1 on errors.

    Needs no server: released versions are the copies in `released/` beside the contracts.
    """
    places = folders or load_settings().content
    for folder in places:
        if not folder.is_dir():
            raise ConfigError("no such folder", where=str(folder))
    report = check_folders(places)
    if as_json:
        print_json({"contracts": len(report.contracts), "problems": [_problem(p) for p in report.problems]})
    else:
        _print_problems(report.problems)
        warnings = len(report.problems) - len(report.errors)
        say(f"{len(report.contracts)} contracts: {len(report.errors)} errors, {warnings} warnings")
    if report.errors:
        raise typer.Exit(1)


@app.command()
def register(
    names: Annotated[list[str] | None, typer.Argument(help="Names of contracts; all by default.")] = None,
    release: Annotated[
        bool, typer.Option("--release", help="Also keep copies as released versions, to commit.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Register contracts in the schema registry and hold their subjects to BACKWARD. Repeating it changes nothing.

    Contracts of database tables are only released: Debezium registers what it writes.
    """
    settings = load_settings()
    report = check_folders(settings.content)
    if report.errors:
        _print_problems(report.errors, to_stderr=True)
        raise ContractError(f"{len(report.errors)} errors in contracts: nothing was registered")
    chosen = _chosen(report, names)
    done = register_contracts(_registry(settings), chosen, dry_run=dry_run)
    released = [c.name for c in chosen if release and not dry_run and write_released(c)]
    rows: list[dict[str, Any]] = [asdict(r) for r in done]
    if as_json:
        print_json({"registered": rows, "released": released})
        return
    print_rows(rows, ("contract", "subject", "change", "id", "version"))
    if released:
        say(f"released: {', '.join(released)}; commit the copies in {FOLDER / 'released'}")


@app.command("list")
def list_(as_json: JsonFlag = False) -> None:
    """Every contract: topic, owner, table, freshness, rules, and the registry's version of it."""
    settings = load_settings()
    contracts = load_contracts(settings.content)
    versions = _versions(settings, contracts)
    rows = [_row(c, versions.get(c.name), details=as_json) for c in contracts]
    print_json(rows) if as_json else print_rows(rows)


@app.command()
def draft(
    topic: str,
    owner: Annotated[str, typer.Option(help="Team that answers for the data.")],
    out: Annotated[Path | None, typer.Option(help="File to write; by default in the first content folder.")] = None,
    records: Annotated[int, typer.Option(min=0, help="Recent records to look at.")] = 1000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the contract, write nothing.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a contract for a topic from its registered schema and its recent records.

    What only a person knows is marked FILL IN; what the records suggest is kept under `suggestions`. Both are
    reported by `headrace contract check` until somebody has decided.
    """
    settings = load_settings()
    known = load_contracts(settings.content).by_topic.get(topic)
    if known is not None and not dry_run:
        raise ContractError(f"topic {topic} has the contract {known.name}", where=str(known.path))
    registry = _registry(settings)
    value_schema = _latest(registry, topic, "value")
    if value_schema is None:
        raise SchemaNotFoundError(
            f"no schema is registered under {subject(topic, 'value')}",
            where=topic,
            hint="is the topic's name right, and has anything been written to it?",
        )
    values = recent_values(settings.kafka, topic, records) if records else []
    rows, bad = decode_values(values, registry)
    schema = draft_contract(topic, owner, value_schema, _latest(registry, topic, "key"), rows)
    path = out or settings.content[0] / FOLDER / file_name(schema["name"])
    if not dry_run:
        _write(path, contract_text(schema))
    if bad:
        say(f"{bad} of {len(values)} records could not be decoded")
    if as_json:
        print_json({"path": None if dry_run else str(path), "records": len(rows), "schema": schema})
    elif dry_run:
        print(contract_text(schema), end="")
    else:
        print(path)
        say(f"from {len(rows)} records; next: fill it in, then `headrace contract check`")


@app.command()
def diff(
    name: Annotated[str, typer.Argument(metavar="TOPIC-or-CONTRACT", help="A topic, or the name of a contract.")],
    as_json: JsonFlag = False,
) -> None:
    """What each version of a topic's schemas in the registry changed, when, and what the contract says otherwise.

    Of change events the rows count. Dates are known where the registry is Apicurio's.
    """
    settings = load_settings()
    contracts = load_contracts(settings.content)
    contract = contracts.by_name.get(name) or contracts.by_topic.get(name)
    topic = contract.topic if contract else name
    registry = _registry(settings)
    steps = history(registry, topic)
    if not steps:
        raise SchemaNotFoundError(f"no schema is registered under {subject(topic, 'value')}", where=topic)
    latest = _latest(registry, topic, "value")
    apart = differences(latest, contract.avro) if contract and latest else []
    if as_json:
        versions = [asdict(s) | {"differences": [_difference(d) for d in s.differences]} for s in steps]
        print_json(
            {
                "topic": topic,
                "versions": versions,
                "contract": contract and {"name": contract.name, "differences": [_difference(d) for d in apart]},
            }
        )
        return
    rows = [
        {"version": f"{s.part} {s.version}", "registered": s.created, **_difference(d)}
        for s in steps
        for d in s.differences
    ]
    rows += [{"version": "contract", "registered": None, **_difference(d)} for d in apart]
    print_rows(rows, ("version", "registered", "field", "change", "was", "now"))


def _difference(difference: Difference) -> dict[str, str | None]:
    return {
        "field": difference.at,
        "change": difference.change,
        "was": difference.was,
        "now": difference.now,
    }


def _row(contract: Contract, version: int | None, *, details: bool) -> dict[str, Any]:
    storage, freshness = contract.storage, contract.freshness
    row: dict[str, Any] = {
        "name": contract.name,
        "topic": contract.topic,
        "owner": contract.owner,
        "table": (storage and storage.table) or None,
        "freshness": f"{freshness:g}s" if freshness else None,
        "rules": sum(len(f.rules) for _, f in contract.walk()) + len(contract.rules),
        "version": version,
    }
    if details:
        rules = [rule.name for rule in compile_rules(contract)]
        row |= {"file": _short(str(contract.path)), "doc": contract.doc, "freshness": freshness, "rules": rules}
    return row


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as e:
        raise ContractError("is there already", where=str(path), hint="name another file with --out") from e
    except OSError as e:
        raise ConfigError(f"cannot be written: {e.strerror}", where=str(path)) from e


def _registry(settings: Settings) -> Registry:
    return Registry(settings.registry.url)


def _latest(registry: Registry, topic: str, part: Any) -> dict[str, Any] | None:
    try:
        return registry.latest(subject(topic, part)).schema
    except SchemaNotFoundError:
        return None


def _versions(settings: Settings, contracts: Iterable[Contract]) -> dict[str, int]:
    registry = Registry(settings.registry.url, patience=0.0)
    try:
        found = {c.name: current_version(registry, c) for c in registered(contracts)}
    except UnavailableError as e:
        say(f"versions are left out: {e}")
        return {}
    return {name: version.version for name, version in found.items() if version is not None}


def _chosen(report: Report, names: list[str] | None) -> list[Contract]:
    by_name = {c.name: c for c in report.contracts}
    for name in names or ():
        if name not in by_name:
            raise ContractError(f"no contract {name}", hint=f"known are {', '.join(by_name)}")
    return [by_name[name] for name in names] if names else list(report.contracts)


def _problem(problem: Problem) -> dict[str, str]:
    return {**asdict(problem), "file": _short(problem.file)}


def _short(file: str) -> str:
    path, here = Path(file).resolve(), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else file


def _print_problems(problems: Iterable[Problem], *, to_stderr: bool = False) -> None:
    for p in problems:
        place = ": ".join(filter(None, (_short(p.file), p.at)))
        line = f"{p.severity}: {place}: {p.what}" + (f" ({p.hint})" if p.hint else "")
        if to_stderr:
            say(line)
        else:
            print(line)
