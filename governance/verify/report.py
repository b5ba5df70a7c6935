"""What a verification found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import duckdb
import psycopg
from confluent_kafka import KafkaException

from headrace.errors import HeadraceError

MAX_OFFENCES = 5


@dataclass
class Check:
    """One flow compared with its target. It fails when it holds an offence, which begins with its coordinates."""

    flow: str
    what: str
    compared: int = 0
    quarantined: int = 0
    dropped: int = 0
    lag: int = 0
    offences: list[str] = field(default_factory=list)
    total_offences: int = 0
    note: str = ""

    @property
    def ok(self) -> bool:
        return not self.total_offences

    def offend(self, where: str, what: str) -> None:
        self.total_offences += 1
        if len(self.offences) < MAX_OFFENCES:
            self.offences.append(f"{where}: {what}")

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """A check that cannot be made has failed: never pass what could not be looked at."""
        try:
            yield
        except HeadraceError as e:
            self.offend(self.flow, f"could not be checked: {e}")
        except (duckdb.Error, psycopg.Error, KafkaException) as e:
            reason = next(iter(str(e).splitlines()), "")
            self.offend(self.flow, f"could not be checked: {type(e).__name__}: {reason}")

    def as_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


@dataclass
class Report:
    checks: list[Check]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    @property
    def first_offence(self) -> str | None:
        return next((offence for check in self.checks for offence in check.offences), None)

    def as_dict(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "first_offence": self.first_offence,
            "checks": [check.as_dict() for check in self.checks],
        }


def coordinates(topic: str, partition: int, offset: int) -> str:
    return f"{topic}/{partition}/{offset}"


def first(items: Iterable[Any]) -> Any:
    return next(iter(items), None)
