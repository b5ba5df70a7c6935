"""Apache Kafka: one KRaft node, broker and controller in one."""

from __future__ import annotations

import base64
import os
import subprocess
import uuid

from headrace.errors import StackError
from stack import jars, probes
from stack.spec import Endpoints, Place, Server

LOGGING = """\
status=error
rootLogger.level=warn
rootLogger.appenderRef.out.ref=out
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d{yyyy-MM-dd'T'HH:mm:ss.SSSX}{UTC} %-5p %c{1}: %m%n
logger.clients.name=org.apache.kafka.clients
logger.clients.level=error
logger.plugins.name=org.apache.kafka.connect.runtime.isolation
logger.plugins.level=error
logger.scanner.name=org.apache.kafka.connect.runtime.isolation.PluginScanner
logger.scanner.level=fatal
"""


def properties(place: Place) -> str:
    """server.properties: every replication factor is 1, and only this machine can connect."""
    address, controller = place.address("kafka"), place.address("kafka-controller")
    return "\n".join(
        [
            "process.roles=broker,controller",
            "node.id=1",
            f"controller.quorum.voters=1@{controller}",
            f"listeners=PLAINTEXT://{address},CONTROLLER://{controller}",
            f"advertised.listeners=PLAINTEXT://{address},CONTROLLER://{controller}",
            "controller.listener.names=CONTROLLER",
            "inter.broker.listener.name=PLAINTEXT",
            "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            f"log.dirs={place.data('kafka') / 'log'}",
            "num.partitions=1",
            "default.replication.factor=1",
            "min.insync.replicas=1",
            "offsets.topic.replication.factor=1",
            "offsets.topic.num.partitions=4",
            "transaction.state.log.replication.factor=1",
            "transaction.state.log.min.isr=1",
            "transaction.state.log.num.partitions=4",
            "share.coordinator.state.topic.replication.factor=1",
            "share.coordinator.state.topic.min.isr=1",
            "share.coordinator.state.topic.num.partitions=1",
            "group.initial.rebalance.delay.ms=0",
            "auto.create.topics.enable=false",
            "message.max.bytes=16777216",
            "replica.fetch.max.bytes=16777216",
            "log.segment.bytes=134217728",
            "log.retention.hours=168",
            "log.cleaner.dedupe.buffer.size=16777216",
            "num.network.threads=2",
            "num.io.threads=4",
            "background.threads=4",
            "num.recovery.threads.per.data.dir=2",
            "broker.session.timeout.ms=6000",  # after a kill the broker waits this long for its old self
            "broker.heartbeat.interval.ms=1000",
            "",
        ]
    )


def java_options(place: Place) -> list[str]:
    logging = place.data("kafka") / "log4j2.properties"
    return [f"-Dlog4j2.configurationFile={logging}", "-XX:TieredStopAtLevel=1"]


def class_path(place: Place) -> list[str]:
    return ["-cp", os.pathsep.join(map(str, jars.paths("kafka", place.cache)))]


def random_id() -> str:
    """An id of a cluster or a directory in Kafka's form, never with a dash first: its tools would take that for an
    option, as Kafka's own `Uuid.randomUuid` knows."""
    while True:
        made = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not made.startswith("-"):
            return made


def prepare(place: Place) -> None:
    folder = place.data("kafka")
    (folder / "log4j2.properties").write_text(LOGGING)
    (folder / "server.properties").write_text(properties(place))
    if (folder / "log" / "meta.properties").exists():
        return
    cluster = random_id()
    tool = [*place.java("kafka", "128m", *java_options(place)), *class_path(place), "kafka.tools.StorageTool"]
    command = [*tool, "format", "-t", cluster, "-c", str(folder / "server.properties")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise StackError(
            f"cannot format its storage: {(done.stdout + done.stderr).strip()[-300:]}", where="kafka", hint="df -h"
        )


def command(place: Place) -> list[str]:
    options = [f"-Dlog4j2.configurationFile={place.data('kafka') / 'log4j2.properties'}"]
    start = place.java("kafka", "512m", *options)
    return [*start, *class_path(place), "kafka.Kafka", str(place.data("kafka") / "server.properties")]


def endpoints(place: Place) -> Endpoints:
    return {"kafka": {"bootstrap_servers": place.address("kafka")}}


SERVER = Server(
    name="kafka",
    setting="kafka.bootstrap_servers",
    ports={"kafka": 9092, "kafka-controller": 9093},
    jars=("kafka",),
    prepare=prepare,
    command=command,
    health=lambda place: probes.kafka_ok(place.ports["kafka"]),
    endpoints=endpoints,
    stop_seconds=30,
)
