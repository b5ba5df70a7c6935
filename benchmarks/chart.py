"""A bar chart as SVG: text of its own, no fonts or scripts, readable on light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, LABEL, VALUE, LINE, BAR_HEIGHT = 760, 270, 110, 30, 18
COLOURS = 12
STYLE = """
 text { font: 13px system-ui, sans-serif; fill: #1f2328; }
 .title { font-weight: 600; font-size: 15px; }
 .note { fill: #59636e; font-size: 12px; }
 .ours { fill: #0a7d6c; }
 .theirs { fill: #8c959f; }
 .s0 { fill: #0a7d6c; } .s1 { fill: #2f81f7; } .s2 { fill: #bf8700; } .s3 { fill: #a371f7; }
 .s4 { fill: #cf5b3c; } .s5 { fill: #57a639; } .s6 { fill: #d2669a; } .s7 { fill: #6e7781; }
 .s8 { fill: #1b98c4; } .s9 { fill: #9a6700; } .s10 { fill: #8957e5; } .s11 { fill: #a8b3bd; }
 @media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .note { fill: #9198a1; }
  .ours { fill: #2dc5ab; }
  .theirs { fill: #6e7681; }
 }
"""


def _frame(title: str, note: str, height: int, body: Sequence[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            f'<text class="title" x="0" y="18">{escape(title)}</text>',
            f'<text class="note" x="0" y="38">{escape(note)}</text>',
            *body,
            "</svg>",
            "",
        ]
    )


def bars(title: str, note: str, values: Sequence[tuple[str, float, str, bool]]) -> str:
    """One bar for each (label, value, value as text, ours), all on one scale from 0."""
    longest = max((value for _, value, _, _ in values), default=0.0) or 1.0
    room = WIDTH - LABEL - VALUE
    body = []
    for i, (label, value, text, ours) in enumerate(values):
        y = 54 + i * LINE
        width = max(1.0, room * value / longest)
        body += [
            f'<text x="{LABEL - 10}" y="{y + 14}" text-anchor="end">{escape(label)}</text>',
            f'<rect class="{"ours" if ours else "theirs"}" x="{LABEL}" y="{y}" width="{width:.1f}" '
            f'height="{BAR_HEIGHT}" rx="3"/>',
            f'<text x="{LABEL + width + 8:.1f}" y="{y + 14}">{escape(text)}</text>',
        ]
    return _frame(title, note, 54 + len(values) * LINE, body)


def stacked(title: str, note: str, lines: Sequence[tuple[str, Sequence[tuple[str, float]]]], unit: str) -> str:
    """One line for each (label, parts), each part as wide as its value; the same part has the same colour in all."""
    names = list(dict.fromkeys(name for _, parts in lines for name, _ in parts))
    longest = max((sum(value for _, value in parts) for _, parts in lines), default=0.0) or 1.0
    room = WIDTH - LABEL - VALUE
    body = []
    for i, name in enumerate(names):
        left, y = 180 * (i % 4), 56 + 22 * (i // 4)
        body.append(f'<rect class="s{i % COLOURS}" x="{left}" y="{y}" width="12" height="12" rx="2"/>')
        body.append(f'<text class="note" x="{left + 18}" y="{y + 11}">{escape(name)}</text>')
    top = 66 + 22 * (-(-len(names) // 4))
    for i, (label, parts) in enumerate(lines):
        y, x = top + i * LINE, float(LABEL)
        body.append(f'<text x="{LABEL - 10}" y="{y + 14}" text-anchor="end">{escape(label)}</text>')
        for name, value in parts:
            width = room * value / longest
            body.append(
                f'<rect class="s{names.index(name) % COLOURS}" x="{x:.1f}" y="{y}" width="{width:.1f}" '
                f'height="{BAR_HEIGHT}"><title>{escape(f"{name}: {value:,.0f} {unit}")}</title></rect>'
            )
            x += width
        total = sum(value for _, value in parts)
        body.append(f'<text x="{x + 8:.1f}" y="{y + 14}">{total:,.0f} {escape(unit)}</text>')
    return _frame(title, note, top + len(lines) * LINE, body)
