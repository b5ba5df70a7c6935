"""What a connector file for MariaDB or MySQL must say beside what every connector's must, and its server log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from headrace.errors import ContractError
from headrace.mysql import require_row_log

CLASSES = ("io.debezium.connector.mariadb.", "io.debezium.connector.mysql.")
HISTORY = "schema.history.internal.kafka."


def is_binlog(config: Mapping[str, str]) -> bool:
    return config.get("connector.class", "").startswith(CLASSES)


def check_file(config: Mapping[str, str], path: Path) -> None:
    """Raise `ContractError` naming the field with which changes would be lost, or the connector fail later."""
    for key, hint in (
        ("topic", "a topic of this connector's own, such as <topic.prefix>.schema-history"),
        ("bootstrap.servers", "${env:KAFKA_BOOTSTRAP_SERVERS}"),
    ):
        if not config.get(HISTORY + key):
            raise ContractError(
                "is missing: the connector keeps there how its tables were defined, to read older parts of the log",
                where=f"{path}:{HISTORY}{key}",
                hint=hint,
            )


def check_server(config: Mapping[str, str], databases: Mapping[str, str]) -> None:
    """Ask the server that `databases` names for the connector's prefix, if it does, about its binary log.

    Raises what `require_row_log` raises.
    """
    url = databases.get(config.get("topic.prefix", ""))
    if is_binlog(config) and url is not None:
        require_row_log(url)
