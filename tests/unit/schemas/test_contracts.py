import json
from pathlib import Path

import pytest

from headrace.errors import ContractError
from schemas.check import PLACEHOLDER, check_folders
from schemas.contracts import PartitionField, Threshold, load_contract, load_contracts
from schemas.durations import parse_duration
from schemas.names import subject, table_name
from schemas.release import released_path, write_released

REPOSITORY = Path(__file__).parents[3]
MICROS = {"type": "long", "logicalType": "timestamp-micros"}


def good():
    return {
        "type": "record",
        "name": "Sale",
        "namespace": "shop",
        "doc": "A sale.",
        "owner": "sales",
        "topic": "clean.sales",
        "key": ["id"],
        "event_time": "at",
        "freshness": "5s",
        "retention": "90d",
        "derived_from": ["shop.public.sales"],
        "thresholds": {"quarantined": {"alert": "1%", "stop": "10%"}},
        "storage": {"table": "silver.sales", "partition": ["day(at)", "bucket(16, id)"], "mode": "append"},
        "rules": ["net <= gross"],
        "fields": [
            {"name": "id", "type": "long"},
            {"name": "at", "type": MICROS, "rules": ["not_in_future 5m"]},
            {"name": "net", "type": "double", "unit": "EUR"},
            {"name": "gross", "type": ["null", "double"], "default": None},
            {"name": "buyer", "type": ["null", "string"], "default": None, "pii": "name", "subject": "id"},
            {"name": "source_offset", "type": "long"},
        ],
    }


def field(schema, name):
    return next(f for f in schema["fields"] if f["name"] == name)


@pytest.fixture
def content(tmp_path):
    """Writes contracts into a content folder and gives the folder."""
    (tmp_path / "schemas" / "contracts").mkdir(parents=True)

    def write(*schemas):
        for n, schema in enumerate(schemas):
            (tmp_path / "schemas" / "contracts" / f"c{n}.avsc").write_text(json.dumps(schema))
        return tmp_path

    return write


def problems(folder):
    return [p for p in check_folders([folder]).problems if str(folder) in p.file]


def test_names_follow_from_the_topic():
    assert table_name("bronze", "shop.public.order-lines") == "bronze.shop_public_order_lines"
    assert subject("clean.orders", "value") == "clean.orders-value"


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("5s", 5), ("1.5 m", 90), ("2h", 7200), ("90d", 7776000), ("1w", 604800)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["5", "0s", "-1s", "5 minutes", "", None, 5])
def test_what_is_no_duration(text):
    with pytest.raises(ContractError, match="not a duration"):
        parse_duration(text)


def test_shipped_contracts_are_without_problems():
    report = check_folders([REPOSITORY])
    assert report.problems == ()
    assert all(released_path(c).is_file() for c in report.contracts if not c.is_builtin)
    assert {"KpiValue", "Quarantined", "Reading", "Order"} <= {c.name for c in report.contracts}


def test_a_contract_says_all_that_others_need(content):
    sale = load_contracts([content(good())]).by_topic["clean.sales"]
    assert (sale.name, sale.key, sale.event_time, sale.freshness, sale.is_cdc) == ("Sale", ("id",), "at", 5, False)
    assert sale.storage.partition == (PartitionField("at", "day"), PartitionField("id", "bucket", 16))
    assert sale.thresholds == {"quarantined": Threshold(0.01, 0.1)}
    buyer = sale.find("buyer")
    assert (buyer.type, buyer.nullable, buyer.pii, buyer.subject) == ("string", True, "name", "id")
    assert sale.find("at").logical == "timestamp-micros"
    assert sale.avro == good()


def test_built_in_contracts_are_always_there_and_folders_are_read_once(content):
    folder = content(good())
    known = load_contracts([folder, folder / "."])
    assert known.by_topic["kpi.values"].storage.mode == "upsert"
    assert len(list(known)) == 3


def test_mode_current_means_change_events(content):
    schema = good() | {"storage": {"table": "silver.sales", "mode": "current"}, "derived_from": []}
    assert load_contracts([content(schema)]).by_name["Sale"].is_cdc


def test_nested_and_repeated_types_are_resolved(content):
    schema = good()
    money = {"type": "record", "name": "Money", "fields": [{"name": "cents", "type": "long", "rules": ["min 0"]}]}
    schema["fields"] += [{"name": "price", "type": money}, {"name": "tax", "type": ["null", "Money"], "default": None}]
    folder = content(schema)
    assert problems(folder) == []
    assert load_contracts([folder]).by_name["Sale"].find("tax.cents").rules == ("min 0",)


def test_two_files_cannot_claim_one_topic(content):
    with pytest.raises(ContractError, match=r"topic clean\.sales is already that of"):
        load_contracts([content(good(), good() | {"name": "Other"})])


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"type": "string"}', '{"type": "record", "name": "A", "fields": [{"name": "x", "type": "foo"}]}'],
)
def test_what_is_no_contract_is_refused(tmp_path, text):
    path = tmp_path / "c.avsc"
    path.write_text(text)
    with pytest.raises(ContractError) as e:
        load_contract(path)
    assert str(path) in e.value.where


def change(**attributes):
    return lambda s: s.update(attributes)


def change_field(name, **attributes):
    return lambda s: field(s, name).update(attributes)


def add(**attributes):
    return lambda s: s["fields"].append(attributes)


@pytest.mark.parametrize(
    ("edit", "at", "said"),
    [
        (change(name="A-b"), "name", "not a name"),
        (change(topic="a b"), "topic", "not a topic name"),
        (change(owner=""), "owner", "must be a text"),
        (change(owner=PLACEHOLDER), "owner", "still to be filled in"),
        (change(freshnes="5s"), "freshnes", "did you mean freshness"),
        (change(freshness="5"), "freshness", "not a duration"),
        (change(retention="long"), "retention", "not a duration"),
        (change(thresholds={"quarantined": "x"}), "thresholds.quarantined.alert", "not a percentage"),
        (change(thresholds={"lost": "1%"}), "thresholds.lost", "no such measure"),
        (change(key=["idd"]), "key", "did you mean id"),
        (change(key=["net"]), "key", "net is double"),
        (change(key=["id", "id"]), "key", "twice"),
        (change(key="id"), "key", "list of texts"),
        (change(event_time="att"), "event_time", "no field att"),
        (change(event_time="id"), "event_time", "timestamp-micros"),
        (change(rules=["net <= grosss"]), "rules: net <= grosss: position 8", "no column grosss"),
        (change(envelope="maxwell"), "envelope", "no envelope"),
        (change(storage={"table": "sales"}), "storage.table", "silver or gold.name"),
        (change(storage={"table": "bronze.sales"}), "storage.table", "silver or gold.name"),
        (change(storage={"table": "silver.s", "mod": "append"}), "storage.mod", "did you mean mode"),
        (change(storage={"table": "silver.s", "mode": "replace"}), "storage.mode", "not a mode"),
        (change(storage={"table": "silver.s", "mode": "upsert"}, key=[]), "storage.mode", "without a key"),
        (change(storage={"table": "silver.s", "partition": ["week(at)"]}), "storage.partition", "does not parse"),
        (change(storage={"table": "silver.s", "partition": ["day(id)"]}), "storage.partition", "which is long"),
        (change(storage={"table": "silver.s", "partition": ["day(when)"]}), "storage.partition", "no field when"),
        (change(storage={"table": "silver.s", "partition": ["buyer"]}), "storage.partition", "personal data"),
        (change(storage={"table": "silver.s", "partition": ["bucket(4, buyer)"]}), "storage.partition", "personal"),
        (change(storage={"table": "silver.s", "sort": ["when"]}), "storage.sort", "no field when"),
        (change(storage={"table": "silver.s", "sort": ["net"]}), "storage.sort", "which is double"),
        (change(storage={"table": "silver.s", "sort": ["id", "id"]}), "storage.sort", "twice"),
        (change(storage={"table": "silver.s", "sort": "id"}), "storage.sort", "list of texts"),
        (change(storage={"table": "silver.s", "sort": ["in.x"]}), "storage.sort", "sort takes top-level fields"),
        (change(storage={"partition": ["day(at)"]}), "storage.table", "missing"),
        (change(storage={"table": "silver.s"}, derived_from=[]), "storage.table", "derived_from"),
        (change(storage={"mode": "upsert"}, derived_from=[]), "storage.mode", "lands in its bronze table"),
        (change(derived_from=["a", "b"]), "fields.source_topic", "needs source_topic"),
        (change(derived_from=["clean.sales"]), "derived_from", "its own topic"),
        (change(derived_from=["Sale"]), "derived_from", "write clean.sales"),
        (lambda s: s["fields"].remove(field(s, "source_offset")), "fields.source_offset", "needs source_offset"),
        (change_field("source_offset", type=["null", "long"]), "fields.source_offset", "not nullable"),
        (change_field("id", rule=["min 0"]), "id.rule", "did you mean rules"),
        (change_field("id", rules=["minn 0"]), "id: minn 0", "did you mean min"),
        (change_field("id", rules=["pattern a"]), "id: pattern a", "needs a text"),
        (change_field("buyer", unit="EUR"), "buyer.unit", "only numbers"),
        (change_field("at", unit="s"), "at.unit", "only numbers"),
        (change_field("buyer", subject="idd"), "buyer.subject", "did you mean id"),
        (change_field("gross", default=1.5), "gross.default", "is not null"),
        (change_field("net", default="x"), "", "Default value"),
        (add(name="f", type="float", default=1e39), "f.default", "1e+39 is not float"),
        (add(name="tags", type={"type": "array", "items": "long"}, default=["x"]), "tags.default[]", "'x' is not long"),
        (
            add(name="d", type={"type": "int", "logicalType": "date"}, default=2**31 - 1),
            "d.default",
            "no value of its type: out of range",
        ),
        (
            change_field("at", type={"type": "long", "logicalTyp": "timestamp-micros"}),
            "at.type.logicalTyp",
            "logicalType",
        ),
        (
            change_field("at", type={"type": "long", "logicalType": "timestamp"}),
            "at.type.logicalType",
            "no logical type",
        ),
        (add(name="_offset", type="long"), "_offset", "Headrace's columns"),
        (add(name="ID", type="long"), "ID", "by case alone"),
        (add(name="a-b", type="long"), "a-b", "not a name"),
        (add(name="id", type="long"), "", "twice"),
        (add(name="self", type=["null", "Sale"], default=None), "self", "contains itself"),
    ],
)
def test_each_mistake_is_named_with_its_place(content, edit, at, said):
    schema = good()
    edit(schema)
    found = problems(content(schema))
    assert [p for p in found if p.at == at and said in f"{p.what} {p.hint}" and p.severity == "error"], found
    assert len({p.at for p in found if p.severity == "error"}) <= 4


def test_a_source_says_how_its_bronze_table_is_partitioned(content):
    folder = content(good() | {"storage": {"partition": ["day(at)"], "sort": ["id", "at"]}, "derived_from": []})
    assert problems(folder) == []
    assert load_contracts([folder]).by_name["Sale"].storage.partition == (PartitionField("at", "day"),)
    assert load_contracts([folder]).by_name["Sale"].storage.sort == ("id", "at")


def test_a_sort_by_what_is_inside_of_a_field_is_refused_wherever_the_contract_is_read(content):
    folder = content(good() | {"storage": {"table": "silver.s", "sort": ["inner.x"]}})
    assert [p.what for p in problems(folder)] == ["inner.x is inside of another field: sort takes top-level fields"]
    with pytest.raises(ContractError, match="sort takes top-level fields"):
        load_contracts([folder])


def test_all_mistakes_are_reported_at_once(content):
    schema = good() | {"key": ["x"], "freshness": "soon", "event_time": "y"}
    assert {"key", "freshness", "event_time"} <= {p.at for p in problems(content(schema))}


def test_contracts_are_checked_against_each_other(content):
    other = good() | {"name": "Other", "topic": "other"}
    found = problems(content(good(), other))
    assert [(p.at, Path(p.file).name) for p in found] == [("storage.table", "c1.avsc")]


def test_unfinished_parts_are_warnings(content):
    schema = good()
    del field(schema, "buyer")["subject"]
    field(schema, "net")["suggestions"] = ["min 0"]
    del schema["doc"]
    found = problems(content(schema))
    assert {(p.at, p.severity) for p in found} == {
        ("doc", "warning"),
        ("buyer.pii", "warning"),
        ("net.suggestions", "warning"),
    }


def test_a_change_is_held_to_the_released_version(content):
    folder = content(good())
    contract = load_contracts([folder]).by_name["Sale"]
    assert write_released(contract)
    assert not write_released(contract)
    assert problems(folder) == []
    changed = good() | {"key": ["at"]}
    field(changed, "id")["type"] = "string"
    content(changed)
    assert {p.at for p in problems(folder)} == {"key", "id"}
    assert all("breaks the released version" in p.what for p in problems(folder))


def test_a_released_contract_does_not_vanish_in_silence(content):
    folder = content(good())
    contract = load_contracts([folder]).by_name["Sale"]
    write_released(contract)
    contract.path.unlink()
    assert [(p.file, p.what) for p in problems(folder)] == [
        (str(released_path(contract)), "is the released version of no contract")
    ]
