"""`headrace kpi list|show|check`: live values from Redis, and whether declarations are sound."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

import orjson
import redis.exceptions
import typer
from redis.asyncio import Redis

from cli.output import JsonFlag, print_json, print_rows, say
from headrace.config import Settings, load_settings
from headrace.errors import TerminalError, UnavailableError
from sinks.kpi.store import Store, Value

app = typer.Typer(help="Live KPIs.", no_args_is_help=True)

T = TypeVar("T")


def _ask(settings: Settings, question: Callable[[Store], Awaitable[T]]) -> T:
    async def run() -> T:
        client = Redis.from_url(settings.redis.url, socket_timeout=5, socket_connect_timeout=3)
        try:
            return await question(Store(client))
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError) as e:
            raise UnavailableError("Redis does not answer", where="redis.url", hint="headrace status") from e
        finally:
            await client.aclose()

    return asyncio.run(run())


def _newest(values: list[Value], windows: int = 1) -> list[Value]:
    """Values of the newest windows, newest first, the highest values of each first."""
    kept = sorted({v.window for v in values}, reverse=True)[:windows]
    chosen = [v for v in values if v.window in kept]
    return sorted(chosen, key=lambda v: (v.window, v.value is not None, v.value or 0.0), reverse=True)


@app.command("list")
def list_command(as_json: JsonFlag = False) -> None:
    """Every KPI that is live, with what its newest window holds."""

    async def question(store: Store) -> list[dict[str, Any]]:
        rows = []
        for name, about in (await store.declared()).items():
            values = await store.values(name)
            newest = _newest(values)
            rows.append(
                {
                    "name": name,
                    "title": about["title"],
                    "unit": about["unit"],
                    "source": about["source"],
                    "by": ", ".join(about["dimensions"]),
                    "window": newest[0].window if newest else None,
                    "groups": len(newest),
                    "highest": newest[0].value if newest else None,
                    "updated": max((v.updated_at.isoformat(timespec="seconds") for v in values), default=None),
                }
            )
        return rows

    rows = _ask(load_settings(), question)
    if as_json:
        print_json(rows)
    elif rows:
        print_rows(rows)
    else:
        say("no KPI is live: is the process kpi-sink running?")


@app.command("show")
def show_command(
    name: Annotated[str, typer.Argument(help="A KPI's name.")],
    windows: Annotated[int, typer.Option(min=1, help="How many of the newest windows.")] = 1,
    as_json: JsonFlag = False,
) -> None:
    """Values of one KPI by group, with the offsets that they are exact at."""

    async def question(store: Store) -> tuple[dict[str, Any] | None, list[Value], list[str]]:
        declared = await store.declared()
        return declared.get(name), await store.values(name) if name in declared else [], sorted(declared)

    about, values, names = _ask(load_settings(), question)
    if about is None:
        raise TerminalError("no such KPI is live", where=name, hint="there are: " + (", ".join(names) or "none"))
    chosen = _newest(values, windows)
    if as_json:
        plain = [asdict(v) | {"group": orjson.loads(v.group), "cut": orjson.loads(v.cut)} for v in chosen]
        print_json({"kpi": about, "values": plain})
        return
    say(f"{about['title']} ({about['unit']}): {about['doc']}")
    print_rows(
        [
            {"window": v.window}
            | {k: g for k, g in orjson.loads(v.group).items()}
            | {"value": v.value, "final": "yes" if v.final else "", "revision": v.revision}
            for v in chosen
        ]
    )
    if chosen:
        say(f"exact at {max(chosen, key=lambda v: v.revision).cut}")


@app.command("check")
def check_command(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Declaration files; all of the content by default.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say what is wrong with declarations, by file and field; exit 1 when something is.

    Compares names and types with contracts and the registry, and asks the databases that the settings name whether
    changes carry the row as it was.
    """
    from schemas.registry import Registry
    from streams.kpi.declaration import check_kpis

    settings = load_settings()
    registry = Registry(settings.registry.url, settings.state / "schemas", patience=1.0)
    kpis, problems = check_kpis(settings, files, registry)
    registry.close()
    if as_json:
        print_json({"kpis": [kpi.name for kpi in kpis], "problems": [asdict(p) for p in problems]})
    else:
        for p in problems:
            say(f"{p.severity}: {p.error()}")
        say(f"{len(kpis)} declared, {sum(p.severity == 'error' for p in problems)} wrong")
    if any(p.severity == "error" for p in problems):
        raise typer.Exit(1)
