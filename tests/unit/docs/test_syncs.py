import re

from sinks.reverse.declaration import Http, Source, Sql, Sync, Topic, load_sync
from sinks.reverse.deliver import ALONE
from sinks.reverse.service import TERMINAL_SECONDS
from sinks.reverse.targets import http, kafka
from tests.unit.docs.pages import DOCS, first_cells, section

PAGE = DOCS / "syncs.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_fields_are_those_of_the_declaration():
    assert first_cells(section(PAGE, "Fields")) == list(Sync.model_fields)
    assert first_cells(section(PAGE, "Sources")) == list(Source.model_fields)
    assert first_cells(section(PAGE, "http")) == list(Http.model_fields)
    assert first_cells(section(PAGE, "sql")) == list(Sql.model_fields)
    assert first_cells(section(PAGE, "kafka")) == list(Topic.model_fields)


def test_defaults_are_those_of_the_declaration():
    defaults = {name: field.default for name, field in {**Sync.model_fields, **Http.model_fields}.items()}
    for name in ("rate", "batch_size", "retries", "timeout", "concurrency", "method", "path", "delete_method"):
        row = re.search(rf"^\| `{name}` \|([^|]*)\|", TEXT, re.MULTILINE)
        assert f"{defaults[name]:g}" in row[1] if isinstance(defaults[name], float) else str(defaults[name]) in row[1]


def test_the_example_is_well_formed(tmp_path):
    for number, block in enumerate(re.findall(r"^```toml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)):
        (path := tmp_path / f"sync_{number}.toml").write_text(block)
        assert load_sync(path).name == f"sync_{number}"


def test_numbers_are_those_of_the_code():
    away = re.search(r"timeout, HTTP ([\d, ]+), lost", TEXT)[1]
    assert {int(status) for status in away.split(", ")} == http.AWAY
    credentials = re.search(r"credentials refused: HTTP ([\d, ]+)", TEXT)[1]
    assert {int(status) for status in credentials.split(", ")} == http.CREDENTIALS
    assert f"more than {kafka.MAX_BYTES:,} bytes" in TEXT
    assert f"every {TERMINAL_SECONDS:.0f} s" in TEXT
    assert (ALONE, "only three rows" in TEXT) == (3, True)
