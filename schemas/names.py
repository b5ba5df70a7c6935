"""How names follow from a topic: its table and its registry subjects."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

# Through it connectors are told to read tables again; its rows are nobody's data.
SIGNAL_TABLE = "headrace_signal"

NAMESPACES = ("bronze", "silver", "gold", "ops")


def table_name(namespace: str, topic: str) -> str:
    """`("bronze", "shop.public.orders")` -> `bronze.shop_public_orders`."""
    return f"{namespace}.{re.sub(r'[^A-Za-z0-9]', '_', topic)}"


def prefix_of(topic: str, prefixes: Iterable[str]) -> str | None:
    """Which of these `topic.prefix`es the connector has whose table's changes a topic holds, that is named
    `<prefix>.<schema>.<table>`; None for all other topics, signals among them. Where one prefix begins with another,
    the longer one has the topics of both."""
    prefix = max((p for p in prefixes if topic.startswith(f"{p}.")), key=len, default=None)
    if prefix is None or topic.endswith(f".{SIGNAL_TABLE}") or topic.count(".") < prefix.count(".") + 2:
        return None
    return prefix


def is_topic_of(topic: str, table: str) -> bool:
    """Whether a change topic is that of a table, given as `schema.table`: Debezium writes each character (of Java's, of
    which some signs are two) that a topic may not have as `_`."""
    name = re.sub(r"[^A-Za-z0-9._-]", lambda sign: "_" * (len(sign[0].encode("utf-16-le")) // 2), table)
    return f".{topic}".endswith(f".{name}")


def field_name(column: str) -> str:
    """The field that holds a column in change events, with Debezium's `field.name.adjustment.mode` `avro`: each
    character (of Java's) that a name in Avro may not have is `_`, and one goes before a digit at its beginning."""
    adjusted = re.sub(r"[^A-Za-z0-9_]", lambda sign: "_" * (len(sign[0].encode("utf-16-le")) // 2), column)
    return re.sub(r"^(?=[0-9])", "_", adjusted)


def is_schema_of(topic: str, name: str) -> bool:
    """Whether an Avro record, by its full name, is one of those that Debezium describes the events of a change topic
    with: the topic is its namespace. There, a sign that Avro's names may not have is `_` or, told by its number,
    `_u002d`, and before a digit at the beginning is `_`."""
    space, _, _ = name.rpartition(".")
    return _plain(space) == _plain(topic)


def _plain(name: str) -> str:
    return re.sub(r"_u[0-9a-f]{4}|[^A-Za-z0-9]", "_", name).lstrip("_")


def subject(topic: str, part: Literal["value", "key"]) -> str:
    """The registry subject of a topic's values or keys (TopicNameStrategy)."""
    return f"{topic}-{part}"
