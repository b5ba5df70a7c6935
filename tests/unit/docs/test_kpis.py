import re
from decimal import Decimal
from typing import get_args

from schemas.kpis import RESERVED, Alert, Kpi, MeasureKind, load_kpi
from sinks.kpi import board, store
from streams.kpi import merger, partials, totals
from tests.unit.docs.pages import DOCS, first_cells, section

PAGE = DOCS / "kpis.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_fields_are_those_of_the_declaration():
    assert first_cells(section(PAGE, "Fields")) == list(Kpi.model_fields)
    assert first_cells(section(PAGE, "Alerts")) == list(Alert.model_fields)
    assert set(first_cells(section(PAGE, "Measures"))) == set(get_args(MeasureKind))
    assert all(f"`{name}`" in section(PAGE, "Fields") for name in RESERVED)


def test_the_example_is_well_formed(tmp_path):
    for number, block in enumerate(re.findall(r"^```toml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)):
        (path := tmp_path / f"kpi_{number}.toml").write_text(block)
        assert load_kpi(path).name == f"kpi_{number}"


def test_fields_that_may_change_are_those_that_the_count_does_not_depend_on():
    free = re.search(r"(`title`.*?) may change at any time", section(PAGE, "Changing a declaration"), re.DOTALL)[1]
    kpi = {
        "name": "a",
        "title": "A",
        "source": "t",
        "measure": "quantile",
        "field": "f",
        "q": 0.5,
        "resolution": Decimal(1),
    }
    plain = Kpi.model_validate(kpi | {"window": "1m", "event_time": "e"})
    changes = {
        "name": "b", "title": "B", "doc": "D", "source": "u", "filter": "x > 1", "measure": "max", "field": "g",
        "q": 0.9, "resolution": Decimal(2), "dimensions": ("d",), "window": 120.0, "event_time": "e2", "lateness": 60.0,
        "unit": "u", "alerts": (Alert(op=">", value=1),), "top": 3, "metrics": False,
    }  # fmt: skip
    assert changes.keys() == Kpi.model_fields.keys()
    same = {n for n, value in changes.items() if plain.model_copy(update={n: value}).fingerprint == plain.fingerprint}
    assert set(re.findall(r"`(\w+)`", free)) == same - {"name"}


def test_numbers_are_those_of_the_code():
    assert f"{partials.MAX_DISTINCT:,} values" in TEXT.replace("\n", " ")
    assert f"newest {store.WINDOWS_KEPT} windows" in TEXT
    assert f"more than {board.MAX_LABELS} groups" in TEXT
    assert f"for {totals.IDLE_SECONDS:.0f} s is idle" in TEXT.replace("\n", " ")
    assert merger.PUBLISH_SECONDS == 0.5
    assert totals.KEEP_FINAL_US == 3600 * 10**6
    assert f"about {store.CHANGES_KEPT:,} entries" in TEXT
    assert f"about {store.ALERTS_KEPT:,} entries" in TEXT
