"""A sync as it is declared: one TOML file says which topics make a row, under which key, and which target keeps it.

What the target is (its URL, with any credentials) is a setting, `targets.<name>`: the file holds no place and no
secret.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from headrace.errors import ContractError
from schemas.durations import parse_duration
from sinks.reverse.template import placeholders

FOLDER = Path("sinks") / "syncs"
EVENT_COLUMNS = ("_op", "_topic", "_partition", "_offset")

Mode = Literal["upsert", "mirror", "events"]


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Declared):
    """A topic that gives columns to the row of a key.

    `key` says in which field each key column is, `columns` the same for the others; a change topic's fields are those
    of its row. `pivot` makes columns of KPIs (column -> KPI): the KPI's dimensions are then the fields of `key`. No row
    is sent while a `required` source does not know its key.
    """

    topic: str = Field(min_length=1)
    key: dict[str, str] = Field(min_length=1)
    columns: dict[str, str] = Field(default_factory=dict)
    pivot: dict[str, str] = Field(default_factory=dict)
    filter: str = Field("", description="SQL condition; rows that do not meet it count as not there")
    required: bool = False

    @field_validator("columns", mode="before")
    @classmethod
    def _same_names(cls, value: object) -> object:
        return {name: name for name in value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.columns) == bool(self.pivot):
            raise _wrong("columns", "a source has columns, or a pivot of KPIs")
        if self.pivot and self.filter:
            raise _wrong("filter", "a pivot has none")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.columns, *self.pivot)


class Http(_Declared):
    """A request a change. In path, headers and body `{column}` is the column's value; a body's text that is nothing
    but a placeholder is replaced by the value itself, number or null included. Without a body all columns are sent."""

    method: str = "PUT"
    path: str = "/"
    body: Any = None
    headers: dict[str, str] = Field(default_factory=dict)
    delete_method: str = "DELETE"
    delete_path: str = ""
    idempotency_header: str = "Idempotency-Key"
    token_env: str = Field("", description="name of the environment variable that holds a bearer token")
    concurrency: int = Field(4, ge=1, le=64)


class Sql(_Declared):
    """A table with the key columns as its primary key. `prepare` is run at each start: make it idempotent."""

    table: str = Field(min_length=1, pattern=r"^[^.]+(\.[^.]+)?$")
    prepare: str = ""


class Topic(_Declared):
    """A topic: JSON rows under JSON keys, null for a deleted row, the idempotency key in a header."""

    topic: str = Field(min_length=1)


class Sync(_Declared):
    """One sync. `rate` is in changes a second, `timeout` in seconds.

    Modes: `upsert` keeps rows current and leaves them when their source deletes them; `mirror` deletes them too;
    `events` sends each record of its one source as it is, once.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    doc: str = ""
    target: str = Field(min_length=1)
    type: Literal["http", "sql", "kafka"]
    mode: Mode = "upsert"
    key: tuple[str, ...] = Field(min_length=1)
    sources: tuple[Source, ...] = Field(min_length=1)
    defaults: dict[str, str | int | float | bool] = Field(default_factory=dict, description="in place of null")
    start: Literal["earliest", "latest"] = Field("earliest", description="where a new sync of events begins")
    rate: float = Field(100.0, gt=0)
    batch_size: int = Field(100, ge=1, le=10_000)
    retries: int = Field(8, ge=0, description="of one row that the target fails on while it takes others")
    timeout: float = Field(10.0, gt=0)
    http: Http | None = None
    sql: Sql | None = None
    kafka: Topic | None = None

    @field_validator("timeout", mode="before")
    @classmethod
    def _duration(cls, value: object) -> object:
        try:
            return parse_duration(value) if isinstance(value, str) else value
        except ContractError as e:
            raise PydanticCustomError("duration", "{what}", {"what": str(e)}) from e

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if getattr(self, self.type) is None:
            raise _wrong(self.type, f"is missing: a sync of type {self.type} says what to write")
        if self.start == "latest" and self.mode != "events":
            raise _wrong("start", f"a sync of mode {self.mode} needs all of its sources")
        if self.mode == "events" and (len(self.sources) != 1 or self.sources[0].pivot):
            raise _wrong("sources", "a sync of events has one source, without a pivot")
        taken: set[str] = set(self.key)
        for index, source in enumerate(self.sources):
            if set(source.key) != set(self.key):
                raise _wrong(f"sources.{index}.key", f"must name the key columns {', '.join(self.key)}")
            for name in source.names:
                if name in taken:
                    raise _wrong(f"sources.{index}", f"column {name!r} is there already")
                taken.add(name)
        for name in self.defaults:
            if name not in taken:
                raise _wrong(f"defaults.{name}", "is not a column")
        self._check_placeholders(taken)
        return self

    def _check_placeholders(self, columns: set[str]) -> None:
        if self.http is None:
            return
        known = columns | set(EVENT_COLUMNS if self.mode == "events" else ())
        for at in ("path", "body", "headers"):
            for name in placeholders(getattr(self.http, at)) - known:
                raise _wrong(f"http.{at}", f"no column {name!r}; there are {', '.join(sorted(known))}")
        for name in placeholders(self.http.delete_path) - set(self.key):
            raise _wrong("http.delete_path", f"{name!r} is not part of the key, all that a deleted row still has")
        if self.mode == "mirror" and not self.http.delete_path and placeholders(self.http.path) - set(self.key):
            raise _wrong("http.delete_path", "is needed: `path` has columns that a deleted row has not")

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns of a row, key first."""
        return (*self.key, *(name for source in self.sources for name in source.names))

    @property
    def topics(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(source.topic for source in self.sources))

    @property
    def fingerprint(self) -> str:
        """Changes with everything that rows depend on: they are made anew from the topics under another one."""
        said = self.model_dump(mode="json", include={"mode", "key", "sources", "defaults"})
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def _wrong(at: str, what: str) -> PydanticCustomError:
    return PydanticCustomError("sync", "{what}", {"what": what, "at": at})


def load_sync(path: Path) -> Sync:
    """The sync in a file; `name` defaults to the file's. Raises `ContractError` naming file and place."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ContractError(f"cannot be read: {e}", where=str(path)) from e
    try:
        return Sync.model_validate({"name": path.stem} | raw)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        at = ".".join(filter(None, (*map(str, first["loc"]), str(first.get("ctx", {}).get("at", "")))))
        raise ContractError(first["msg"], where=f"{path}: {at}" if at else str(path)) from e


def load_syncs(folders: Iterable[Path]) -> dict[str, Sync]:
    """All syncs of content folders by name. Raises `ContractError` when a file is malformed or a name is taken."""
    found: dict[str, Sync] = {}
    files = {path.resolve(): path for folder in folders for path in sorted((folder / FOLDER).glob("*.toml"))}
    for path in files.values():
        sync = load_sync(path)
        if sync.name in found:
            raise ContractError(f"a sync named {sync.name} is already declared", where=str(path))
        found[sync.name] = sync
    return found
