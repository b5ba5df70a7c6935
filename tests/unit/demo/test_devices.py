from __future__ import annotations

from collections import Counter, defaultdict
from random import Random

import orjson

from demo.devices import Device
from demo.model import fleet


def test_readings_are_as_imperfect_as_said_and_sequences_only_grow() -> None:
    devices = [Device(unit, Random(i), 1000) for i, unit in enumerate(fleet(20, 10, 1))]
    kinds: Counter[str] = Counter()
    sequences: dict[str, list[int]] = defaultdict(list)
    for second in range(1500):
        for device in devices:
            for kind, topic, payload in device.publish(1.7e9 + second):
                kinds[kind] += 1
                if kind in ("reading", "late"):
                    reading = orjson.loads(payload)
                    assert topic == f"coldchain/{reading['device_id']}/reading"
                    sequences[reading["device_id"]].append(reading["seq"])
    assert set(kinds) == {"reading", "late", "repeated", "malformed", "out_of_range", "unknown"}
    assert kinds["reading"] > 0.9 * kinds.total() - kinds["late"]
    for numbers in sequences.values():
        assert numbers == sorted(set(numbers)), "what a unit kept is sent before anything newer"
