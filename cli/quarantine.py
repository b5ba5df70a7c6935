"""`headrace quarantine`: what was refused or dropped, where, by which rule and why."""

from __future__ import annotations

import base64
import time
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from cli.output import JsonFlag, print_json, print_rows, say
from headrace.config import LakeSettings, Settings, load_settings
from headrace.errors import HeadraceError, TerminalError

app = typer.Typer(help="Look at refused and dropped records.", no_args_is_help=True)

TABLE = "ops.quarantine"
LISTED = ("quarantined_at", "stage", "source", "disposition", "rule", "reason")


@app.command("list")
def list_command(
    topic: Annotated[str, typer.Option(help="Only records of this source topic.")] = "",
    rule: Annotated[str, typer.Option(help="Only this rule, or rules that begin so.")] = "",
    since: Annotated[str, typer.Option(help="Only of the last while, like 10m or 2d.")] = "",
    dropped: Annotated[bool, typer.Option(help="Records dropped on purpose too: repeats, tombstones.")] = False,
    limit: Annotated[int, typer.Option(min=1)] = 50,
    as_json: JsonFlag = False,
) -> None:
    """Refused records, newest first."""
    from schemas.durations import parse_duration

    conditions, values = [] if dropped else ["disposition = 'quarantined'"], {}
    if topic:
        conditions.append("source_topic = $topic")
        values["topic"] = topic
    if rule:
        conditions.append("starts_with(rule, $rule)")
        values["rule"] = rule
    if since:
        conditions.append("quarantined_at >= $since")
        values["since"] = datetime.fromtimestamp(time.time() - parse_duration(since), UTC).isoformat()
    where = " AND ".join(conditions) or "true"
    rows = ask(
        load_settings().lake,
        f"""SELECT quarantined_at, stage, concat_ws('/', source_topic, source_partition, source_offset) AS source,
            disposition, rule, reason, contract, schema_id, kafka_timestamp
        FROM {TABLE} WHERE {where}
        ORDER BY quarantined_at DESC, source_topic, source_partition, source_offset DESC LIMIT {limit}""",
        values,
    )
    if as_json:
        print_json(rows)
    elif rows:
        print_rows(rows, LISTED)
    else:
        say("nothing is in the quarantine" if where == "disposition = 'quarantined'" else "nothing like that")


@app.command("show")
def show_command(
    coordinates: Annotated[str, typer.Argument(metavar="TOPIC/PARTITION/OFFSET", help="As `list` shows them.")],
    as_json: JsonFlag = False,
) -> None:
    """One record: every stage that sent it away, its key and value as received, decoded where that is possible."""
    topic, partition, offset = parse_coordinates(coordinates)
    settings = load_settings()
    found = ask(
        settings.lake,
        f"""SELECT * FROM {TABLE}
        WHERE source_topic = $topic AND source_partition = $partition AND source_offset = $offset
        ORDER BY quarantined_at""",
        {"topic": topic, "partition": partition, "offset": offset},
    )
    if not found:
        raise TerminalError("not in the quarantine", where=coordinates, hint="headrace quarantine list --dropped")
    for row in found:
        row["decoded"] = decode(settings, row["value"])
        for part in ("key", "value"):
            row[part] = text_of(row[part])
    if as_json:
        print_json(found)
        return
    for row in found:
        print_rows([{"field": name, "value": value} for name, value in row.items()], ("field", "value"))


def parse_coordinates(text: str) -> tuple[str, int, int]:
    """Raises `TerminalError` when it is not TOPIC/PARTITION/OFFSET."""
    topic, *numbers = text.rsplit("/", 2)
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise TerminalError(f"{text!r} is not TOPIC/PARTITION/OFFSET", hint="like telemetry.readings/2/1234")
    return topic, int(numbers[0]), int(numbers[1])


def text_of(raw: bytes | None) -> str | None:
    """Bytes as text where they are one, else in base64."""
    if raw is None:
        return None
    try:
        text = bytes(raw).decode()
    except UnicodeDecodeError:
        text = "\0"
    return text if text.isprintable() else "base64:" + base64.b64encode(raw).decode()


def decode(settings: Settings, value: bytes | None) -> Any:
    """The value's fields; None when it does not decode, or the registry is not there to say how."""
    import pyarrow as pa

    from schemas.codec import ChunkDecoder
    from schemas.registry import Registry

    if value is None:
        return None
    registry = Registry(settings.registry.url, settings.state / "schemas", patience=1.0)
    try:
        batch = ChunkDecoder(registry.schema).decode(pa.array([value], pa.binary())).batch
    except HeadraceError as e:
        say(f"not decoded: {e}")
        return None
    finally:
        registry.close()
    return batch.to_pylist()[0] if len(batch) else None


def ask(lake: LakeSettings, sql: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a query over the quarantine's table; none when the table does not exist yet.

    A record that was sent again after a crash is in the table once: the sink drops repeats by their coordinates.
    """
    from headrace.lake import add_views, open_duckdb, table_locations

    locations = table_locations(lake)
    if TABLE not in locations:
        return []
    with open_duckdb(lake) as connection:
        add_views(connection, locations, [TABLE])
        cursor = connection.execute(sql, values)
        names = [column[0] for column in cursor.description or []]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
