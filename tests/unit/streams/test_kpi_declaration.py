"""What a declaration may say, and that everything wrong with it is named by file and field."""

import json
from pathlib import Path

import pytest

from headrace.config import Settings
from headrace.errors import ContractError
from schemas.contracts import load_contracts
from schemas.kpis import Alert, load_kpis, read_kpi
from streams.kpi.declaration import check_kpi, check_kpis

ROOT = Path(__file__).parents[3]
GOOD = """
title = "Spend"
source = "shop.public.orders"
measure = "sum"
field = "amount"
"""


def problems_of(tmp_path, text):
    path = tmp_path / "spend.toml"
    path.write_text(text)
    kpi, problems = read_kpi(path)
    if kpi is not None:
        problems = problems + check_kpi(kpi, str(path), load_contracts([ROOT]), None)
    return {p.at: p.what for p in problems}


def test_the_demo_declares_sound_kpis():
    kpis, problems = check_kpis(Settings(content=[ROOT]))
    assert {k.name for k in kpis} == set(load_kpis([ROOT]))
    assert problems == []


@pytest.mark.parametrize(
    ("text", "at", "what"),
    [
        (GOOD.replace('field = "amount"', ""), "field", "needs the field"),
        (GOOD.replace("sum", "median"), "measure", "Input should be"),
        (GOOD + 'windw = "1m"', "windw", "Extra inputs"),
        (GOOD + 'window = "1m"', "event_time", "a window needs it"),
        (GOOD + 'window = "one minute"\nevent_time = "created_at"', "window", "not a duration"),
        (GOOD + 'window = "0"\nevent_time = "created_at"', "window", "leave it out"),
        (GOOD + 'window = 0\nevent_time = "created_at"', "window", "leave it out"),
        (GOOD + 'lateness = "1m"', "lateness", "means nothing"),
        (GOOD + "resolution = 0.3", "resolution", "power of ten"),
        (GOOD.replace("sum", "quantile") + "q = 0.5", "resolution", "buckets"),
        (GOOD + 'name = "changes"', "name", "taken"),
        (GOOD + '[[alerts]]\nop = "="\nvalue = 1', "alerts.0.op", "Input should be"),
        (GOOD.replace("amount", "amont"), "field", "has no field amont"),
        (GOOD.replace("amount", "status"), "field", "needs a number"),
        (GOOD.replace('"sum"', '"max"'), "measure", "cannot take a row back"),
        (GOOD + 'dimensions = ["land"]', "dimensions", "no field land"),
        (GOOD + 'window = "1m"\nevent_time = "country"', "event_time", "not a time"),
        (GOOD + "filter = \"stats = 'new'\"", "filter", "no column stats"),
        ("title = ", "", "cannot be read"),
    ],
)
def test_what_is_wrong_is_named_by_field(tmp_path, text, at, what):
    found = problems_of(tmp_path, text)
    assert what in found[at], found


def test_two_files_cannot_declare_one_kpi(tmp_path):
    folder = tmp_path / "streams" / "kpis"
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        (folder / f"{name}.toml").write_text(GOOD + 'name = "spend"')
    with pytest.raises(ContractError, match="already declared"):
        load_kpis([tmp_path])


def test_fingerprint_follows_what_is_counted_not_what_is_shown(tmp_path):
    def fingerprint(text):
        path = tmp_path / "spend.toml"
        path.write_text(text)
        return read_kpi(path)[0].fingerprint

    assert fingerprint(GOOD) == fingerprint(GOOD.replace('"Spend"', '"Money"') + 'unit = "EUR"')
    assert fingerprint(GOOD) != fingerprint(GOOD + "filter = \"status = 'new'\"")


def test_alerts_compare():
    assert Alert(op=">=", value=5).holds(5)
    assert not Alert(op="<", value=5).holds(5)


def test_about_is_plain_data():
    assert json.loads(json.dumps([k.about() for k in load_kpis([ROOT]).values()]))
