"""What changed between the schemas that a topic's writers had, one version after the other, and since a contract.

Of change events the row counts, not the envelope around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from schemas.avro import NO_DEFAULT, Node, parse
from schemas.envelope import is_envelope, row_schema
from schemas.names import subject
from schemas.registry import Registry

Part = Literal["key", "value"]


@dataclass(frozen=True)
class Difference:
    """A field, by its dotted path, with its type before and after; None where it is not there."""

    at: str
    was: str | None
    now: str | None

    @property
    def change(self) -> str:
        return "added" if self.was is None else "removed" if self.now is None else "changed"


@dataclass(frozen=True)
class Step:
    """A version of a subject and what it changed; `created` in ISO 8601, None where the registry does not say."""

    part: Part
    version: int
    id: int
    created: str | None
    differences: list[Difference]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """Fields that differ, those of `new` first. Raises `ContractError` when one is not an Avro schema."""
    before, after = (dict(_fields(parse(dict(_row(schema))), "")) for schema in (old, new))
    names = [*after, *(name for name in before if name not in after)]
    return [Difference(n, before.get(n), after.get(n)) for n in names if before.get(n) != after.get(n)]


def history(registry: Registry, topic: str) -> list[Step]:
    """Every version of the topic's key and value that changed a field, oldest first; nothing for an unknown topic.

    Raises `UnavailableError`.
    """
    steps: list[Step] = []
    parts: tuple[Part, ...] = ("key", "value")
    for part in parts:
        name = subject(topic, part)
        numbers = registry.versions(name)
        created = registry.created(name) if numbers else {}
        before: dict[str, Any] | None = None
        for number in numbers:
            version = registry.version(name, number)
            changed = differences(before or {"type": "record", "name": "Nothing", "fields": []}, version.schema)
            if changed or before is None:
                steps.append(Step(part, number, version.id, created.get(number), changed))
            before = version.schema
    return sorted(steps, key=lambda step: (step.created or "", step.id))


def _row(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    return row_schema(schema) if is_envelope(schema) else schema


def _fields(node: Node, path: str) -> Iterator[tuple[str, str]]:
    if node.kind == "record":
        for field in node.fields:
            at = f"{path}.{field.name}" if path else field.name
            text = _text(field.node)
            yield at, text if field.default in (NO_DEFAULT, None) else f"{text}, default {field.default!r}"
            yield from _fields(field.node, at)
    elif node.items is not None:
        yield from _fields(node.items, f"{path}[]")
    else:
        for branch in node.branches:
            yield from _fields(branch, path)


def _text(node: Node) -> str:
    if node.kind == "union":
        kinds = [_text(branch) for branch in node.branches if branch.kind != "null"]
        return " or ".join(kinds) + (", nullable" if node.null_index >= 0 else "")
    if node.kind in ("array", "map") and node.items is not None:
        return f"{node.kind} of {_text(node.items)}"
    said = node.attributes
    if said.get("logicalType") == "decimal":
        return f"decimal({said.get('precision')}, {said.get('scale', 0)})"
    if node.kind == "enum":
        return f"enum of {', '.join(node.symbols)}"
    meaning = said.get("connect.name") or said.get("logicalType")
    if labels := (said.get("connect.parameters") or {}).get("allowed"):
        meaning = f"{meaning} of {labels}"
    # The name that Connect gives a record says nothing about its values.
    return f"{node.kind} ({str(meaning).rpartition('.')[2]})" if meaning and node.kind != "record" else node.kind
