"""A contract: one Avro schema file that says shape, meaning, owner, keys, event time, rules and storage of a topic.

The attributes beside Avro's own are kept and ignored by Avro libraries and registries, so the whole file is what is
registered (`Contract.avro`). `read_contract` reports everything that keeps a file from being a contract at all;
what is merely wrong about it (names that name no field, rules that do not fit) is `schemas.check`'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fastavro.schema import SchemaParseException, UnknownType, parse_schema

from headrace.errors import ContractError
from schemas.durations import parse_duration

Mode = Literal["append", "upsert", "current"]
MODES: tuple[Mode, ...] = ("append", "upsert", "current")
BUILTIN = Path(__file__).parent / "builtin"
FOLDER = Path("schemas") / "contracts"

_PARTITION = re.compile(r"(?:(year|month|day|hour)\((\w+)\)|(bucket|truncate)\((\d+)\s*,\s*(\w+)\)|(\w+))")


@dataclass(frozen=True)
class Problem:
    """Something wrong with a file, at a field or attribute ("" for the whole file)."""

    file: str
    at: str
    what: str
    hint: str = ""
    severity: Literal["error", "warning"] = "error"

    def error(self) -> ContractError:
        return ContractError(self.what, where=": ".join(filter(None, (self.file, self.at))), hint=self.hint)


@dataclass(frozen=True)
class PartitionField:
    """One field of a table's partition spec; `argument` is the width of `bucket` and `truncate`."""

    column: str
    transform: Literal["identity", "year", "month", "day", "hour", "bucket", "truncate"]
    argument: int | None = None


@dataclass(frozen=True)
class Storage:
    """The Iceberg table of a topic: `append` events, `upsert` by key, or `current` state of a database table.

    A source topic's `table` is "": it lands in its bronze table, which `partition` and `sort` are of. `sort` are the
    columns by which rows are ordered within each file, ascending. `history` is a second table of a database table,
    with all versions of its rows; "" for none.
    """

    table: str
    partition: tuple[PartitionField, ...] = ()
    mode: Mode = "append"
    sort: tuple[str, ...] = ()
    history: str = ""


@dataclass(frozen=True)
class Threshold:
    """Shares of rows in 0..1: above `alert` somebody is told, above `stop` the flow stops."""

    alert: float | None = None
    stop: float | None = None


@dataclass(frozen=True)
class FieldSpec:
    """One field. `avro` is its type without the null branch, named types resolved where they are a reference."""

    name: str
    avro: Any
    nullable: bool
    doc: str = ""
    rules: tuple[str, ...] = ()
    pii: str | None = None
    subject: str | None = None
    unit: str | None = None
    aliases: tuple[str, ...] = ()
    has_default: bool = False
    default: Any = None
    fields: tuple[FieldSpec, ...] = ()

    @property
    def type(self) -> str:
        """Avro's name of the type: `long`, `record`, `enum`, ..."""
        return str(self.avro["type"] if isinstance(self.avro, dict) else self.avro if self.avro else "union")

    @property
    def logical(self) -> str | None:
        return self.avro.get("logicalType") if isinstance(self.avro, dict) else None


@dataclass(frozen=True)
class Contract:
    """One topic's contract; times in seconds. `avro` is the whole file, which is also what gets registered."""

    path: Path
    name: str
    namespace: str
    doc: str
    owner: str
    topic: str
    key: tuple[str, ...]
    event_time: str | None
    freshness: float | None
    retention: float | None
    storage: Storage | None
    thresholds: Mapping[str, Threshold]
    derived_from: tuple[str, ...]
    rules: tuple[str, ...]
    envelope: str | None
    fields: tuple[FieldSpec, ...]
    avro: dict[str, Any] = field(repr=False, compare=False)

    @property
    def is_cdc(self) -> bool:
        """The contract describes the row; the topic carries change events around it, registered by their writer."""
        return self.envelope is not None

    @property
    def is_source(self) -> bool:
        """Its records come from outside and land in bronze; it names no table."""
        return not (self.derived_from or self.is_cdc or self.is_builtin)

    @property
    def is_builtin(self) -> bool:
        return self.path.parent == BUILTIN

    def walk(self) -> Iterator[tuple[str, FieldSpec]]:
        """All fields with their dotted paths, those of nested records included."""
        yield from _walk(self.fields, "")

    def find(self, path: str) -> FieldSpec | None:
        return next((spec for name, spec in self.walk() if name == path), None)


@dataclass(frozen=True)
class ContractSet:
    """Contracts by topic and by record name."""

    by_topic: Mapping[str, Contract]
    by_name: Mapping[str, Contract]

    def __iter__(self) -> Iterator[Contract]:
        return iter(self.by_name.values())


def _walk(fields: Iterable[FieldSpec], prefix: str) -> Iterator[tuple[str, FieldSpec]]:
    for spec in fields:
        yield prefix + spec.name, spec
        yield from _walk(spec.fields, f"{prefix}{spec.name}.")


class _Reader:
    """Reads attributes of the right kind and notes each that is not."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []

    def note(self, at: str, what: str, hint: str = "") -> None:
        self.problems.append(Problem(self.file, at, what, hint))

    def text(self, raw: Mapping[str, Any], name: str, at: str = "", *, required: bool = False) -> str:
        value = raw.get(name)
        if value is None and not required:
            return ""
        if not isinstance(value, str) or (required and not value.strip()):
            self.note(at + name, "missing" if value is None else "must be a text that is not empty")
            return ""
        return value

    def texts(self, raw: Mapping[str, Any], name: str, at: str = "") -> tuple[str, ...]:
        value = raw.get(name, [])
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            self.note(at + name, "must be a list of texts")
            return ()
        return tuple(value)

    def duration(self, raw: Mapping[str, Any], name: str) -> float | None:
        if raw.get(name) is None:
            return None
        try:
            return parse_duration(raw[name])
        except ContractError as e:
            self.note(name, e.what, e.hint)
            return None

    def ratio(self, value: object, at: str) -> float | None:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", value) if isinstance(value, str) else None
        if value is not None and (match is None or float(match[1]) > 100):
            self.note(at, f"{value!r} is not a percentage", "write 1% or 0.5%")
            return None
        return float(match[1]) / 100 if match else None

    def thresholds(self, raw: Mapping[str, Any]) -> dict[str, Threshold]:
        value = raw.get("thresholds", {})
        if not isinstance(value, dict):
            self.note("thresholds", 'must be like {"quarantined": "1%"}')
            return {}
        out = {}
        for name, limit in value.items():
            at = f"thresholds.{name}"
            if name not in ("quarantined", "dropped"):
                self.note(at, "no such measure", "write quarantined or dropped")
            parts = limit if isinstance(limit, dict) else {"alert": limit}
            for part in parts.keys() - {"alert", "stop"}:
                self.note(f"{at}.{part}", "no such level", "write alert or stop")
            out[name] = Threshold(
                self.ratio(parts.get("alert"), f"{at}.alert"), self.ratio(parts.get("stop"), f"{at}.stop")
            )
        return out

    def storage(self, raw: Mapping[str, Any], *, cdc: bool, derived: bool) -> Storage | None:
        value = raw.get("storage")
        if value is None:
            return None
        if not isinstance(value, dict):
            self.note("storage", 'must be like {"table": "silver.readings"}')
            return None
        mode = value.get("mode", "current" if cdc and raw.get("key") else "append")
        if mode not in MODES:
            self.note("storage.mode", f"{mode!r} is not a mode", "write " + ", ".join(MODES))
            mode = "append"
        partition = []
        for text in self.texts(value, "partition", "storage."):
            match = _PARTITION.fullmatch(text.strip())
            if match is None:
                self.note(
                    "storage.partition", f"{text!r} does not parse", "write day(field), bucket(16, field) or field"
                )
            elif match[6]:
                partition.append(PartitionField(match[6], "identity"))
            elif match[1]:
                partition.append(PartitionField(match[2], match[1]))  # type: ignore[arg-type]
            else:
                partition.append(PartitionField(match[5], match[3], int(match[4])))  # type: ignore[arg-type]
        table = self.text(value, "table", "storage.", required=cdc or derived)
        sort, history = self.texts(value, "sort", "storage."), self.text(value, "history", "storage.")
        nested = [name for name in sort if "." in name]
        for name in nested:
            self.note("storage.sort", f"{name} is inside of another field: sort takes top-level fields")
        top = tuple(name for name in sort if name not in nested)
        return Storage(table, tuple(partition), mode, top, history)

    def field(self, raw: Any, named: Mapping[str, Any], inside: tuple[str, ...]) -> FieldSpec | None:
        prefix = "".join(f"{name}." for name in inside)
        if not isinstance(raw, dict) or not isinstance(raw.get("name"), str) or "type" not in raw:
            self.note(prefix + "fields", "each must be an object with a name and a type")
            return None
        at = f"{prefix}{raw['name']}."
        branches = raw["type"] if isinstance(raw["type"], list) else [raw["type"]]
        others = [named.get(b, b) if isinstance(b, str) else b for b in branches if b != "null"]
        avro: Any = others[0] if len(others) == 1 else others
        children: list[FieldSpec | None] = []
        # A record may contain itself: nobody nests deeper than this on purpose.
        if isinstance(avro, dict) and avro.get("type") == "record" and len(inside) < 16:
            children = [self.field(f, named, (*inside, raw["name"])) for f in avro["fields"]]
        return FieldSpec(
            name=raw["name"],
            avro=avro,
            nullable="null" in branches,
            doc=self.text(raw, "doc", at),
            rules=self.texts(raw, "rules", at),
            pii=self.text(raw, "pii", at) or None,
            subject=self.text(raw, "subject", at) or None,
            unit=self.text(raw, "unit", at) or None,
            aliases=self.texts(raw, "aliases", at),
            has_default="default" in raw,
            default=raw.get("default"),
            fields=tuple(c for c in children if c is not None),
        )


def read_contract(path: Path) -> tuple[Contract | None, list[Problem]]:
    """The contract in a file and what is wrong with the form of the file; None when it cannot be one."""
    reader = _Reader(str(path))
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        reader.note("", f"cannot be read: {e}")
        return None, reader.problems
    return parse_contract(raw, path, reader)


def parse_contract(raw: Any, path: Path, reader: _Reader | None = None) -> tuple[Contract | None, list[Problem]]:
    """The same for a schema that is already in memory."""
    reader = reader or _Reader(str(path))
    if not isinstance(raw, dict) or raw.get("type") != "record" or not isinstance(raw.get("fields"), list):
        reader.note("", "is not an Avro record", 'write {"type": "record", "name": ..., "fields": [...]}')
        return None, reader.problems
    named: dict[str, Any] = {}
    try:
        parse_schema(json.loads(json.dumps(raw)), named_schemas=named)
    except (SchemaParseException, UnknownType, KeyError, TypeError, ValueError) as e:
        reader.note("", f"is not a valid Avro schema: {type(e).__name__}: {e}")
        return None, reader.problems
    # References may leave out the namespace that they share with the record around them.
    named = {name.rpartition(".")[2]: schema for name, schema in named.items()} | named
    envelope = reader.text(raw, "envelope") or None
    storage_mode = raw["storage"].get("mode") if isinstance(raw.get("storage"), dict) else None
    if envelope is None and storage_mode == "current":
        envelope = "debezium"
    fields = [reader.field(f, named, ()) for f in raw["fields"]]
    contract = Contract(
        path=path,
        name=reader.text(raw, "name", required=True),
        namespace=reader.text(raw, "namespace"),
        doc=reader.text(raw, "doc"),
        owner=reader.text(raw, "owner", required=True),
        topic=reader.text(raw, "topic", required=True),
        key=reader.texts(raw, "key"),
        event_time=reader.text(raw, "event_time") or None,
        freshness=reader.duration(raw, "freshness"),
        retention=reader.duration(raw, "retention"),
        storage=reader.storage(raw, cdc=envelope is not None, derived=bool(raw.get("derived_from"))),
        thresholds=reader.thresholds(raw),
        derived_from=reader.texts(raw, "derived_from"),
        rules=reader.texts(raw, "rules"),
        envelope=envelope,
        fields=tuple(f for f in fields if f is not None),
        avro=raw,
    )
    return contract, reader.problems


def load_contract(path: Path) -> Contract:
    """Raises `ContractError` with the first thing that is wrong with the form of the file."""
    contract, problems = read_contract(path)
    if problems or contract is None:
        raise problems[0].error()
    return contract


def contract_files(folders: Iterable[Path]) -> list[Path]:
    """The contract files of content folders and the built-in ones, each once, in a fixed order."""
    found = [path for folder in folders for path in sorted((folder / FOLDER).glob("*.avsc"))]
    return [*{path.resolve(): path for path in [*sorted(BUILTIN.glob("*.avsc")), *found]}.values()]


def load_contracts(folders: Iterable[Path]) -> ContractSet:
    """Built-in contracts and those of the content folders.

    Raises `ContractError` when a file is malformed, or when two claim one topic or one name.
    """
    by_topic: dict[str, Contract] = {}
    by_name: dict[str, Contract] = {}
    for path in contract_files(folders):
        contract = load_contract(path)
        for known, key, what in ((by_topic, contract.topic, "topic"), (by_name, contract.name, "name")):
            if key in known:
                raise ContractError(f"{what} {key} is already that of {known[key].path}", where=str(path))
            known[key] = contract
    return ContractSet(by_topic, by_name)
