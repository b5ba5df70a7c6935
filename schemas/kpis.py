"""A KPI as it is declared: one TOML file says what is counted, over which rows, by which groups, in which windows.

This is the form of the file alone, which the stream that computes a KPI and the sinks that show it share. Whether its
names mean anything under the contracts is `streams.kpi.declaration`'s to check.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from headrace.errors import ContractError
from schemas.contracts import Problem
from schemas.durations import parse_duration

FOLDER = Path("streams") / "kpis"
RESERVED = frozenset({"changes", "alerts", "alerting", "offset", "meta"})
"""Names that mean something else where values are kept under `kpi:<name>`."""
FLOAT_RESOLUTION = Decimal("0.000001")

MeasureKind = Literal["count", "sum", "avg", "min", "max", "quantile", "distinct"]


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Alert(_Declared):
    """Fires for a group while its value is `op` `value`."""

    op: Literal[">", ">=", "<", "<="]
    value: float
    severity: Literal["info", "warning", "critical"] = "warning"

    def holds(self, value: float) -> bool:
        return {
            ">": value > self.value,
            ">=": value >= self.value,
            "<": value < self.value,
            "<=": value <= self.value,
        }[self.op]


class Kpi(_Declared):
    """One KPI. Windows tumble and are aligned to the epoch; `window` and `lateness` are in seconds.

    A row counts when `filter` is true for it. Sums and averages of doubles add each value rounded to `resolution`
    (a power of ten), so that they are exact and can be taken back; quantiles are exact to `resolution`.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    title: str = Field(min_length=1)
    doc: str = ""
    source: str = Field(min_length=1, description="topic: change events of a table, or events")
    filter: str = ""
    measure: MeasureKind
    field: str = ""
    q: float | None = Field(None, gt=0, le=1)
    resolution: Decimal | None = Field(None, gt=0)
    dimensions: tuple[str, ...] = ()
    window: float | None = None
    event_time: str = ""
    lateness: float = 0.0
    unit: str = ""
    alerts: tuple[Alert, ...] = ()
    top: int = Field(10, ge=1, description="groups that a chart shows")
    metrics: bool = Field(True, description="false for groups that are ids: they must not become metric labels")

    @field_validator("window", "lateness", mode="before")
    @classmethod
    def _duration(cls, value: object, info: ValidationInfo) -> object:
        if value is None:
            return value
        if value in (0, "0"):
            if info.field_name == "window":
                raise _wrong("window", "must be longer than 0: leave it out for a KPI of all time")
            return value
        try:
            return parse_duration(value)
        except ContractError as e:
            raise PydanticCustomError("duration", "{what}", {"what": str(e)}) from e

    @field_validator("name")
    @classmethod
    def _free(cls, value: str) -> str:
        if value in RESERVED:
            raise PydanticCustomError("kpi", "{name} is taken", {"name": value})
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.measure != "count" and not self.field:
            raise _wrong("field", f"{self.measure} needs the field that it measures")
        if (self.measure == "quantile") != (self.q is not None):
            raise _wrong(
                "q", "a quantile needs it (0 < q <= 1)" if self.measure == "quantile" else "only quantile has it"
            )
        if self.measure == "quantile" and self.resolution is None:
            raise _wrong("resolution", "a quantile needs it: values are counted in buckets of this width")
        if self.resolution is not None and self.measure not in ("sum", "avg", "quantile"):
            raise _wrong("resolution", f"{self.measure} has none")
        if self.measure in ("sum", "avg") and self.digits is None:
            raise _wrong("resolution", "must be a power of ten, 1 or less")
        if (self.window is not None) != bool(self.event_time):
            raise _wrong("event_time", "a window needs it" if self.window else "means nothing without a window")
        if self.lateness and self.window is None:
            raise _wrong("lateness", "means nothing without a window")
        if len(set(self.dimensions)) != len(self.dimensions):
            raise _wrong("dimensions", "each once")
        return self

    @property
    def digits(self) -> int | None:
        """Decimal places that sums of doubles are rounded to; None when `resolution` is not a power of ten."""
        sign, digits, exponent = (self.resolution or FLOAT_RESOLUTION).normalize().as_tuple()
        return -exponent if digits == (1,) and isinstance(exponent, int) and exponent <= 0 and not sign else None

    @property
    def window_us(self) -> int | None:
        return None if self.window is None else round(self.window * 1e6)

    @property
    def lateness_us(self) -> int:
        return round(self.lateness * 1e6)

    @property
    def retracts(self) -> bool:
        """Whether a counted row can be taken back."""
        return self.measure in ("count", "sum", "avg")

    @property
    def fingerprint(self) -> str:
        """Changes with everything that its contributions depend on: they are counted anew under another one."""
        parts = self.model_dump(
            mode="json",
            include={
                "source", "filter", "measure", "field", "resolution", "dimensions", "window", "event_time", "lateness"
            },
        )  # fmt: skip
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    def about(self) -> dict[str, Any]:
        """What people and dashboards want to know of it, as plain data."""
        return self.model_dump(mode="json")


def _wrong(at: str, what: str) -> PydanticCustomError:
    return PydanticCustomError("kpi", "{what}", {"what": what, "at": at})


def read_kpi(path: Path) -> tuple[Kpi | None, list[Problem]]:
    """The KPI in a file and all that is wrong with the form of the file; `name` defaults to the file's."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except (OSError, ValueError) as e:
        return None, [Problem(str(path), "", f"cannot be read: {e}")]
    try:
        return Kpi.model_validate({"name": path.stem} | raw), []
    except ValidationError as e:
        return None, [
            Problem(str(path), ".".join(map(str, item["loc"])) or str(item.get("ctx", {}).get("at", "")), item["msg"])
            for item in e.errors(include_url=False, include_input=False)
        ]


def load_kpi(path: Path) -> Kpi:
    """Raises `ContractError` with the first thing that is wrong with the form of the file."""
    kpi, problems = read_kpi(path)
    if kpi is None:
        raise problems[0].error()
    return kpi


def kpi_files(folders: Iterable[Path]) -> list[Path]:
    return [*{path.resolve(): path for folder in folders for path in sorted((folder / FOLDER).glob("*.toml"))}.values()]


def load_kpis(folders: Iterable[Path]) -> dict[str, Kpi]:
    """All KPIs of content folders by name. Raises `ContractError` when a file is malformed or a name is taken."""
    found: dict[str, Kpi] = {}
    for path in kpi_files(folders):
        kpi = load_kpi(path)
        if kpi.name in found:
            raise ContractError(f"a KPI named {kpi.name} is already declared", where=str(path))
        found[kpi.name] = kpi
    return found
