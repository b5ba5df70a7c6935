from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest

from headrace.errors import ContractError
from sinks.reverse.declaration import Sync, load_sync, load_syncs
from sinks.reverse.fold import Event, Table, key_text
from sinks.reverse.pace import Backoff, TokenBucket
from sinks.reverse.service import parse_request, request
from sinks.reverse.sources import Watermark
from sinks.reverse.state import (
    OFFSETS,
    PLANNED,
    ROW,
    Planned,
    Settled,
    State,
    planned_to_json,
    row_from_json,
    row_to_json,
    settled_to_json,
)
from sinks.reverse.targets.http import retry_after
from sinks.reverse.template import fill, fill_path, fill_text, placeholders

ROOT = Path(__file__).parents[3]
CRM = ROOT / "sinks" / "syncs" / "customer_360_crm.toml"


def test_the_demo_syncs_load() -> None:
    syncs = load_syncs([ROOT])
    assert set(syncs) == {"customer_360_crm", "customer_360_db"}
    crm = syncs["customer_360_crm"]
    assert crm.columns == ("customer_id", "name", "email", "country", "segment", "spend", "orders", "alarms")
    assert crm.timeout == 5


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (('target = "crm"\n', ""), "target"),
        (('type = "http"', 'type = "carrier pigeon"'), "type"),
        (('type = "http"', 'type = "sql"'), "sql"),
        (('key = ["customer_id"]', 'key = ["id"]'), "sources.0.key"),
        (('segment = "segment" }', 'spend = "segment" }'), "sources.1"),
        (('{customer_id}"', '{customer}"'), "http.path"),
        (('"{alarms}"', '"{alarm}"'), "http.body"),
        (('timeout = "5s"', 'timeout = "soon"'), "timeout"),
        (('path = "/customers/{customer_id}"', 'path = "/customers/{name}"'), "http.delete_path"),
        (("defaults = { spend", "defaults = { spent"), "defaults.spent"),
        (('mode = "mirror"', 'mode = "events"'), "sources"),
        (("rate = 50", "rate = 0"), "rate"),
        (("rate = 50", "rate ="), ""),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(change: tuple[str, str], place: str, tmp_path: Path) -> None:
    text = CRM.read_text()
    assert change[0] in text
    path = tmp_path / "one.toml"
    path.write_text(text.replace(*change, 1))
    with pytest.raises(ContractError) as e:
        load_sync(path)
    assert e.value.where.startswith(str(path))
    assert place in e.value.where


def test_templates_put_values_in_their_place() -> None:
    row = {"a": 1.5, "b": None, "c": "x/y ?é", "d": [1]}
    body = {"n": "{a}", "t": "a={a} b={b}{{}}", "l": ["{d}", 7], "c": "{c}"}
    assert fill(body, row) == {"n": 1.5, "t": "a=1.5 b={}", "l": [[1], 7], "c": "x/y ?é"}
    assert fill_path("/p/{c}/{a}", row) == "/p/x%2Fy%20%3F%C3%A9/1.5"
    assert fill_text("{d} {b}", row) == "[1] "
    assert placeholders(body) == {"a", "b", "c", "d"}
    for value in ("..", ".", "", None):
        with pytest.raises(ValueError, match="cannot be part of a path"):
            fill_path("/{a}", {"a": value})


def test_a_bucket_lets_a_rate_through() -> None:
    now = [0.0]
    bucket = TokenBucket(10, lambda: now[0])
    assert bucket.take(10) == 0
    assert bucket.take(5) == pytest.approx(0.5)
    now[0] = 0.5
    assert bucket.take(20) == pytest.approx(2.0), "a batch larger than the bucket passes, later"
    now[0] = 100
    assert bucket.take(10) == 0
    assert bucket.take(1) > 0, "what was not used for long is not kept"


def test_waiting_grows_and_obeys_the_target() -> None:
    backoff = Backoff(1, 8, Random(1))
    waits = [backoff.next() for _ in range(6)]
    assert all(0.5 * base <= wait <= base for wait, base in zip(waits, (1, 2, 4, 8, 8, 8), strict=True))
    assert backoff.next(100) == 100
    backoff.reset()
    assert backoff.next() <= 1


def test_retry_after_in_its_two_forms() -> None:
    assert retry_after("1.5") == 1.5
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("Wed, 21 Oct 2115 07:28:00 GMT") == 300
    assert [retry_after(text) for text in ("", "soon", "nan", "-3")] == [0, 0, 0, 0]


def sync(**changes: Any) -> Sync:
    return Sync.model_validate(load_sync(CRM).model_dump() | changes)


def test_kpis_pivot_by_revision_and_wait_for_the_customer() -> None:
    table = Table(sync())
    kpi = lambda name, value, revision, at: Event(  # noqa: E731
        1, ("7",), {name: value}, f"kpi.values-0-{at}", ranks={name: (0, revision)}
    )
    table.apply([kpi("spend", 10.0, 5, 1), kpi("spend", 9.0, 4, 2), kpi("orders", 2.0, 6, 3)])
    (identity,) = table.rows
    assert table.due(identity, 1) is None, "nobody knows the customer yet"
    table.apply([Event(0, (7,), {"name": "Ada", "email": None, "country": "FR", "segment": "x"}, "c-0-1")])
    assert list(table.rows) == [identity], "7 and '7' are the same customer"
    change = table.due(identity, 1)
    assert change is not None
    assert change.row | {"customer_id": "7"} == {
        "customer_id": "7",
        "name": "Ada",
        "email": None,
        "country": "FR",
        "segment": "x",
        "spend": 10.0,
        "orders": 2.0,
        "alarms": 0,
    }


def test_one_idempotency_key_is_one_content() -> None:
    """The same last record and version, but another row: its other source was read further this time."""
    ids = set()
    for name in ("Ada", "Bo"):
        table = Table(sync())
        table.apply(
            [
                Event(0, (7,), {"name": name, "email": None, "country": "FR", "segment": None}, "c-0-1"),
                Event(1, (7,), {"spend": 1.0}, "kpi.values-0-9", ranks={"spend": (0, 1)}),
            ]
        )
        change = table.due(key_text((7,)), 1)
        assert change is not None
        ids.add(change.id)
    assert len(ids) == 2


def test_a_value_that_was_not_read_stays() -> None:
    table = Table(sync())
    first = {"name": "Ada", "email": "long", "country": "FR", "segment": None}
    table.apply([Event(0, (7,), first, "c-0-1")])
    table.apply([Event(0, (7,), first | {"name": "Bo", "email": "placeholder"}, "c-0-2", kept=("email",))])
    assert table.rows[key_text((7,))].parts[0] == first | {"name": "Bo"}


def test_state_survives_its_log() -> None:
    table = Table(sync())
    table.apply([Event(1, (7,), {"spend": 1.0}, "kpi.values-0-9", 123, ranks={"spend": (0, 1)})])
    identity, row = next(iter(table.rows.items()))
    settled = Settled({("a-b.c", 3): Watermark(9, lanes={"": 4})}, "f", ["id"], "c", {"a": "1"}, 5, 6, 7)
    table.apply([Event(0, (7,), {"name": "A", "email": None, "country": None, "segment": None}, "c-0-1")])
    change = table.due(identity, 8)
    assert change is not None
    planned = Planned({("a", 0): 4}, 8, [change])
    assert row_from_json(row_to_json(row)) == row
    state = State()
    for key, value in ((ROW + identity, row_to_json(row)), (OFFSETS, settled_to_json(settled))):
        state.take(key, orjson.dumps(value))
    state.take(PLANNED, orjson.dumps(planned_to_json(planned)))
    assert state.rows == {identity: row}
    assert state.settled == settled
    assert state.planned == planned
    state.take(ROW + identity, None)
    assert state.rows == {}


def test_requests_for_replays() -> None:
    assert parse_request(request(None)) is None
    assert parse_request(request('["7"]')) == '["7"]'
    assert [parse_request(bad) for bad in (None, b"", b"7", b"{}", b"[]")] == [""] * 5
