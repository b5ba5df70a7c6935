"""An Avro schema as a tree: names resolved, every node knows its place.

References to named types are inlined, so a node means the same wherever it is read and a path such as `after.amount`
names it in reasons and errors. A type that contains itself has no tree and is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.errors import ContractError

Schema = Mapping[str, Any] | list[Any] | str

PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})
NO_DEFAULT: Any = object()
# References multiply (a record of two Bs, each of two Cs, ...): a small schema could name more nodes than memory holds.
MAX_NODES = 20_000


@dataclass(frozen=True)
class Field:
    """A field of a record. `default` is `NO_DEFAULT` where the schema gives none."""

    name: str
    node: Node
    default: Any = NO_DEFAULT
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Node:
    """One type in its place.

    `kind` is a primitive's name or record, enum, fixed, array, map, union. `attributes` holds everything that the
    schema says beside the type (logicalType, connect.name, precision, ...). `items` is the item of an array or the
    value of a map.
    """

    kind: str
    path: str
    name: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    fields: tuple[Field, ...] = ()
    branches: tuple[Node, ...] = ()
    items: Node | None = None
    symbols: tuple[str, ...] = ()
    size: int = 0

    @property
    def null_index(self) -> int:
        """Position of null among a union's branches, -1 without."""
        return next((i for i, branch in enumerate(self.branches) if branch.kind == "null"), -1)

    @property
    def optional(self) -> Node | None:
        """T of a union of null and T, else None."""
        if len(self.branches) != 2 or self.null_index < 0:
            return None
        inner = self.branches[1 - self.null_index]
        return None if inner.kind == "null" else inner

    @property
    def minimum_size(self) -> int:
        """The fewest bytes that a value of this type is encoded in."""
        if self.kind == "record":
            return sum(f.node.minimum_size for f in self.fields)
        return {"null": 0, "float": 4, "double": 8, "fixed": self.size}.get(self.kind, 1)


def standalone(node: Node) -> Schema:
    """The schema of a node alone, with what its references name written out."""
    if node.kind == "union":
        return [standalone(branch) for branch in node.branches]
    out = {**node.attributes, "type": node.kind}
    if node.name:
        out |= {"name": node.name, "namespace": node.name.rpartition(".")[0]}
    if node.kind == "record":
        said = zip(node.attributes["fields"], node.fields, strict=True)
        out["fields"] = [{**field, "type": standalone(f.node)} for field, f in said]
    if node.items is not None:
        out["items" if node.kind == "array" else "values"] = standalone(node.items)
    return out


def canonical(schema: Schema) -> str:
    """The schema as text that is the same for equal schemas, whatever the order of their keys."""
    return json.dumps(schema, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def parse(schema: Schema) -> Node:
    """The tree of a schema whose root is a record.

    Any other root is taken as a record with the single field `value`, which has the same bytes.
    Raises `ContractError` naming the path for a malformed, recursive or unreasonably large schema.
    """
    root = _Parser().node(schema, "", "", ())
    return root if root.kind == "record" else Node("record", "", fields=(Field("value", root),))


class _Parser:
    def __init__(self) -> None:
        self.named: dict[str, tuple[Mapping[str, Any], str]] = {}
        self.count = 0

    def node(self, schema: Any, path: str, namespace: str, inside: tuple[str, ...]) -> Node:
        self.count += 1
        if self.count > MAX_NODES:
            raise ContractError(f"the schema has more than {MAX_NODES} types", where=path)
        if isinstance(schema, str):
            return self._reference(schema, path, namespace, inside)
        if isinstance(schema, list):
            branches = tuple(self.node(branch, path, namespace, inside) for branch in schema)
            if any(branch.kind == "union" for branch in branches) or not branches:
                raise ContractError("a union must have branches that are no unions", where=path)
            return Node("union", path, branches=branches)
        if not isinstance(schema, Mapping) or "type" not in schema:
            raise ContractError("not an Avro type", where=path)
        kind = schema["type"]
        if not isinstance(kind, str) or kind not in PRIMITIVES | {"record", "error", "enum", "fixed", "array", "map"}:
            return self.node(kind, path, namespace, inside)
        if kind in PRIMITIVES:
            return Node(kind, path, attributes=schema)
        if kind in ("array", "map"):
            return self._repeated(kind, schema, path, namespace, inside)
        return self._define(kind, schema, path, namespace, inside)

    def _reference(self, name: str, path: str, namespace: str, inside: tuple[str, ...]) -> Node:
        if name in PRIMITIVES:
            return Node(name, path)
        full = name if "." in name or not namespace else f"{namespace}.{name}"
        found = self.named.get(full) or self.named.get(name)
        if found is None:
            raise ContractError(f"unknown type {name}", where=path)
        schema, defined_in = found
        return self._build(schema["type"], schema, path, defined_in, inside)

    def _repeated(self, kind: str, schema: Mapping[str, Any], path: str, ns: str, inside: tuple[str, ...]) -> Node:
        of = "items" if kind == "array" else "values"
        if of not in schema:
            raise ContractError(f"{kind} without {of}", where=path)
        items = self.node(schema[of], f"{path}[]", ns, inside)
        if kind == "array" and items.minimum_size == 0:
            raise ContractError("an array of items that take no bytes can claim any length", where=path)
        return Node(kind, path, attributes=schema, items=items)

    def _define(self, kind: str, schema: Mapping[str, Any], path: str, ns: str, inside: tuple[str, ...]) -> Node:
        name = schema.get("name")
        if not isinstance(name, str) or not name:
            raise ContractError(f"{kind} without a name", where=path)
        space = name.rpartition(".")[0] or schema.get("namespace", ns) or ""
        full = name if "." in name or not space else f"{space}.{name}"
        # A definition is met again where a reference to what encloses it is inlined.
        named = {**schema, "name": full}
        if self.named.setdefault(full, (named, space))[0] != named:
            raise ContractError(f"{full} is defined twice", where=path)
        return self._build(kind, self.named[full][0], path, space, inside)

    def _build(self, kind: str, schema: Mapping[str, Any], path: str, ns: str, inside: tuple[str, ...]) -> Node:
        name = schema["name"]
        try:
            if kind == "enum":
                return Node("enum", path, name, schema, symbols=tuple(schema["symbols"]))
            if kind == "fixed":
                return Node("fixed", path, name, schema, size=int(schema["size"]))
            if name in inside:
                raise ContractError(f"{name} contains itself: recursive types have no columns", where=path)
            inside = (*inside, name)
            fields = tuple(
                Field(
                    f["name"],
                    self.node(f["type"], f"{path}.{f['name']}" if path else f["name"], ns, inside),
                    f.get("default", NO_DEFAULT),
                    tuple(f.get("aliases", ())),
                )
                for f in schema["fields"]
            )
        except (KeyError, TypeError, ValueError) as e:
            raise ContractError(f"malformed {kind} {name}: {e!r}", where=path) from e
        if len({f.name for f in fields}) != len(fields):
            raise ContractError(f"{name} names a field twice", where=path)
        return Node("record", path, name, schema, fields=fields)
