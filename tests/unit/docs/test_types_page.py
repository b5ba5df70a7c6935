import runpy

from tests.unit.docs.pages import DOCS


def test_the_page_is_what_the_catalogue_says() -> None:
    page = (DOCS / "types.md").read_text(encoding="utf-8")
    render = runpy.run_path(str(DOCS / "make_types.py"))["render"]
    assert page == render(), "docs/types.md is out of date; write it again: .venv/bin/python -m docs.make_types"
