import json
from decimal import Decimal

from schemas.check import check_contract
from schemas.contracts import parse_contract
from schemas.draft import contract_text, draft_contract, file_name

ROW = {
    "type": "record",
    "name": "Value",
    "connect.name": "shop.public.order_lines.Value",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "state", "type": "string"},
        {"name": "note", "type": ["null", "string"], "default": None},
        {"name": "customer_name", "type": ["null", "string"], "default": None},
        {
            "name": "price",
            "type": {"type": "bytes", "logicalType": "decimal", "precision": 8, "scale": 2, "connect.version": 1},
        },
        {"name": "updated_at", "type": {"type": "string", "connect.name": "io.debezium.time.ZonedTimestamp"}},
    ],
}
ENVELOPE = {
    "type": "record",
    "name": "Envelope",
    "fields": [
        {"name": "before", "type": ["null", ROW], "default": None},
        {"name": "after", "type": ["null", "Value"], "default": None},
        {"name": "source", "type": {"type": "record", "name": "Source", "fields": [{"name": "lsn", "type": "long"}]}},
        {"name": "op", "type": "string"},
    ],
}
KEY = {"type": "record", "name": "Key", "fields": [{"name": "id", "type": "long"}]}


def row(n):
    return {
        "id": n,
        "state": "new" if n % 2 else "paid",
        "note": None,
        "customer_name": "Ann",
        "price": Decimal(n),
        "updated_at": "2026-01-01T00:00:00Z",
    }


def drafted(**changes):
    records = [{"before": None, "after": row(n), "op": "c"} for n in range(30)] + [
        {"before": row(1), "after": None, "op": "d"}
    ]
    return draft_contract("shop.public.order_lines", "sales", ENVELOPE, KEY, records) | changes


def test_a_draft_of_change_events_describes_the_row(tmp_path):
    schema = drafted()
    fields = {f["name"]: f for f in schema["fields"]}
    assert (schema["name"], schema["envelope"], schema["key"], schema["event_time"]) == (
        "OrderLines",
        "debezium",
        ["id"],
        "updated_at",
    )
    assert schema["storage"] == {"table": "silver.shop_public_order_lines", "mode": "current"}
    assert fields["updated_at"]["type"] == {"type": "long", "logicalType": "timestamp-micros"}
    assert fields["note"] == {"name": "note", "type": ["null", "string"], "default": None}
    assert fields["state"]["suggestions"] == ["one_of [new, paid]"]
    assert fields["price"]["suggestions"] == ["between 0 29"]
    assert fields["customer_name"]["suggestions"] == ["pii name", "subject id"]
    assert "suggestions" not in fields["id"]


def test_a_draft_needs_a_person_and_nothing_else(tmp_path):
    contract, problems = parse_contract(drafted(), tmp_path / "c.avsc")
    problems += check_contract(contract)
    assert [p.at for p in problems if p.severity == "error"] == ["doc"]
    assert {p.at for p in problems if p.severity == "warning"} == {
        f"{n}.suggestions" for n in ("state", "price", "customer_name")
    }


def test_personal_data_does_not_leak_into_the_file():
    assert "Ann" not in contract_text(drafted())


def test_a_plain_topic_without_key_or_records():
    schema = draft_contract(
        "telemetry.2nd", "me", {"type": "record", "name": "R", "fields": [{"name": "x", "type": "double"}]}
    )
    assert (schema["name"], schema["key"], schema["freshness"]) == ("Record2nd", [], "5s")
    assert not {"event_time", "envelope", "storage"} & schema.keys()


def test_the_file_is_the_contract_one_field_a_line():
    schema = drafted()
    text = contract_text(schema)
    assert json.loads(text) == schema
    assert '\n  {"name": "id", "type": "long"},\n' in text
    assert file_name("OrderLines") == "order_lines.avsc"
