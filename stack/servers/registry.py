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
    }


def prepare(place: Place) -> None:
    jars.unpacked("registry", place.cache)


def command(place: Place) -> list[str]:
    app = jars.unpacked("registry", place.cache) / "quarkus-run.jar"
    options = {
        "quarkus.http.host": "127.0.0.1",
        "quarkus.http.port": place.ports["registry"],
        "quarkus.http.access-log.enabled": "false",
        "quarkus.management.host": "127.0.0.1",
        "quarkus.management.port": place.ports["registry-management"],
        "quarkus.banner.enabled": "false",
        'quarkus.log.category."io.apicurio".level': "WARN",
        "apicurio.import.work-dir": place.data("registry"),
    }
    settings = [f"-D{key}={value}" for key, value in options.items()]
    return [*place.java("registry", "256m", "-XX:TieredStopAtLevel=1"), *settings, "-jar", str(app)]


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
