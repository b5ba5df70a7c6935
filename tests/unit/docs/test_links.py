import pytest

from tests.unit.docs.pages import DOCS, PAGES, ROOT, anchors, links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    broken = []
    for link in links(page):
        if "://" in link or link.startswith("mailto:"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_have_one_title(page):
    assert page.read_text(encoding="utf-8").startswith("# ")


def test_every_page_is_in_the_index():
    index = {(DOCS / link.partition("#")[0]).resolve() for link in links(DOCS / "README.md")}
    missing = [page.name for page in DOCS.glob("*.md") if page.name != "README.md" and page.resolve() not in index]
    assert not missing
    decisions = {(DOCS / "adr" / link).resolve() for link in links(DOCS / "adr" / "README.md")}
    assert {page.resolve() for page in (DOCS / "adr").glob("0*.md")} == decisions
