"""How names follow from a topic: its table and its registry subjects."""

from __future__ import annotations

import re
from typing import Literal

# Through it connectors are told to read tables again; its rows are nobody's data.
SIGNAL_TABLE = "headrace_signal"

NAMESPACES = ("bronze", "silver", "gold", "ops")


def table_name(namespace: str, topic: str) -> str:
    """`("bronze", "shop.public.orders")` -> `bronze.shop_public_orders`."""
    return f"{namespace}.{re.sub(r'[^A-Za-z0-9]', '_', topic)}"


def subject(topic: str, part: Literal["value", "key"]) -> str:
    """The registry subject of a topic's values or keys (TopicNameStrategy)."""
    return f"{topic}-{part}"
