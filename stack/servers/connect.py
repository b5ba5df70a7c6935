"""Kafka Connect, distributed mode, with Debezium and the Avro converter as plugins.

Its REST API is as good as cluster administration: it listens on this machine only, connectors cannot override the
worker's clients, and their files name passwords by environment variable.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit
from zipfile import ZipFile

from stack import jars, probes
from stack.servers import mariadb, postgres
from stack.servers.kafka import LOGGING
from stack.spec import Endpoints, Place, Server

BROKER_ONLY = (
    "caffeine",
    "hash4j",
    "kafka-coordinator-common",
    "kafka-group-coordinator",
    "kafka-metadata",
    "kafka-raft",
    "kafka-share-coordinator",
    "kafka-storage",
    "kafka-transaction-coordinator",
    "kafka_2.13",
    "pcollections",
    "scala-",
)
PLUGINS = ("debezium", "debezium-mariadb", "converter")
CONVERTER = "io.apicurio.registry.utils.converter.AvroConverter"
# Connect's `Struct.get` answers a column's default where the row has null. The converter has a switch against that
# (AvroData.java, as Confluent's `ignore.default.for.nullables`) but no option to set it, so it is set as the class is
# made. Where the switch is missing Byteman only logs it: docs/adr/0017-nulls-kept-by-a-switch.md.
KEEP_NULLS = """\
RULE keep a null in a nullable column that has a default
CLASS io.apicurio.registry.utils.converter.avro.AvroData
METHOD <init>(AvroDataConfig)
AT EXIT
IF TRUE
DO $this.ignoreDefaultForNullables = TRUE
ENDRULE
"""


def _converter(kind: str, registry: str) -> list[str]:
    """The schema id goes into the payload (Confluent framing), never into headers."""
    return [
        f"{kind}.converter={CONVERTER}",
        f"{kind}.converter.apicurio.registry.url={registry}",
        f"{kind}.converter.apicurio.registry.auto-register=true",
        f"{kind}.converter.apicurio.registry.find-latest=true",
        f"{kind}.converter.apicurio.registry.as-confluent=true",
        f"{kind}.converter.apicurio.registry.use-id=contentId",
        f"{kind}.converter.apicurio.registry.headers.enabled=false",
    ]


def _registry(place: Place) -> str:
    if external := place.external.get("registry"):
        parts = urlsplit(external)
        return f"{parts.scheme}://{parts.netloc}/apis/registry/v2"
    return f"http://{place.address('registry')}/apis/registry/v2"


def _brokers(place: Place) -> str:
    return place.external.get("kafka") or place.address("kafka")


def env(place: Place) -> dict[str, str]:
    """What connector files may name as `${env:NAME}`: the databases, and the brokers for a schema history."""
    known = {**postgres.coordinates(place), **mariadb.coordinates(place)}
    return known | {"KAFKA_BOOTSTRAP_SERVERS": _brokers(place)}


def properties(place: Place) -> str:
    registry = _registry(place)
    return "\n".join(
        [
            f"bootstrap.servers={_brokers(place)}",
            "group.id=headrace-connect",
            "config.storage.topic=connect.configs",
            "offset.storage.topic=connect.offsets",
            "status.storage.topic=connect.status",
            "config.storage.replication.factor=1",
            "offset.storage.replication.factor=1",
            "status.storage.replication.factor=1",
            "offset.storage.partitions=4",
            "status.storage.partitions=2",
            "offset.flush.interval.ms=5000",
            "scheduled.rebalance.max.delay.ms=0",
            f"listeners=http://{place.address('connect')}",
            "rest.advertised.host.name=127.0.0.1",
            f"rest.advertised.port={place.ports['connect']}",
            f"plugin.path={place.data('connect') / 'plugins'}",
            # To look into every class takes as long as all the rest of the start.
            "plugin.discovery=service_load",
            "topic.creation.enable=true",
            "connector.client.config.override.policy=None",
            "config.providers=env",
            "config.providers.env.class=org.apache.kafka.common.config.provider.EnvVarConfigProvider",
            "config.providers.env.param.allowlist.pattern=[A-Z0-9_]+_(HOST|PORT|USER|PASSWORD|BOOTSTRAP_SERVERS)",
            *_converter("key", registry),
            *_converter("value", registry),
            "producer.compression.type=lz4",
            "producer.linger.ms=20",
            "producer.batch.size=524288",
            "producer.max.request.size=16777216",
            "",
        ]
    )


def prepare(place: Place) -> None:
    folder = place.data("connect")
    (folder / "log4j2.properties").write_text(LOGGING)
    (folder / "connect.properties").write_text(properties(place))
    (folder / "nulls.btm").write_text(KEEP_NULLS)
    for plugin in PLUGINS:
        target = folder / "plugins" / plugin
        target.mkdir(parents=True, exist_ok=True)
        wanted = {path.name: path for path in jars.paths(plugin, place.cache)}
        for old in target.iterdir():
            if old.name not in wanted or not old.exists():
                old.unlink()
        for name, path in wanted.items():
            if not (target / name).exists():
                (target / name).symlink_to(path)
    # Apicurio's jar does not say what it has, as `connect-plugin-path` of Kafka would mend it.
    with ZipFile(folder / "plugins" / "converter" / "services.jar", "w") as jar:
        jar.writestr("META-INF/services/org.apache.kafka.connect.storage.Converter", CONVERTER)


def class_path(place: Place) -> str:
    """Kafka's files less the broker's: Connect looks for plugins in every class that it is given."""
    files = [path for path in jars.paths("kafka", place.cache) if not path.name.startswith(BROKER_ONLY)]
    return os.pathsep.join(map(str, files))


def command(place: Place) -> list[str]:
    folder = place.data("connect")
    (byteman,) = jars.paths("byteman", place.cache)
    agent = f"-javaagent:{byteman}=script:{folder / 'nulls.btm'}"
    start = place.java("connect", "512m", agent, f"-Dlog4j2.configurationFile={folder / 'log4j2.properties'}")
    main = "org.apache.kafka.connect.cli.ConnectDistributed"
    return [*start, "-cp", class_path(place), main, str(folder / "connect.properties")]


def endpoints(place: Place) -> Endpoints:
    return {"connect": {"url": f"http://{place.address('connect')}"}}


SERVER = Server(
    name="connect",
    setting="connect.url",
    ports={"connect": 8083},
    after=("kafka",),
    early=True,  # its plugin scan takes longer than Kafka takes to start
    jars=("kafka", *PLUGINS, "byteman"),
    env=env,
    reserves=("mariadb",),  # so that it need not be restarted when one is added
    prepare=prepare,
    command=command,
    health=lambda place: probes.http_ok(place.ports["connect"], "/connectors"),
    endpoints=endpoints,
)
