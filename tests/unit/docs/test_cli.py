import runpy

from tests.unit.docs.pages import DOCS


def test_cli_page_is_what_the_commands_say():
    render = runpy.run_path(str(DOCS / "make_cli.py"))["render"]
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert page == render(), "docs/cli.md is out of date; write it again: .venv/bin/python docs/make_cli.py"
