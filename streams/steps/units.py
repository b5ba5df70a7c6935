"""Measurements in the unit that the contract says."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import ConfigError
from streams.agent import Step, StepContext

# Unit (UCUM) -> (dimension, factor, offset): base = value * factor + offset.
_UNITS = {
    "Cel": ("temperature", 1.0, 273.15),
    "[degF]": ("temperature", 5 / 9, 459.67 * 5 / 9),
    "K": ("temperature", 1.0, 0.0),
    "Pa": ("pressure", 1.0, 0.0),
    "kPa": ("pressure", 1e3, 0.0),
    "bar": ("pressure", 1e5, 0.0),
    "[psi]": ("pressure", 6894.757293168, 0.0),
    "m": ("length", 1.0, 0.0),
    "mm": ("length", 1e-3, 0.0),
    "[ft_i]": ("length", 0.3048, 0.0),
    "g": ("mass", 1e-3, 0.0),
    "kg": ("mass", 1.0, 0.0),
    "[lb_av]": ("mass", 0.45359237, 0.0),
    "1": ("share", 1.0, 0.0),
    "%": ("share", 1e-2, 0.0),
}


def convert(field: str, from_unit: str, to_unit: str) -> Step:
    """A step that converts a column of numbers to another unit, as doubles; null stays null.

    Units are UCUM codes. Raises `ConfigError` for an unknown unit or two that do not measure the same.
    """
    for unit in (from_unit, to_unit):
        if unit not in _UNITS:
            raise ConfigError(f"unknown unit {unit!r}", where=f"convert({field})", hint="one of " + ", ".join(_UNITS))
    dimension, factor, offset = _UNITS[from_unit]
    target, target_factor, target_offset = _UNITS[to_unit]
    if dimension != target:
        raise ConfigError(f"{from_unit} is a {dimension}, {to_unit} a {target}", where=f"convert({field})")

    def step(batch: pa.RecordBatch, ctx: StepContext) -> pa.RecordBatch:
        base = pc.add(pc.multiply(batch.column(field).cast(pa.float64()), factor), offset)
        values = pc.divide(pc.subtract(base, target_offset), target_factor)
        return batch.set_column(batch.schema.get_field_index(field), field, values)

    step.__name__ = f"convert {field}"
    return step
