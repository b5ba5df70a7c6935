"""Apicurio Registry with its schemas in Postgres: ids outlive any crash of it."""

from __future__ import annotations

from stack import jars, probes
from stack.servers import postgres
from stack.spec import Endpoints, Place, Server


def env(place: Place) -> dict[str, str]:
    at = postgres.coordinates(place)
    return {
        "APICURIO_STORAGE_KIND": "sql",
        "APICURIO_STORAGE_SQL_KIND": "postgresql",
        "APICURIO_DATASOURCE_URL": f"jdbc:postgresql://{at['POSTGRES_HOST']}:{at['POSTGRES_PORT']}/registry",
        "APICURIO_DATASOURCE_USERNAME": at["POSTGRES_USER"],
        "APICURIO_DATASOURCE_PASSWORD": at["POSTGRES_PASSWORD"],
        "QUARKUS_HTTP_HOST": "127.0.0.1",
        "QUARKUS_HTTP_PORT": str(place.ports["registry"]),
        "QUARKUS_MANAGEMENT_HOST": "127.0.0.1",
        "QUARKUS_MANAGEMENT_PORT": str(place.ports["registry-management"]),
        "QUARKUS_LOG_LEVEL": "WARN",
        "APICURIO_LOG_LEVEL": "WARN",
        "QUARKUS_BANNER_ENABLED": "false",
    }


def prepare(place: Place) -> None:
    jars.unpacked("registry", place.cache)


def command(place: Place) -> list[str]:
    app = jars.unpacked("registry", place.cache) / "quarkus-run.jar"
    return [*place.java("registry", "256m", "-XX:TieredStopAtLevel=1"), "-jar", str(app)]


def endpoints(place: Place) -> Endpoints:
    return {"registry": {"url": f"http://{place.address('registry')}/apis/ccompat/v7"}}


SERVER = Server(
    name="registry",
    setting="registry.url",
    ports={"registry": 8081, "registry-management": 9000},
    after=("postgres",),
    jars=("registry",),
    env=env,
    prepare=prepare,
    command=command,
    health=lambda place: probes.http_ok(place.ports["registry"], "/apis/ccompat/v7/subjects"),
    endpoints=endpoints,
)
