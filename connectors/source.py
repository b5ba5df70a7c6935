"""What operating a connector needs of its source database: the seam that each kind of database fills with one class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class LogState:
    """The part of the database's log that a connector still needs.

    `lag_bytes` has been written and not been acknowledged by the connector, `kept_bytes` is held for it on the
    database's disk, `safe_bytes` may still be written before the database gives the connector up (None: no limit).
    `confirmed` is the place in the log up to which the connector has acknowledged. `files` are those of the log
    with their sizes, where the connector's offset names one, and `gtids` the newest in it (None: not known).
    """

    lag_bytes: int | None = None
    kept_bytes: int | None = None
    safe_bytes: int | None = None
    status: str = ""
    confirmed: int | None = None
    files: Mapping[str, int] = field(default_factory=dict)
    gtids: str | None = None


@dataclass(frozen=True)
class Column:
    """A column of `table` (`schema.table`) and its type, that below a domain, as the database's catalog says it;
    whether the log has rows `whole`. Without a table: a type of the database that every connector reads."""

    table: str
    name: str
    type: str
    whole: bool = True


class Source(Protocol):
    """One connector's source database. Every method raises `UnavailableError` when it cannot be reached, and
    `ConfigError` when it refuses."""

    def log(self) -> LogState:
        """What the database keeps for the connector."""

    def missing(self, log: LogState, offset: Mapping[str, Any]) -> str:
        """One sentence when changes are gone that the connector has not read, else empty.

        `offset` is the connector's place as Connect keeps it, read after `log` was: it never falls behind what the
        database has been told. It may be ahead of the log as that was: what is missing still is when `log` is read
        again. Pure.
        """

    def obstacle(self, log: LogState, offset: Mapping[str, Any]) -> str:
        """What has to be done before a snapshot can mend what is missing, as its changes would look like repeats; else
        empty. Pure."""

    def behind(self, log: LogState, offset: Mapping[str, Any]) -> LogState:
        """`log` with the lag that follows from the connector's place, where the database does not know it. Pure."""

    def forget(self) -> None:
        """Drop what the database keeps for the stopped connector, which makes it anew."""

    def nameless(self) -> dict[str, str]:
        """Tables (`schema.table`) whose deletes lack columns of the primary key, with the statement that mends it."""

    def columns(self) -> list[Column]:
        """The columns whose type may be one that Debezium does not carry."""

    def estimated_rows(self, table: str) -> int | None:
        """About how many rows a table has; None when the database does not know either."""

    def prepare_signals(self, table: str) -> None:
        """Create the signalling table unless it is there."""

    def signal(self, table: str, number: str, kind: str, data: Mapping[str, Any]) -> None:
        """Write one signal, and take away those of before."""

    def signalled(self, table: str, number: str) -> dict[str, Any] | None:
        """The data of a signal that was written; None when it was taken away since."""
