"""How lively the demo is: numbers from the environment (`DEMO_*`), each with a default that fits a laptop."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields

from headrace.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """Rates are per second: `shop_rate` transactions, `device_rate` readings, `crm_rate` requests that are taken."""

    seed: int = 7
    customers: int = 300
    devices: int = 60
    shop_rate: float = 20.0
    device_rate: float = 60.0
    crm_rate: float = 100.0


def options(environ: Mapping[str, str] | None = None) -> Options:
    """Raises `ConfigError` naming the variable that is no positive number."""
    given = os.environ if environ is None else environ
    values: dict[str, float] = {}
    for item in fields(Options):
        name = f"DEMO_{item.name.upper()}"
        if name not in given:
            continue
        try:
            number = float(given[name]) if isinstance(item.default, float) else int(given[name])
        except ValueError:
            number = -1
        if number <= 0:
            raise ConfigError("must be a positive number", where=name)
        values[item.name] = number
    return Options(**values)  # type: ignore[arg-type]
