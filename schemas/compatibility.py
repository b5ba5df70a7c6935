"""What a new version of a contract breaks for those who hold data or code made for the released one.

Stricter than Avro's own resolution, which only asks whether a new reader reads old records: tables must be able to
follow the change too (Iceberg widens int to long, float to double and decimals, nothing else), code written for the
released version must find the fields it relies on, and keys, event time, units and places must keep their meaning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from schemas.avro import NO_DEFAULT, Field, Node, parse

_WIDER = {("int", "long"), ("float", "double")}
_SAME = {
    "topic": "readers look for its records there",
    "key": "rows are found again by it",
    "event_time": "windows are cut by it",
    "envelope": "its records would mean something else",
}


@dataclass(frozen=True)
class Breaking:
    """One breaking change. `at` is the field's dotted path or the contract's attribute."""

    at: str
    what: str
    hint: str = ""


def breaking_changes(released: Mapping[str, Any], current: Mapping[str, Any]) -> list[Breaking]:
    """All breaking changes between two versions of a contract, [] when `current` can be released.

    Raises `ContractError` when one of them is not an Avro schema.
    """
    return [*_attributes(released, current), *_types(parse(dict(released)), parse(dict(current)), "")]


def _attributes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Breaking]:
    for name, why in _SAME.items():
        if (old.get(name) or None) != (new.get(name) or None):
            yield Breaking(name, f"was {old.get(name)}, is {new.get(name)}", why)
    before, after = old.get("storage") or {}, new.get("storage") or {}
    for name in ("table", "mode", "history"):
        # A table may be added to a contract that had none.
        if before.get(name) and before[name] != after.get(name):
            yield Breaking(
                f"storage.{name}", f"was {before[name]}, is {after.get(name)}", "queries look for rows there"
            )


def _types(old: Node, new: Node, path: str) -> Iterator[Breaking]:
    if old.kind == "union" or new.kind == "union":
        yield from _unions(old, new, path)
        return
    if old.kind != new.kind and (old.kind, new.kind) not in _WIDER:
        yield Breaking(path, f"was {old.kind}, is {new.kind}", "tables can widen int to long and float to double only")
        return
    if old.name and _short(old) != _short(new) and _short(old) not in new.attributes.get("aliases", []):
        yield Breaking(path, f"the {old.kind} was named {_short(old)}, is {_short(new)}", "add the old name to aliases")
    yield from _meaning(old, new, path)
    if old.kind == "record":
        yield from _fields(old, new, path)
    if old.kind == "enum":
        for symbol in old.symbols:
            if symbol not in new.symbols:
                yield Breaking(path, f"symbol {symbol} is gone", "records that carry it would not decode")
    if old.kind == "fixed" and old.size != new.size:
        yield Breaking(path, f"was {old.size} bytes, is {new.size}")
    if old.items is not None and new.items is not None:
        yield from _types(old.items, new.items, f"{path}[]")


def _unions(old: Node, new: Node, path: str) -> Iterator[Breaking]:
    if old.null_index >= 0 and not (new.null_index >= 0 or new.kind == "null"):
        yield Breaking(path, "was nullable, is not", "records without a value would not decode")
    branches, others = _branches(old), _branches(new)
    if len(branches) == len(others) == 1:
        yield from _types(branches[0], others[0], path)
        return
    for branch in branches:
        if any(not list(_types(branch, other, path)) for other in others):
            continue
        yield Breaking(path, f"{_short(branch) or branch.kind} is no longer one of its types")
    if len(branches) == 1 < len(others):
        yield Breaking(path, "was one type, is several", "its column would become a record")


def _branches(node: Node) -> list[Node]:
    return [b for b in node.branches if b.kind != "null"] if node.kind == "union" else [node]


def _meaning(old: Node, new: Node, path: str) -> Iterator[Breaking]:
    before, after = old.attributes, new.attributes
    for name in ("logicalType", "connect.name"):
        # The name that Connect gives a whole record says nothing about its values.
        if old.kind != "record" and before.get(name) != after.get(name):
            yield Breaking(path, f"{name} was {before.get(name)}, is {after.get(name)}")
    if before.get("logicalType") == after.get("logicalType") == "decimal":
        if before.get("scale", 0) != after.get("scale", 0):
            yield Breaking(path, f"scale was {before.get('scale', 0)}, is {after.get('scale', 0)}")
        if before.get("precision", 0) > after.get("precision", 0):
            yield Breaking(path, f"precision was {before.get('precision')}, is {after.get('precision')}")


def _fields(old: Node, new: Node, path: str) -> Iterator[Breaking]:
    said_old, said_new = ({f["name"]: f for f in node.attributes["fields"]} for node in (old, new))
    before = {f.name: f for f in old.fields}
    followed: set[str] = set()
    added: list[Field] = []
    for field in new.fields:
        at = f"{path}.{field.name}" if path else field.name
        names = [field.name, *said_new[field.name].get("aliases", [])]
        name = next((n for n in names if n in before and n not in followed), None)
        if name is None:
            added.append(field)
            if field.default is NO_DEFAULT:
                yield Breaking(at, "added without a default", "records written before have no value for it")
            continue
        followed.add(name)
        unit, now = said_old[name].get("unit"), said_new[field.name].get("unit")
        if unit and unit != now:
            yield Breaking(at, f"unit was {unit}, is {now}", "old and new values would be mixed: add a field instead")
        yield from _types(before[name].node, field.node, at)
    for field in old.fields:
        if field.name in followed or field.default is not NO_DEFAULT:
            continue
        twin = next((f.name for f in added if not list(_types(field.node, f.node, ""))), None)
        hint = f'if {twin} is its new name, give {twin} "aliases": ["{field.name}"]' if twin else ""
        at = f"{path}.{field.name}" if path else field.name
        yield Breaking(at, "removed, and had no default", hint or "code made for the released version reads it")


def _short(node: Node) -> str:
    return node.name.rpartition(".")[2]
