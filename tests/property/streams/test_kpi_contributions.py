"""Contributions of random change logs in random pieces, against plain Python over the same log or the same table."""

import json
import math
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.kpis import Kpi
from streams.kpi.contributions import Meter, Share
from streams.kpi.events import Events, Progress
from streams.kpi.partials import Partial, value_of

START = datetime(2026, 1, 1, tzinfo=UTC)
ROW = pa.struct(
    [
        ("id", pa.int64()),
        ("country", pa.string()),
        ("amount", pa.decimal128(12, 2)),
        ("weight", pa.float64()),
        ("created_at", pa.timestamp("us", "UTC")),
    ]
)
ENVELOPE = pa.schema(
    [
        ("before", ROW),
        ("after", ROW),
        (
            "source",
            pa.struct(
                [
                    ("snapshot", pa.string()),
                    ("lsn", pa.int64()),
                    ("txId", pa.int64()),
                    ("sequence", pa.string()),
                    ("schema", pa.string()),
                    ("table", pa.string()),
                ]
            ),
        ),
        ("op", pa.string()),
        ("transaction", pa.struct([("total_order", pa.int64())])),
    ]
)


def kpi(measure="sum", field="amount", **more):
    declared = {"name": "k", "title": "K", "source": "p.public.t", "measure": measure, "field": field, **more}
    return Kpi.model_validate(declared)


rows = st.fixed_dictionaries(
    {
        "country": st.sampled_from(["DE", "FR", None]),
        "amount": st.none() | st.decimals(-99999, 99999, places=2),
        "weight": st.floats(-1000, 1000) | st.just(math.nan) | st.none(),
        "created_at": st.none() | st.integers(0, 900).map(lambda s: START + timedelta(seconds=s)),
    }
)


def change(op, before, after, lsn, order, *, snapshot="false", tx=None):
    source = {"snapshot": snapshot, "lsn": lsn, "txId": tx or lsn, "schema": "public", "table": "t"}
    placed = order is not None
    source["sequence"] = json.dumps([str(lsn), "9"]) if placed else None
    return {
        "before": before, "after": after, "source": source, "op": op,
        "transaction": {"total_order": order} if placed else None,
    }  # fmt: skip


@st.composite
def histories(draw, snapshots=True):
    """(log of one partition, the table after it): changes, repeats as after a crash of Connect, whole or broken-off
    snapshots with changes before them that nobody heard of."""
    # One row that is never touched: a partition that a snapshot has no row for keeps what it had.
    table = {0: {"id": 0, "country": "DE", "amount": Decimal("1.00"), "weight": 1.0, "created_at": START}}
    log, recent, lsn = [], [], 100

    def snapshot(size):
        nonlocal lsn
        lsn += 1
        log.extend(change("r", None, row, lsn, None, snapshot="true") for row in list(table.values())[:size])
        recent.clear()

    snapshot(len(table))
    for _ in range(draw(st.integers(0, 14))):
        kind = draw(st.sampled_from(["upsert"] * 4 + ["delete", "repeat"] + ["snapshot"] * snapshots))
        heard = True
        if kind == "snapshot":
            snapshot(draw(st.integers(0, len(table))))
        if kind == "repeat":
            log += recent[-draw(st.integers(1, 5)) :]
            continue
        for _ in range(draw(st.integers(1, 3))):
            lsn += 1
            key = draw(st.integers(1, 4))
            old = table.get(key)
            if kind == "delete" and old:
                event = change("d", table.pop(key), None, lsn, 1)
            else:
                table[key] = {"id": key} | draw(rows)
                event = change("u" if old else "c", old, table[key], lsn, 1)
            if heard := kind != "snapshot":
                log.append(event)
                recent.append(event)
        if not heard:
            snapshot(len(table))
    return log, table


def events(log, start=0, stamps=None):
    stamps = [4_000_000_000_000] * len(log) if stamps is None else stamps
    batch = pa.RecordBatch.from_pylist(log, schema=ENVELOPE)
    # Every third offset: Kafka's offsets have holes.
    return Events(batch, 3 * np.arange(start, start + len(log)), np.array(stamps, np.int64), 3 * (start + len(log)) - 1)


def run(declared, log, data, stamps=None):
    """In random pieces, some of which come again, with the state written down and read back now and then."""
    meter, share, at, published = Meter(declared), Share(), 0, {}
    while at < len(log):
        size = data.draw(st.integers(1, len(log) - at))
        back = data.draw(st.integers(0, at))
        piece = events(log[back : at + size], back, None if stamps is None else stamps[back : at + size])
        made = meter.contribute(share, piece)
        published.update(made.values)
        share.keep(declared, made)
        at += size
        if data.draw(st.booleans()):
            kept = {k: Partial.load(orjson.loads(orjson.dumps(p.dump()))) for k, p in share.values.items()}
            share = Share(Progress.load(orjson.loads(orjson.dumps(share.progress.dump()))), kept)
    return {k: value_of(declared, p) for k, p in published.items() if p.rows}, share


def by_country(table):
    groups = defaultdict(list)
    for row in table.values():
        groups[None, orjson.dumps({"country": row["country"]}).decode()].append(row)
    return groups


@settings(max_examples=150, deadline=None)
@given(histories(), st.data())
def test_sum_and_count_equal_those_of_the_table(made, data):
    log, table = made
    values, share = run(kpi(dimensions=["country"]), log, data)
    assert values == {
        key: sum((r["amount"] for r in rows if r["amount"] is not None), Decimal(0))
        for key, rows in by_country(table).items()
    }
    assert share.progress.next == 3 * len(log) - 1
    values, _ = run(kpi("count", "", dimensions=["country"], filter="amount > 0"), log, data)
    assert values == {
        key: n
        for key, rows in by_country(table).items()
        if (n := sum(r["amount"] is not None and r["amount"] > 0 for r in rows))
    }


@settings(max_examples=60, deadline=None)
@given(histories(), st.data())
def test_doubles_add_up_exactly_at_their_resolution(made, data):
    log, table = made
    values, _ = run(kpi("avg", "weight"), log, data)
    weights = [math.floor(r["weight"] * 1e6 + 0.5) for r in table.values() if r["weight"] is not None and not
               math.isnan(r["weight"])]  # fmt: skip
    assert values == {(None, "{}"): Decimal(sum(weights)).scaleb(-6) / len(weights)}


def plain(declared, log, stamps):
    """Row by row, by the rules as they are written down; no snapshots."""
    watermark, highest, late, found = None, (-1, -1), 0, defaultdict(lambda: [0, Decimal(0)])
    width, lateness = timedelta(seconds=declared.window), timedelta(seconds=declared.lateness)
    for event, stamp in zip(log, stamps, strict=True):
        if event["op"] != "r":
            place = (json.loads(event["source"]["sequence"])[0], event["transaction"]["total_order"])
            place = (int(place[0]), place[1])
            if place <= highest:
                continue
            highest = place
        lost = False
        for image, sign in ((event["before"], -1), (event["after"], 1)):
            if image is None or image["created_at"] is None:
                continue
            start = image["created_at"] - (image["created_at"] - START) % width
            if watermark is not None and start + width + lateness <= watermark:
                lost = True
                continue
            found[start][0] += sign
            found[start][1] += sign * (image["amount"] or 0)
        late += lost
        row = event["after"] if event["after"] and event["after"]["created_at"] else event["before"]
        if row and row["created_at"]:
            seen = min(row["created_at"], datetime.fromtimestamp(stamp / 1000, UTC))
            watermark = seen if watermark is None else max(watermark, seen)
    return {(round(k.timestamp() * 1e6), "{}"): v[1] for k, v in found.items() if v[0]}, watermark, late


@settings(max_examples=200, deadline=None)
@given(histories(snapshots=False), st.sampled_from(["1ms", "1m", "5m"]), st.data())
def test_windows_close_by_the_rows_before_each_row(made, lateness, data):
    log, _ = made
    declared = kpi(window="1m", event_time="created_at", lateness=lateness)
    now = round(START.timestamp() * 1000)
    stamps = data.draw(st.lists(st.integers(now, now + 900_000), min_size=len(log), max_size=len(log)))
    values, share = run(declared, log, data, stamps)
    expected, watermark, late = plain(declared, log, stamps)
    assert values == expected
    assert share.progress.watermark == (None if watermark is None else round(watermark.timestamp() * 1e6))
    assert share.progress.late == late


READINGS = pa.schema(
    [
        ("device_id", pa.string()),
        ("temperature", pa.float64()),
        ("battery", pa.decimal128(30, 3)),
        ("source_offset", pa.int64()),
    ]
)
readings = st.fixed_dictionaries(
    {
        "device_id": st.sampled_from(["a", "b", "c", None]),
        "temperature": st.none() | st.floats(-60, 90),
        "battery": st.none() | st.decimals(-(10**20), 10**20, places=3),
    }
)


@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize("measure", ["quantile", "distinct", "min", "max", "sum"])
@given(st.lists(readings, min_size=1, max_size=30), st.data())
def test_append_only_measures_with_replays(measure, found, data):
    rows = [r | {"source_offset": i} for i, r in enumerate(found)]
    log = []
    for row in rows:
        log.append(row)
        if len(log) > 2 and data.draw(st.integers(0, 9)) == 0:
            log += log[-2:]
    field = {"distinct": "device_id", "quantile": "temperature", "min": "temperature"}.get(measure, "battery")
    more = {"q": 0.95, "resolution": "0.1"} if measure == "quantile" else {}
    declared, share, at = kpi(measure, field, **more), Share(), 0
    meter = Meter(declared)
    parts = Partial()
    while at < len(log):
        size = data.draw(st.integers(1, len(log) - at))
        piece = log[at : at + size]
        batch = pa.RecordBatch.from_pylist(piece, schema=READINGS)
        made = meter.contribute(share, Events(batch, np.arange(at, at + size), np.zeros(size, np.int64), at + size))
        share.keep(declared, made)
        at += size
    total = share.values[None, "{}"]
    present = [r[field] for r in rows if r[field] is not None]
    assert (total.rows, total.count) == (len(rows), len(present))
    expected = {
        "distinct": lambda: len(set(present)),
        "min": lambda: min(present, default=None),
        "max": lambda: max(present, default=None),
        "sum": lambda: sum(present, Decimal(0)),
        "quantile": lambda: nearest_rank([math.floor(v / 0.1 + 0.5) for v in present], 0.95, Decimal("0.1")),
    }[measure]()
    got = value_of(declared, parts.plus(total))
    assert (None if got is None else float(got) if measure == "min" else got) == expected


def nearest_rank(buckets, q, resolution):
    if not buckets:
        return None
    return sorted(buckets)[max(1, math.ceil(Decimal(str(q)) * len(buckets))) - 1] * resolution
