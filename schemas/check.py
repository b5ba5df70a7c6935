"""Everything that is wrong with contracts, with file and field: what CI and `headrace contract check` report.

`read_contract` has said what keeps a file from being a contract; here is what would make one mean nothing, or
something else than its author thinks, and what breaks its released version.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import ContractError
from schemas.avro import NO_DEFAULT, Node, parse, standalone
from schemas.clashes import clashes
from schemas.codec.defaults import default_array
from schemas.compatibility import breaking_changes
from schemas.contracts import Contract, FieldSpec, PartitionField, Problem, contract_files, read_contract
from schemas.names import NAMESPACES
from schemas.release import read_released, released_files, released_path
from schemas.rules import iterate_rules
from schemas.types import arrow_schema, iceberg_arrow

PLACEHOLDER = "FILL IN"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_NUMBERS = ("int", "long", "float", "double")
_CONTRACT_ATTRIBUTES = (
    *("type", "name", "namespace", "doc", "aliases", "fields", "owner", "topic", "key", "event_time", "freshness"),
    *("retention", "storage", "thresholds", "derived_from", "rules", "envelope", "mqtt", "suggestions"),
)
_FIELD_ATTRIBUTES = (
    *("name", "type", "doc", "default", "aliases", "order", "rules", "pii", "subject", "unit", "suggestions"),
)
_TYPE_ATTRIBUTES = (
    *("type", "name", "namespace", "doc", "aliases", "fields", "symbols", "default", "items", "values", "size"),
    *("logicalType", "precision", "scale"),
)
_LOGICAL_TYPES = (
    *("decimal", "uuid", "date", "time-millis", "time-micros", "duration", "timestamp-millis", "timestamp-micros"),
    *("timestamp-nanos", "local-timestamp-millis", "local-timestamp-micros", "local-timestamp-nanos"),
)


@dataclass(frozen=True)
class Report:
    """The contracts that could be read and all problems, in the order of the files."""

    contracts: tuple[Contract, ...]
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(p for p in self.problems if p.severity == "error")


def check_folders(folders: Iterable[Path]) -> Report:
    """Check the built-in contracts and those of the content folders, each alone and against the others."""
    folders = list(folders)
    contracts: list[Contract] = []
    problems: list[Problem] = []
    for path in contract_files(folders):
        contract, found = read_contract(path)
        problems += found
        if contract is not None:
            problems += check_contract(contract)
            contracts.append(contract)
    problems += clashes(contracts)
    known = {released_path(c).resolve() for c in contracts}
    problems += [
        Problem(str(path), "", "is the released version of no contract", "delete it to retire the contract")
        for path in released_files(folders)
        if path.resolve() not in known
    ]
    return Report(tuple(contracts), tuple(dict.fromkeys(problems)))


def check_contract(contract: Contract) -> list[Problem]:
    """What is wrong with one contract that could be read, its released version included."""
    checker = _Checker(contract)
    try:
        checker.tree = parse(contract.avro)
        iceberg_arrow(arrow_schema(contract.avro))
    except ContractError as e:
        checker.note(e.where, e.what, e.hint)
        return checker.problems
    for step in (
        checker.names,
        checker.attributes,
        checker.fields,
        checker.references,
        checker.table,
        checker.derived,
        checker.rules,
        checker.released,
    ):
        step()
    return checker.problems


class _Checker:
    tree: Node

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.problems: list[Problem] = []

    def note(self, at: str, what: str, hint: str = "") -> None:
        self.problems.append(Problem(str(self.contract.path), at, what, hint))

    def warn(self, at: str, what: str, hint: str = "") -> None:
        self.problems.append(Problem(str(self.contract.path), at, what, hint, "warning"))

    def top(self, name: str) -> FieldSpec | None:
        return next((f for f in self.contract.fields if f.name == name), None)

    def missing(self, at: str, name: str) -> None:
        known = [path for path, _ in self.contract.walk()]
        close = difflib.get_close_matches(name, known, 1)
        self.note(at, f"no field {name}", f"did you mean {close[0]}?" if close else "known are " + ", ".join(known))

    def names(self) -> None:
        contract = self.contract
        if contract.name and not _NAME.fullmatch(contract.name):
            self.note("name", f"{contract.name!r} is not a name", "letters, digits and _, not a digit first")
        if contract.namespace and not all(_NAME.fullmatch(p) for p in contract.namespace.split(".")):
            self.note("namespace", f"{contract.namespace!r} is not a namespace", "names joined by dots")
        if contract.topic and (not _TOPIC.fullmatch(contract.topic) or contract.topic in (".", "..")):
            self.note("topic", f"{contract.topic!r} is not a topic name", "letters, digits, . _ -, at most 249")
        if not contract.doc:
            self.warn("doc", "missing", "say in a sentence what one record is")
        for path, spec in contract.walk():
            if not _NAME.fullmatch(spec.name):
                self.note(path, f"{spec.name!r} is not a name", "letters, digits and _, not a digit first")
            elif spec.name.startswith("_") and path == spec.name:
                self.note(path, "names with _ first are Headrace's columns", "rename the field")
        lower: dict[str, str] = {}
        for path, _ in contract.walk():
            other = lower.setdefault(path.lower(), path)
            if other is not path:
                self.note(path, f"differs from {other} by case alone", "SQL engines take them for one")

    def attributes(self) -> None:
        raw = self.contract.avro
        self._known(raw, _CONTRACT_ATTRIBUTES, "")
        if isinstance(raw.get("storage"), dict):
            self._known(raw["storage"], ("table", "partition", "mode", "sort", "history"), "storage.")
        mqtt = raw.get("mqtt", [])
        if not isinstance(mqtt, list) or not all(isinstance(text, str) and text for text in mqtt):
            self.note("mqtt", "must be a list of MQTT topic filters", 'write ["coldchain/+/reading"]')
        for at, text in [("doc", self.contract.doc), ("owner", self.contract.owner)]:
            self._filled(at, text)
        if raw.get("suggestions"):
            self.warn("suggestions", f"{raw['suggestions']}", "take over what is right, delete the attribute")
        for field in raw["fields"]:
            self._field_attributes(field, "")

    def _field_attributes(self, field: Any, prefix: str) -> None:
        at = f"{prefix}{field['name']}"
        self._known(field, _FIELD_ATTRIBUTES, f"{at}.")
        self._filled(f"{at}.doc", field.get("doc"))
        if field.get("suggestions"):
            self.warn(f"{at}.suggestions", f"{field['suggestions']}", "take over what is right, delete the attribute")
        self._type_attributes(field["type"], at)

    def _type_attributes(self, kind: Any, at: str) -> None:
        for branch in kind if isinstance(kind, list) else [kind]:
            if not isinstance(branch, dict):
                continue
            self._known(branch, _TYPE_ATTRIBUTES, f"{at}.type.")
            logical = branch.get("logicalType")
            if logical is not None and logical not in _LOGICAL_TYPES:
                self.note(
                    f"{at}.type.logicalType", f"no logical type {logical}", _suggest(str(logical), _LOGICAL_TYPES)
                )
            for inner in (branch.get("items"), branch.get("values"), branch["type"]):
                self._type_attributes(inner, at)
            for field in branch.get("fields", []):
                self._field_attributes(field, f"{at}.")

    def _known(self, raw: dict[str, Any], known: Iterable[str], at: str) -> None:
        for name in raw:
            if name not in known and "." not in name:
                hint = _suggest(name, known) or "attributes of others have a dot in their name"
                self.note(f"{at}{name}", "unknown attribute", hint)

    def _filled(self, at: str, text: object) -> None:
        if isinstance(text, str) and text.startswith(PLACEHOLDER):
            self.note(at, "still to be filled in")

    def fields(self) -> None:
        for path, spec in self.contract.walk():
            if spec.unit and (spec.type not in _NUMBERS or spec.logical) and spec.logical != "decimal":
                self.note(f"{path}.unit", f"a unit on {spec.logical or spec.type}", "only numbers have units")
            if spec.subject and self.contract.find(spec.subject) is None:
                self.missing(f"{path}.subject", spec.subject)
            if spec.pii and not spec.subject:
                self.warn(
                    f"{path}.pii", "no subject", "name the field that says whose data it is, or it cannot be erased"
                )
        self._defaults(self.tree)

    def _defaults(self, node: Node) -> None:
        for field in node.fields:
            if field.default is not NO_DEFAULT:
                first = field.node.branches[0] if field.node.branches else field.node
                try:
                    default_array(standalone(first), field.default)
                except ContractError as e:
                    hint = "it has the first type's form" if field.node.branches else ""
                    self.note(f"{field.node.path}.{e.where}", e.what, hint)
            self._defaults(field.node)
        for inner in (*node.branches, *filter(None, [node.items])):
            self._defaults(inner)

    def references(self) -> None:
        contract = self.contract
        for name in contract.key:
            spec = self.top(name)
            if spec is None:
                self.missing("key", name)
            elif spec.fields or spec.type in ("float", "double", "array", "map", "union"):
                self.note("key", f"{name} is {spec.type}", "keys are texts, whole numbers, times and the like")
            elif spec.nullable and contract.is_cdc:
                self.note("key", f"{name} is nullable", "a row is found again by its key")
        if len(set(contract.key)) != len(contract.key):
            self.note("key", "names a field twice")
        if contract.event_time is not None:
            spec = self.top(contract.event_time)
            if spec is None:
                self.missing("event_time", contract.event_time)
            elif not (spec.logical or "").startswith("timestamp-"):
                self.note("event_time", f"{spec.name} is {spec.logical or spec.type}", "it needs timestamp-micros")
        if contract.envelope not in (None, "debezium"):
            self.note("envelope", f"no envelope {contract.envelope!r}", "write debezium or nothing")

    def table(self) -> None:
        storage = self.contract.storage
        if storage is None:
            return
        for part in storage.partition:
            self._partition(part, self.top(part.column))
        for name in storage.sort:
            self._sort(name, self.top(name))
        if len(set(storage.sort)) != len(storage.sort):
            self.note("storage.sort", "names a field twice")
        if self.contract.is_source:
            for at in sorted(self.contract.avro["storage"].keys() & {"table", "mode", "history"}):
                self.note(
                    f"storage.{at}",
                    "means nothing for a source topic, which lands in its bronze table",
                    "remove it: a derived contract (derived_from) or one of change events (envelope) names a table",
                )
            return
        namespace, _, name = storage.table.partition(".")
        mine = NAMESPACES if self.contract.is_builtin else ("silver", "gold")
        if storage.table and (namespace not in mine or not _NAME.fullmatch(name)):
            self.note("storage.table", f"{storage.table!r} is not a place for it", f"write {' or '.join(mine)}.name")
        if storage.mode != "append" and not self.contract.key:
            self.note("storage.mode", f"{storage.mode} without a key", "rows are found again by their key")
        if storage.mode == "upsert" and self.contract.is_cdc:
            self.note("storage.mode", "upsert of change events", "write current")
        if storage.history:
            self._history(storage.history)

    def _history(self, table: str) -> None:
        at, (namespace, _, name) = "storage.history", table.partition(".")
        if not self.contract.is_cdc:
            self.note(at, "of a topic without change events", "only database tables (envelope) have a history")
        if namespace != "silver" or not _NAME.fullmatch(name):
            self.note(at, f"{table!r} is not a place for it", "write silver.name")
        for own in ("valid_from", "valid_to"):
            if self.top(own) is not None:
                self.note(at, f"the row has a field {own}, which a history has of its own")

    def _sort(self, name: str, spec: FieldSpec | None) -> None:
        if spec is None:
            self.missing("storage.sort", name)
        elif spec.fields or spec.type in ("float", "double", "array", "map", "union"):
            self.note(
                "storage.sort", f"sort by {name}, which is {spec.type}", "texts, whole numbers, times and the like"
            )

    def _partition(self, part: PartitionField, spec: FieldSpec | None) -> None:
        at = "storage.partition"
        if spec is None:
            self.missing(at, part.column)
            return
        logical = spec.logical or ""
        timed = "timestamp" in logical or (logical == "date" and part.transform != "hour")
        if part.transform in ("year", "month", "day", "hour") and not timed:
            self.note(at, f"{part.transform} of {spec.name}, which is {logical or spec.type}", "it needs a time")
        if part.transform in ("bucket", "truncate") and (spec.type in ("float", "double", "boolean") or spec.fields):
            self.note(at, f"{part.transform} of {spec.name}, which is {spec.type}")
        if part.argument == 0:
            self.note(at, f"{part.transform} by 0")
        if part.transform == "identity" and (spec.fields or spec.type in ("float", "double", "array", "map")):
            self.note(at, f"partition by {spec.name}, which is {spec.type}")
        if spec.pii:
            self.note(
                at, f"{spec.name} is personal data", "what is made of its values would stay in paths and manifests"
            )

    def derived(self) -> None:
        contract = self.contract
        if contract.topic in contract.derived_from:
            self.note("derived_from", "names its own topic")
        needed: dict[str, tuple[str, ...]] = {"source_offset": ("long",)} if contract.derived_from else {}
        if len(contract.derived_from) > 1:
            needed |= {"source_topic": ("string",), "source_partition": ("int", "long")}
        if self.top("source_index") is not None:
            needed["source_index"] = ("int", "long")
        for name, kinds in needed.items():
            spec = self.top(name)
            if spec is None or spec.type not in kinds or spec.nullable or spec.logical:
                self.note(
                    f"fields.{name}",
                    f"a derived record needs {name} as {kinds[0]}, not nullable",
                    "readers drop repeats by it",
                )

    def rules(self) -> None:
        for rule in iterate_rules(self.contract):
            if isinstance(rule, ContractError):
                at = rule.where.removeprefix(f"{self.contract.path}: ")
                self.note(at, rule.what, rule.hint)

    def released(self) -> None:
        try:
            released = read_released(self.contract)
            changes = breaking_changes(released, self.contract.avro) if released is not None else []
        except ContractError as e:
            self.note(e.where, e.what, e.hint)
            return
        for change in changes:
            self.note(change.at, f"breaks the released version: {change.what}", change.hint)


def _suggest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {close[0]}?" if close else ""
