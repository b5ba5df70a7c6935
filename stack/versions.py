"""Versions of the servers, in one place: the jar lock, the wheels and docker-compose.yml must agree with it."""

from __future__ import annotations

KAFKA = "4.3.1"
LOG4J = "2.24.3"
DEBEZIUM = "3.6.1.Final"
DEBEZIUM_MARIADB = "3.5.0.Final"  # the newest that Maven Central serves whole
REGISTRY = "3.3.3"
CONVERTER = "2.6.13.Final"
BYTEMAN = "4.0.27"
POSTGRES = "16.14"
CONTRIB = "16.4.0"
MARIADB = "11.4.5"
REDIS = "6.2.14"
ARTEMIS = "2.44.0"
SEAWEEDFS = "4.48"
