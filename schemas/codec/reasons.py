"""Why a message does not decode. A reason reads `rule` or `rule: detail`; rules are few and stable, details are not."""

from __future__ import annotations

NOT_FRAMED = "not framed"
UNKNOWN_SCHEMA = "unknown schema id"
UNSUPPORTED_SCHEMA = "unsupported schema"
INCOMPATIBLE_SCHEMA = "incompatible schema"
FORBIDDEN_NULL = "null where required"

# By the interpreter's numbers.
TEXTS = (
    "",
    "truncated",
    "trailing bytes",
    "invalid varint",
    "invalid union index",
    "invalid enum index",
    "negative length",
    "invalid item count",
    "invalid utf-8",
    "invalid boolean",
    "out of range",
    "too many digits",
    "invalid timestamp",
    "too large",
)


def reason(rule: str, detail: object = "") -> str:
    """`rule: detail`, where the detail is a field's path, a schema id or why a schema is refused. Never data."""
    return f"{rule}: {detail}" if detail != "" else rule


def rule_of(reason: str) -> str:
    """The rule of a reason: what to count by."""
    return reason.partition(":")[0]
