"""The databases that are captured in the kill matrix: how each is reached, and what it says in its own words."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import psycopg
import pymysql

from headrace import mysql
from headrace.errors import UnavailableError


@dataclass(frozen=True)
class Engine:
    """`server` is its name in the stack, `connect` opens a session by URL that is not in autocommit, and `away` is what
    that raises while the server is. `streams` tells by a connector's offset that its snapshot is over."""

    server: str
    connect: Callable[[str], Any]
    away: tuple[type[Exception], ...]
    streams: Callable[[Mapping[str, Any]], bool]
    drop_key: str
    prepare: tuple[str, ...]
    config: Mapping[str, str]

    def connector_file(self, course: str) -> str:
        """The connector of one course, which has its schema, its topic prefix and its name."""
        return json.dumps({"name": "course", "config": {**CONFIG, **self.config}}).replace("course", course)


# `course` stands for the course's name.
CONFIG = {
    "topic.prefix": "course",
    "table.include.list": "course.goods,course.moved",
    "provide.transaction.metadata": "true",
    "skipped.operations": "none",
    "heartbeat.interval.ms": "5000",
    "signal.data.collection": "course.headrace_signal",
    "incremental.snapshot.chunk.size": "1024",
    "incremental.snapshot.watermarking.strategy": "insert_delete",
    "notification.enabled.channels": "sink",
    "notification.sink.topic.name": "course.notifications",
    "topic.creation.default.partitions": "2",
    "topic.creation.default.replication.factor": "1",
    "topic.creation.groups": "single",
    "topic.creation.single.include": "course\\.(transaction|notifications|course\\.(moved|headrace_signal))",
    "topic.creation.single.partitions": "1",
    "topic.creation.single.replication.factor": "1",
}

POSTGRESQL = Engine(
    "postgres",
    partial(psycopg.connect, connect_timeout=5),
    (psycopg.OperationalError,),
    lambda offset: "lsn_proc" in offset,
    "DROP CONSTRAINT moved_pkey",
    ("ALTER TABLE {}.moved REPLICA IDENTITY FULL", "ANALYZE"),
    {
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "database.hostname": "${env:POSTGRES_HOST}",
        "database.port": "${env:POSTGRES_PORT}",
        "database.user": "${env:POSTGRES_USER}",
        "database.password": "${env:POSTGRES_PASSWORD}",
        "database.dbname": "kill",
        "plugin.name": "pgoutput",
        "slot.name": "course",
        "publication.name": "course",
        "publication.autocreate.mode": "filtered",
    },
)

MARIADB = Engine(
    "mariadb",
    mysql.connect,
    (pymysql.OperationalError, pymysql.InterfaceError, UnavailableError),
    lambda offset: "file" in offset and "snapshot" not in offset,
    "DROP PRIMARY KEY",
    (),
    {
        "connector.class": "io.debezium.connector.mariadb.MariaDbConnector",
        "database.hostname": "${env:MARIADB_HOST}",
        "database.port": "${env:MARIADB_PORT}",
        "database.user": "${env:MARIADB_USER}",
        "database.password": "${env:MARIADB_PASSWORD}",
        "database.server.id": "5502",
        "database.include.list": "course",
        "include.schema.changes": "false",
        "connect.keep.alive.interval.ms": "5000",
        "schema.history.internal.kafka.bootstrap.servers": "${env:KAFKA_BOOTSTRAP_SERVERS}",
        "schema.history.internal.kafka.topic": "course.schema-history",
        "schema.history.internal.store.only.captured.tables.ddl": "true",
    },
)
