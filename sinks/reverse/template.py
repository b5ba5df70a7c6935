"""Templates of requests: `{column}` stands for a value, `{{` and `}}` for braces. They name columns, nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

_TOKEN = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]*)\}")


def placeholders(template: Any) -> set[str]:
    """The columns that a template names, wherever in its tables and lists."""
    if isinstance(template, str):
        return {match[1] for match in _TOKEN.finditer(template) if match[1]}
    if isinstance(template, Mapping):
        return {name for value in template.values() for name in placeholders(value)}
    if isinstance(template, list | tuple):
        return {name for value in template for name in placeholders(value)}
    return set()


def fill(template: Any, row: Mapping[str, Any]) -> Any:
    """The template with values in place. Text that is one placeholder becomes the value itself, whatever its type."""
    if isinstance(template, str):
        whole = _TOKEN.fullmatch(template)
        return row[whole[1]] if whole and whole[1] else _replace(template, row, text)
    if isinstance(template, Mapping):
        return {key: fill(value, row) for key, value in template.items()}
    if isinstance(template, list | tuple):
        return [fill(value, row) for value in template]
    return template


def fill_path(template: str, row: Mapping[str, Any]) -> str:
    """A URL path: values are percent-encoded whole. Raises `ValueError` for one that would leave its place all the same
    (empty, `.` and `..`)."""

    def write(value: Any) -> str:
        written = quote(text(value), safe="")
        if written in ("", ".", ".."):
            raise ValueError(f"{written!r} cannot be part of a path")
        return written

    return _replace(template, row, write)


def fill_text(template: str, row: Mapping[str, Any]) -> str:
    return _replace(template, row, text)


def text(value: Any) -> str:
    """A value in the middle of text: null is empty, true and false as JSON has them."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _replace(template: str, row: Mapping[str, Any], write: Callable[[Any], str]) -> str:
    def one(match: re.Match[str]) -> str:
        return write(row[match[1]]) if match[1] else match[0][0]

    return _TOKEN.sub(one, template)
