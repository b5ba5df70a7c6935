import copy

import pytest

from schemas.compatibility import breaking_changes

DECIMAL = {"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2}
BASE = {
    "type": "record",
    "name": "Sale",
    "namespace": "shop",
    "topic": "sales",
    "key": ["id"],
    "event_time": "at",
    "storage": {"table": "silver.sales", "mode": "append"},
    "fields": [
        {"name": "id", "type": "int"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "price", "type": DECIMAL, "unit": "EUR"},
        {"name": "state", "type": {"type": "enum", "name": "State", "symbols": ["new", "paid"]}},
        {"name": "note", "type": ["null", "string"], "default": None},
        {
            "name": "lines",
            "type": {
                "type": "array",
                "items": {"type": "record", "name": "Line", "fields": [{"name": "n", "type": "int"}]},
            },
        },
    ],
}


def edited(edit):
    schema = copy.deepcopy(BASE)
    edit({f["name"]: f for f in schema["fields"]}, schema)
    return schema


@pytest.mark.parametrize(
    "edit",
    [
        lambda f, s: None,
        lambda f, s: f["id"].update(type="long"),
        lambda f, s: f["id"].update(type=["null", "int"]),
        lambda f, s: f["price"].update(type=DECIMAL | {"precision": 12}),
        lambda f, s: f["state"]["type"].update(symbols=["paid", "new", "void"]),
        lambda f, s: s["fields"].remove(f["note"]),
        lambda f, s: s["fields"].append({"name": "more", "type": "string", "default": ""}),
        lambda f, s: f["id"].update(name="sale_id", aliases=["id"]),
        lambda f, s: f["lines"]["type"]["items"]["fields"].append(
            {"name": "m", "type": ["null", "int"], "default": None}
        ),
        lambda f, s: s["fields"].reverse(),
        lambda f, s: s.update(name="Sales", aliases=["Sale"]),
        lambda f, s: s.update(doc="new words", freshness="1s"),
    ],
)
def test_changes_that_break_nothing(edit):
    assert breaking_changes(BASE, edited(edit)) == []


@pytest.mark.parametrize(
    ("edit", "at", "said"),
    [
        (lambda f, s: s.update(key=["at"]), "key", "was ['id'], is ['at']"),
        (lambda f, s: s.pop("event_time"), "event_time", "was at, is None"),
        (lambda f, s: s.update(topic="sales2"), "topic", "was sales"),
        (lambda f, s: s["storage"].update(table="gold.sales"), "storage.table", "was silver.sales"),
        (lambda f, s: s.pop("storage"), "storage.mode", "was append"),
        (lambda f, s: s.update(name="Sales"), "", "was named Sale"),
        (lambda f, s: s["fields"].remove(f["id"]), "id", "removed, and had no default"),
        (lambda f, s: f["id"].update(name="sale_id"), "id", 'give sale_id "aliases": ["id"]'),
        (lambda f, s: f["id"].update(name="sale_id"), "sale_id", "added without a default"),
        (lambda f, s: f["id"].update(type="string"), "id", "was int, is string"),
        (lambda f, s: f["id"].update(type="double"), "id", "was int, is double"),
        (lambda f, s: f["at"].update(type="long"), "at", "logicalType was timestamp-micros"),
        (lambda f, s: f["at"]["type"].update(logicalType="timestamp-millis"), "at", "is timestamp-millis"),
        (lambda f, s: f["price"].update(type=DECIMAL | {"scale": 3}), "price", "scale was 2"),
        (lambda f, s: f["price"].update(type=DECIMAL | {"precision": 9}), "price", "precision was 10"),
        (lambda f, s: f["price"].update(unit="USD"), "price", "unit was EUR"),
        (lambda f, s: f["state"]["type"].update(symbols=["new"]), "state", "symbol paid is gone"),
        (lambda f, s: f["state"]["type"].update(name="Status"), "state", "was named State"),
        (lambda f, s: f["note"].update(type="string", default=""), "note", "was nullable"),
        (lambda f, s: f["note"].update(type=["null", "string", "int"]), "note", "was one type, is several"),
        (lambda f, s: f["lines"]["type"]["items"]["fields"][0].update(type="string"), "lines[].n", "was int"),
    ],
)
def test_changes_that_break_something(edit, at, said):
    found = breaking_changes(BASE, edited(edit))
    assert [b for b in found if b.at == at and said in f"{b.what} {b.hint}"], found
