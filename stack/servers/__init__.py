"""One file a server; this is the list of them."""

from __future__ import annotations

from stack.servers import artemis, connect, kafka, mariadb, postgres, redis, registry, seaweedfs
from stack.spec import Server

SERVERS: dict[str, Server] = {
    server.name: server
    for server in (
        postgres.SERVER,
        kafka.SERVER,
        redis.SERVER,
        artemis.SERVER,
        registry.SERVER,
        connect.SERVER,
        mariadb.SERVER,
        seaweedfs.SERVER,
    )
}
DEFAULT = ("postgres", "kafka", "redis", "artemis", "registry", "connect")
