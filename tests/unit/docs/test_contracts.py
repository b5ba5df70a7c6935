import json
import re

import pytest

from schemas import check
from schemas.compatibility import breaking_changes
from schemas.contracts import MODES, load_contract
from schemas.rules import _BUILDERS, compile_rules
from tests.unit.docs.pages import DOCS, first_cells, section

PAGE = DOCS / "contracts.md"
MICROS = {"type": "long", "logicalType": "timestamp-micros"}
TYPES = {"numbers": "double", "times": MICROS, "texts": "string", "all": "string", "`float`": "float"}


def rows(title):
    """Cells of the first table of a section, less its head."""
    text = section(PAGE, title)
    table = re.search(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table[0].splitlines()[2:]]


def of_avro(title):
    """Names in the sentence that lists what is Avro's own."""
    sentence = re.search(r"Of Avro: (.*?)\. Headrace's own:", section(PAGE, title), re.DOTALL)
    return {name for name in re.findall(r"`([^`]+)`", sentence[1]) if name != "record"}


def test_attributes_are_those_that_check_knows():
    title = "Attributes of the record"
    own = {row[0].strip("`") for row in rows(title)}
    assert own | of_avro(title) == set(check._CONTRACT_ATTRIBUTES)
    title = "Attributes of a field"
    own = {row[0].strip("`") for row in rows(title)}
    assert own | of_avro(title) == set(check._FIELD_ATTRIBUTES)
    sentence = re.search(r"Of a type: (.*?)\. Names", section(PAGE, title), re.DOTALL)
    assert set(re.findall(r"`([^`]+)`", sentence[1])) == set(check._TYPE_ATTRIBUTES)
    assert set(check._LOGICAL_TYPES) <= set(first_cells(section(PAGE, title)))
    assert {row[0].strip("`") for row in rows("Storage")} == {"table", "partition", "mode", "history", "sort"}
    assert set(MODES) <= set(re.findall(r"`(\w+)`", rows("Storage")[2][1]))


def test_rules_are_those_that_the_code_knows():
    assert {row[0].strip("`") for row in rows("Rules")} == set(_BUILDERS)


@pytest.mark.parametrize("row", rows("Rules"), ids=lambda row: row[0])
def test_examples_of_rules_compile_for_the_types_named(row, tmp_path):
    name, kinds, example = row[0].strip("`"), row[1], row[2].strip("`").replace("\\|", "|")
    assert example.split()[0] == name
    timed = re.search(r"\d{4}-\d\d-\d\d", example)
    fitting = ["times"] if timed or "timestamp" in kinds else kinds.split(", ")[:1]
    for kind in fitting:
        field = {"name": "v", "type": TYPES[kind], "rules": [example]}
        path = tmp_path / "c.avsc"
        path.write_text(
            json.dumps({"type": "record", "name": "C", "owner": "me", "topic": "c", "fields": [field]}),
        )
        assert any(rule.name == f"v: {example}" for rule in compile_rules(load_contract(path)))


def test_the_example_is_sound(tmp_path):
    folder = tmp_path / "schemas" / "contracts"
    folder.mkdir(parents=True)
    blocks = re.findall(r"^```json\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for number, block in enumerate(blocks):
        (folder / f"c{number}.avsc").write_text(block)
    report = check.check_folders([tmp_path])
    assert blocks
    assert report.problems == ()


def released(**more):
    fields = [
        {"name": "id", "type": "long"},
        {"name": "n", "type": "int", "unit": "m"},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["a", "b"]}},
        {"name": "note", "type": ["null", "string"], "default": None},
    ]
    return {"type": "record", "name": "R", "owner": "me", "topic": "r", "key": ["id"], "fields": fields} | more


def changed(index, **field):
    fields = [dict(f) for f in released()["fields"]]
    fields[index] |= field
    return released(fields=fields)


@pytest.mark.parametrize(
    ("change", "current", "breaks"),
    [
        (
            "a new field with a default",
            released(fields=[*released()["fields"], {"name": "x", "type": "int", "default": 0}]),
            0,
        ),
        ("a new field without a default", released(fields=[*released()["fields"], {"name": "x", "type": "int"}]), 1),
        ("a field removed that had a default", released(fields=released()["fields"][:3]), 0),
        ("a field removed that had none", released(fields=released()["fields"][1:]), 1),
        ("`int` to `long`, `float` to `double`, more digits of a decimal", changed(1, type="long"), 0),
        ("any other change of type, logical type or scale", changed(1, type="string"), 1),
        ("nullable to not nullable", changed(3, type="string", default=""), 1),
        ("not nullable to nullable", changed(0, type=["null", "long"], default=None), 0),
        (
            "a new symbol of an enum, a new branch of a union of several",
            changed(2, type={"type": "enum", "name": "Kind", "symbols": ["a", "b", "c"]}),
            0,
        ),
        (
            "a symbol or branch removed",
            changed(2, type={"type": "enum", "name": "Kind", "symbols": ["a"]}),
            1,
        ),
        ("a field renamed with `aliases`", changed(1, name="m", aliases=["n"]), 0),
        ("another `unit` of a field that had one", changed(1, unit="km"), 1),
        ("another `topic`, `key`, `event_time` or `envelope`", released(topic="s"), 1),
        (
            "another `storage.table` or `storage.mode` of a contract that had one",
            released(storage={"table": "silver.s"}),
            1,
        ),
        ("rules, `doc`, `owner`, `freshness`", released(owner="you", freshness="1s"), 0),
    ],
)
def test_compatibility_is_as_the_page_says(change, current, breaks):
    said = {row[0]: row[1] for row in rows("Released versions")}
    assert said[change].startswith("breaks" if breaks else "allowed")
    before = released(storage={"table": "silver.r"}) if "storage" in change else released()
    assert bool(breaking_changes(before, current)) == bool(breaks)
