"""The bridge without a broker."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import connectors.mqtt
from connectors.mqtt import Bridge
from headrace.config import Settings


async def test_messages_that_no_acknowledgement_holds_back_do_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connectors.mqtt, "IN_FLIGHT", 3)
    bridge = Bridge(Settings(home=tmp_path, content=[]), {}, "test")

    def arrives(number: int, qos: int) -> None:
        message: Any = SimpleNamespace(mid=number, qos=qos, topic="a", payload=b"x")
        bridge._on_message(bridge._client, None, message)

    for number in range(5):
        arrives(number, 0)
    arrives(9, 1)
    assert [message.id for message in bridge._inbox.take(10)] == [0, 1, 2, 9]
