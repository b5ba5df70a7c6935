"""Durations as people write them in contracts and declarations: `500ms`, `5s`, `1m`, `2h`, `90d`, `1w`."""

from __future__ import annotations

import re

from headrace.errors import ContractError

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)")


def parse_duration(text: object) -> float:
    """Seconds, greater than 0. Raises `ContractError` without a `where`: the caller knows the place."""
    match = _DURATION.fullmatch(text.strip()) if isinstance(text, str) else None
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if seconds <= 0:
        raise ContractError(f"{text!r} is not a duration", hint="write 500ms, 5s, 1m, 2h, 90d or 1w")
    return seconds
