"""The Apache Iceberg sink of Kafka Connect, in a worker of its own, with a JDBC catalog on the stack's Postgres."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from pyiceberg.catalog.sql import SqlCatalog

from benchmarks import tables
from benchmarks.peers import environment
from benchmarks.system import Run, System
from headrace.config import LakeSettings
from headrace.kafka import admin
from stack import jars
from stack.servers.connect import BROKER_ONLY
from stack.servers.kafka import LOGGING

NAME = "Iceberg Kafka Connect sink"
HEAP = "2g"
MAIN = "org.apache.kafka.connect.cli.ConnectStandalone"


def prepare() -> None:
    environment.venv("connect")
    environment.jars("connect")
    jars.fetch_sets(["kafka", "converter"], jars.cache_folder())


def catalog(run: Run) -> str:
    """A name of its own for each run: all are in one database."""
    return f"bench{run.number}"


def group(run: Run) -> str:
    """The consumer group that Connect gives the sink."""
    return f"connect-bench-{run.number}"


def namespace(run: Run) -> str:
    return f"connect{run.number}"


def lake(run: Run) -> LakeSettings:
    url = urlsplit(run.settings.postgres.url)
    return LakeSettings(
        catalog=catalog(run), uri=f"postgresql+psycopg://{url.netloc}{url.path}", warehouse=f"file://{run.folder}/lake"
    )


def worker(run: Run) -> str:
    registry = urlsplit(run.settings.registry.url)
    return "\n".join(
        [
            f"bootstrap.servers={run.settings.kafka.bootstrap_servers}",
            f"offset.storage.file.filename={run.folder}/offsets",
            # A task without new records looks for a commit to take part in this often only: a minute, unless told.
            f"offset.flush.interval.ms={run.commit_seconds * 1000:.0f}",
            f"plugin.path={run.folder}/plugins",
            "listeners=http://127.0.0.1:0",
            "key.converter=org.apache.kafka.connect.converters.ByteArrayConverter",
            "value.converter=io.apicurio.registry.utils.converter.AvroConverter",
            f"value.converter.apicurio.registry.url=http://{registry.netloc}/apis/registry/v2",
            "value.converter.apicurio.registry.find-latest=true",
            "value.converter.apicurio.registry.as-confluent=true",
            "value.converter.apicurio.registry.use-id=contentId",
            "value.converter.apicurio.registry.headers.enabled=false",
            "",
        ]
    )


def connector(run: Run, control: str) -> str:
    url = urlsplit(run.settings.postgres.url)
    password = [f"iceberg.catalog.jdbc.password={url.password}"] if url.password else []
    return "\n".join(
        [
            f"name=bench-{run.number}",
            "connector.class=org.apache.iceberg.connect.IcebergSinkConnector",
            f"tasks.max={run.partitions}",
            f"topics={run.topic}",
            f"iceberg.tables={namespace(run)}.readings",
            "iceberg.tables.auto-create-enabled=true",
            f"iceberg.control.topic={control}",
            f"iceberg.control.commit.interval-ms={run.commit_seconds * 1000:.0f}",
            f"iceberg.catalog={catalog(run)}",
            "iceberg.catalog.type=jdbc",
            f"iceberg.catalog.uri=jdbc:postgresql://{url.hostname}:{url.port}{url.path}",
            f"iceberg.catalog.jdbc.user={url.username}",
            *password,
            "iceberg.catalog.jdbc.schema-version=V1",
            f"iceberg.catalog.warehouse=file://{run.folder}/lake",
            "",
        ]
    )


def command(run: Run) -> list[str]:
    control = f"bench.control_{run.number}"
    admin.ensure_topics(run.settings.kafka, {control: admin.TopicSpec(1)})
    SqlCatalog(catalog(run), uri=lake(run).uri, warehouse=lake(run).warehouse).create_namespace_if_not_exists(
        namespace(run)
    )
    plugins = {"iceberg": environment.jars("connect"), "converter": jars.paths("converter", jars.cache_folder())}
    for plugin, files in plugins.items():
        folder = run.folder / "plugins" / plugin
        folder.mkdir(parents=True)
        for file in files:
            (folder / file.name).symlink_to(file)
    for name, text in (("worker", worker(run)), ("connector", connector(run, control)), ("log4j2", LOGGING)):
        (run.folder / f"{name}.properties").write_text(text)
    classes = [p for p in jars.paths("kafka", jars.cache_folder()) if not p.name.startswith(BROKER_ONLY)]
    java = str(environment.java(environment.venv("connect")))
    logging = f"-Dlog4j2.configurationFile={run.folder}/log4j2.properties"
    told = [f"{run.folder}/{name}.properties" for name in ("worker", "connector")]
    return [java, f"-Xmx{HEAP}", "-XX:+UseG1GC", logging, "-cp", os.pathsep.join(map(str, classes)), MAIN, *told]


def location(run: Run) -> str | None:
    return tables.catalogued(lake(run), f"{namespace(run)}.readings")


APPEND = System(
    NAME,
    command,
    lambda run: tables.total_records(location(run)) >= run.events,
    lambda run: tables.holds_each_once(location(run), run.events, "measured_at"),
    prepare=prepare,
    location=location,
    note="two tasks, commits every 10 s",
)
