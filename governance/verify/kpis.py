"""Published KPI values against a recomputation in SQL over the lake, at the values' own cut.

The newest publication of a source says, per partition, up to which offset its values are exact. Whatever was published
before and not since must still be right at that cut, so all values are compared at one cut. The SQL repeats the rules
that `streams.kpi.contributions` states (repeats by position, later snapshots, watermark, lateness) and shares no code
with it.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import duckdb

from governance.verify.avro import Schemas
from governance.verify.kafka import KafkaReader
from governance.verify.lake import Lake, Table
from governance.verify.report import Check
from headrace.errors import UnavailableError
from schemas.contracts import ContractSet
from schemas.kpis import Kpi
from schemas.names import table_name

VALUES = "kpi.values"
TABLE = "gold.kpi_values"
EARLIER = "PARTITION BY p ORDER BY o ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING"
UNTIL = "PARTITION BY p ORDER BY o ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW"

Key = tuple[datetime | None, str]
Cut = dict[int, int]


@dataclass
class Published:
    """Newest value of each key of one KPI, and the newest cut."""

    revision: int
    cut: Cut
    values: dict[Key, float | None]


def read_published(kafka: KafkaReader, schemas: Schemas, lake: Lake) -> dict[str, Published]:
    """All of `kpi.values`, folded by revision; what its retention has removed is in its table."""
    found: dict[str, Published] = {}
    newest: dict[tuple[str, Key], int] = {}

    def fold(row: dict[str, Any]) -> None:
        kpi = found.setdefault(row["kpi"], Published(-1, {}, {}))
        if row["revision"] >= kpi.revision:
            kpi.revision = row["revision"]
            kpi.cut = {int(p): int(o) for p, o in next(iter(json.loads(row["cut"]).values()), {}).items()}
        key = (row.get("window_start"), row["group"])
        if row["revision"] >= newest.get((row["kpi"], key), -1):
            newest[row["kpi"], key] = row["revision"]
            kpi.values[key] = row.get("value")

    table = lake.table(TABLE)
    if table is not None and table.columns:
        for row in lake.rows(f"SELECT * FROM {lake.scan(table)}"):
            fold(row)
    for partition in range(kafka.topics().get(VALUES, 0)):
        low, high = kafka.bounds(VALUES, partition)
        for record in kafka.read(VALUES, partition, low, high):
            if record.value is None:
                continue
            fold(schemas.read(record.value)[0])
    return found


def flow_of(kpi: Kpi) -> str:
    """What a KPI's check is called."""
    return f"kpi {kpi.name}"


def check_kpis(
    kpis: Iterable[Kpi],
    kafka: KafkaReader,
    schemas: Schemas,
    lake: Lake,
    contracts: ContractSet,
    *,
    patience: float = 60.0,
) -> list[Check]:
    """One check per KPI whose source exists."""
    topics = kafka.topics()
    published = read_published(kafka, schemas, lake)
    checks = []
    for kpi in kpis:
        if kpi.source not in topics:
            continue
        check = Check(flow_of(kpi), f"values equal a recomputation from {kpi.source}")
        with check.guarded():
            name = _table_of(kpi, contracts)
            found = published.get(kpi.name)
            deadline = time.monotonic() + patience
            while found is None and _counts(lake, name, kpi) and time.monotonic() < deadline:
                time.sleep(1.0)
                lake.refresh()
                found = read_published(kafka, schemas, lake).get(kpi.name)
            _check(check, kpi, found, kafka, lake, name, patience, topics[kpi.source])
        checks.append(check)
    return checks


def _check(
    check: Check,
    kpi: Kpi,
    found: Published | None,
    kafka: KafkaReader,
    lake: Lake,
    name: str,
    patience: float,
    partitions: int,
) -> None:
    if found is None:
        if _counts(lake, name, kpi):
            check.offend(kpi.name, f"nothing is published, though {name} has rows that count")
        return
    table = _reach(lake, name, kpi.source, found.cut, patience)
    expected = recompute(lake, table, kpi, found.cut)
    check.lag = sum(kafka.bounds(kpi.source, p)[1] - found.cut.get(p, 0) for p in range(partitions))
    for key, value in expected.items():
        if key not in found.values:
            check.offend(_name(kpi, key), f"not published; recomputed {value}")
        elif not _same(kpi, value, found.values[key]):
            check.offend(_name(kpi, key), f"published {found.values[key]}, recomputed {value} at {found.cut}")
        check.compared += 1
    for key, value in found.values.items():
        if key not in expected and value not in (None, 0.0):
            check.offend(_name(kpi, key), f"published {value}, recomputed nothing at {found.cut}")


def _table_of(kpi: Kpi, contracts: ContractSet) -> str:
    """The table that holds the records which the KPI counts."""
    contract = contracts.by_topic.get(kpi.source)
    if contract is not None and contract.derived_from and contract.storage:
        return contract.storage.table
    return table_name("bronze", kpi.source)


def _counts(lake: Lake, name: str, kpi: Kpi) -> bool:
    """Whether the table has rows for the KPI to count: those that its filter leaves out are no reason to publish."""
    table = lake.table(name)
    return table is not None and bool(recompute(lake, table, kpi, table.offsets(kpi.source)))


def _name(kpi: Kpi, key: Key) -> str:
    return f"{kpi.name} {key[0].isoformat() if key[0] else 'all time'} {key[1]}"


def _same(kpi: Kpi, expected: float | None, found: float | None) -> bool:
    if expected is None or found is None:
        return expected == found
    slack = float(kpi.resolution) * 1.000001 if kpi.measure == "quantile" and kpi.resolution else 0.0
    return math.isclose(expected, found, rel_tol=1e-9, abs_tol=max(slack, 1e-9))


def _reach(lake: Lake, name: str, topic: str, cut: Cut, patience: float) -> Table:
    """The table, once it holds everything below the cut. Raises `UnavailableError` when it does not get there."""
    deadline = time.monotonic() + patience
    while True:
        table = lake.table(name)
        if table is not None:
            held = table.offsets(topic)
            missing = {p: o for p, o in cut.items() if held.get(p, 0) < o}
            if not missing:
                return table
        if time.monotonic() > deadline:
            raise UnavailableError(f"{name} has not reached the cut {cut}", where=topic, hint="is the sink running?")
        time.sleep(0.5)
        lake.refresh()


def recompute(lake: Lake, table: Table, kpi: Kpi, cut: Cut) -> dict[Key, float | None]:
    """The KPI's values over the table's rows below the cut."""
    if not table.columns:
        return {}
    changes = {"op", "source"} <= table.columns.keys()
    images = _change_images(lake, table, kpi.source, cut) if changes else None
    floating = _is_floating(table.columns["after" if images else kpi.field], kpi.field) if kpi.field else False
    sql = f"WITH {images or _event_images(lake, table, cut)}, {_counted(kpi)} {_measured(kpi, floating=floating)}"
    out: dict[Key, float | None] = {}
    try:
        rows = lake.rows(sql)
        for row in rows:
            group = {name: row.get(f"dim_{i}") for i, name in enumerate(kpi.dimensions)}
            value = row.get("value")
            out[row.get("__starts"), group_text(group)] = None if value is None else float(value)
    except duckdb.Error as e:
        raise UnavailableError(f"DuckDB: {e}", where=f"kpi {kpi.name}") from e
    return out


def group_text(group: Mapping[str, Any]) -> str:
    plain = {k: str(v) if isinstance(v, datetime | Decimal) else v for k, v in group.items()}
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _below(cut: Cut) -> str:
    parts = [f"(_kafka_partition = {p} AND _offset < {o})" for p, o in cut.items()]
    return f"({' OR '.join(parts) or 'false'})"


def _event_images(lake: Lake, table: Table, cut: Cut) -> str:
    """Each row counts once."""
    return f"""image AS (
        SELECT _kafka_partition AS p, _offset AS o, 0 AS seq, 1 AS sign, 0 AS segment, 0 AS segments,
               epoch_us(_timestamp) AS arrived, row_data
        FROM (SELECT t AS row_data, _kafka_partition, _offset, _timestamp FROM {lake.scan(table)} t WHERE {_below(cut)})
    )"""


# A change's position in the source's log, null for a row of a snapshot; the identity of the snapshot that a row is of.
_WAL = (
    """CASE WHEN "transaction".total_order IS NOT NULL
            THEN coalesce(CAST(CAST(source.sequence AS JSON) ->> '$[0]' AS HUGEINT), source.lsn, 0) * 4294967296
                 + "transaction".total_order END""",
    """coalesce(source.lsn, 0)::HUGEINT * 4294967296 + coalesce(source."txId", 0)""",
)
_PLACE = "(CAST(regexp_extract(source.file, '[0-9]+$') AS HUGEINT) * 4294967296 + source.pos)"
_BINLOG = (
    f"""CASE WHEN op <> 'r' THEN {_PLACE} * 8589934592
            + CASE op WHEN 't' THEN 0 WHEN 'd' THEN 2 * source."row" ELSE 2 * source."row" + 1 END END""",
    f"{_PLACE} * 9007199254740992 + source.ts_ms",
)


def _change_images(lake: Lake, table: Table, topic: str, cut: Cut) -> str:
    """A change takes its row before away and adds its row after; repeats and stale snapshot rows do neither, nor does
    what bronze keeps though it is no change of the table: see `_countable`."""
    position, snapshot = _BINLOG if ", pos " in table.columns["source"] else _WAL
    return f"""log AS (
        SELECT _kafka_partition AS p, _offset AS o, epoch_us(_timestamp) AS arrived, op,
               "before" AS old, "after" AS new, {position} AS pos,
               op = 'r' AND coalesce(source.snapshot, '') <> 'incremental' AS read_whole,
               op = 't' OR (op = 'r' AND coalesce(source.snapshot, '') = 'incremental') AS ignored,
               {snapshot} AS snapshot
        FROM {lake.scan(table)} WHERE {_below(cut)} AND {_countable(table, topic)}
    ), seen AS (
        SELECT *, max(pos) OVER ({EARLIER}) AS highest,
               max(CASE WHEN read_whole THEN snapshot END) OVER ({EARLIER}) AS newest
        FROM log
    ), kept AS (
        SELECT *, count(*) FILTER (WHERE read_whole AND (newest IS NULL OR snapshot > newest)) OVER ({UNTIL}) AS segment
        FROM seen
    ), fresh AS (
        SELECT *, max(segment) OVER (PARTITION BY p) AS segments FROM kept
        WHERE NOT ignored AND (pos IS NULL OR highest IS NULL OR pos > highest)
          AND NOT (read_whole AND newest IS NOT NULL AND snapshot < newest)
    ), image AS (
        SELECT p, o, 0 AS seq, -1 AS sign, segment, segments, arrived, old AS row_data
        FROM fresh WHERE op IN ('u', 'd') AND old IS NOT NULL
        UNION ALL
        SELECT p, o, 1 AS seq, 1 AS sign, segment, segments, arrived, new AS row_data
        FROM fresh WHERE op IN ('c', 'u', 'r') AND new IS NOT NULL
    )"""


def _countable(table: Table, topic: str) -> str:
    """A change of the topic's table, of an operation that Debezium has, with its row and its place in the log."""
    source = table.columns["source"]
    has = {name: re.search(rf'(?:\(|, )"?{name}"? ', source) is not None for name in ("schema", "db", "table")}
    own = "true"
    if has["table"] and (has["schema"] or has["db"]):
        schema = "schema" if has["schema"] else "db"
        said = f"""source."{schema}" || '.' || source."table\""""
        # Characters that a topic's name may not have are `_`, two where they are two of Java's.
        wide = f"regexp_replace({said}, '[\\x{{10000}}-\\x{{10FFFF}}]', '__', 'g')"
        own = f"coalesce(ends_with('.{topic}', '.' || regexp_replace({wide}, '[^A-Za-z0-9._-]', '_', 'g')), true)"
    if ", pos " in source:
        place = "source.file IS NOT NULL AND source.pos IS NOT NULL"
    else:
        place = (
            """"transaction".total_order IS NOT NULL AND (regexp_matches(source.sequence, '^\\s*\\[\\s*"[0-9]')"""
            """ OR (regexp_matches(source.sequence, '^\\s*\\[\\s*null') AND source.lsn IS NOT NULL))"""
        )
    row = """CASE WHEN op IN ('c', 'u', 'r') THEN "after" IS NOT NULL ELSE op IN ('d', 't') END"""
    return f"{own} AND {row} AND (op = 'r' OR coalesce({place}, false))"


def _counted(kpi: Kpi) -> str:
    """Images that count, with the window they count in."""
    condition = f"({kpi.filter})" if kpi.filter else "true"
    if kpi.window_us is None:
        return f"""counted AS (
            SELECT * FROM (
                SELECT NULL::TIMESTAMP AS __starts, sign AS __sign, row_data.* FROM image WHERE segment = segments
            ) WHERE {condition}
        )"""
    window, lateness = kpi.window_us, kpi.lateness_us
    return f"""timed AS (
        SELECT *, epoch_us(row_data."{kpi.event_time}") AS happened FROM image
    ), event AS (
        SELECT p, o, min(segment) AS segment, least(arg_max(happened, seq), min(arrived)) AS bounded
        FROM timed WHERE happened IS NOT NULL GROUP BY p, o
    ), watermark AS (
        SELECT p, o, max(bounded) OVER ({EARLIER}) AS high FROM event
    ), begun AS (
        SELECT p, segment, min_by(high, o) AS high FROM event JOIN watermark USING (p, o) GROUP BY p, segment
    ), placed AS (
        SELECT timed.*, watermark.high, CAST(floor(happened / {window}) AS BIGINT) * {window} AS start_us
        FROM timed JOIN watermark USING (p, o) WHERE happened IS NOT NULL
    ), counted AS (
        SELECT * FROM (
            SELECT make_timestamp(start_us) AS __starts, sign AS __sign, row_data.*
            FROM placed LEFT JOIN begun later ON later.p = placed.p AND later.segment = placed.segment + 1
            WHERE (placed.high IS NULL OR start_us + {window} + {lateness} > placed.high)
              AND (placed.segment = segments OR start_us + {window} + {lateness} <= later.high)
        ) WHERE {condition}
    )"""


def _is_floating(column_type: str, field: str) -> bool:
    """Whether a column, or the field of a struct column, is a double or a float, by DuckDB's name of the type."""
    inside = re.search(rf'(?:\(|, )"?{re.escape(field)}"? (\w+)', column_type)
    return (inside[1] if inside else column_type) in ("DOUBLE", "FLOAT")


def _measured(kpi: Kpi, *, floating: bool) -> str:
    dims = "".join(f', "{name}" AS dim_{i}' for i, name in enumerate(kpi.dimensions))
    names = ", ".join(["__starts", *(f'"{name}"' for name in kpi.dimensions)])
    field = f'"{kpi.field}"'
    present = f"FILTER (WHERE {field} IS NOT NULL)" if kpi.field else ""
    # Doubles are added as integers of the KPI's resolution, as declared; decimals are exact as they are.
    unit = 10 ** (kpi.digits or 0)
    total = (
        f"sum(__sign * CAST(floor({field} * {unit} + 0.5) AS HUGEINT)) / {unit}.0"
        if floating
        else f"sum(__sign * {field})"
    )
    value = {
        "count": f"sum(__sign) {present}",
        "sum": total,
        "avg": f"({total}) / sum(__sign) {present}",
        "min": f"min({field})",
        "max": f"max({field})",
        "distinct": f"count(DISTINCT {field})",
        "quantile": f"quantile_disc({field}, {kpi.q})",
    }[kpi.measure]
    return f"SELECT __starts{dims}, {value} AS value FROM counted GROUP BY {names} HAVING sum(__sign) <> 0"
