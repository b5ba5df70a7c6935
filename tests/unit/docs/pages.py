"""Reading the documentation's Markdown: links, anchors, and the first column of tables."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])

_FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^(#{1,6})\s+(.+?)\s*$", re.MULTILINE)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def prose(path: Path) -> str:
    """A page without its code blocks."""
    return _FENCE.sub("", path.read_text(encoding="utf-8"))


def links(path: Path) -> list[str]:
    return _LINK.findall(re.sub(r"`[^`\n]*`(?!\]\()", "", prose(path)))


def anchors(path: Path) -> set[str]:
    """As GitHub makes them: lower case, punctuation gone, spaces as hyphens, repeats numbered."""
    found: dict[str, int] = {}
    out = set()
    for _, title in _HEADING.findall(prose(path)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        number = found[slug] = found.get(slug, -1) + 1
        out.add(f"{slug}-{number}" if number else slug)
    return out


def section(path: Path, title: str) -> str:
    """The text below a heading, up to the next one of its level or above."""
    text = path.read_text(encoding="utf-8")
    # Comments in code are no headings.
    plain = _FENCE.sub(lambda m: " " * len(m[0]), text)
    heading = next(m for m in _HEADING.finditer(plain) if m[2] == title)
    level = len(heading[1])
    end = next((m.start() for m in _HEADING.finditer(plain, heading.end()) if len(m[1]) <= level), len(text))
    return text[heading.end() : end]


def first_cells(text: str) -> list[str]:
    """Code in the first column of a text's tables: `| `name` | ... |` gives name."""
    return [name for row in re.findall(r"^\|([^|]*)\|", text, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)]
