"""The demo's processes as plain data, for whoever starts and watches them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DemoProcess:
    """`entry` is `module:function`, as in `headrace run`."""

    name: str
    about: str
    entry: str
    pages: bool = False


PROCESSES = {
    process.name: process
    for process in (
        DemoProcess("shop", "changes the shop's database", "demo.shop:run"),
        DemoProcess("devices", "publishes readings over MQTT", "demo.devices:run"),
        DemoProcess("crm", "a business application with an HTTP API", "demo.crm:service", pages=True),
    )
}
