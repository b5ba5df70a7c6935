"""Which database a connector reads, as the settings name it."""

from __future__ import annotations

from collections.abc import Mapping

from connectors.binlog import BinlogSource
from connectors.connect import Connector
from connectors.mysql import is_binlog
from connectors.postgres import PostgresSource
from connectors.source import Source
from headrace.config import Settings
from headrace.errors import ConfigError

SIGNAL_TABLE = "signal.data.collection"


def open_source(settings: Settings, config: Mapping[str, str]) -> Source | None:
    """The source of a connector with this configuration; None when the settings name no database for it, or its kind
    is not known here."""
    url = settings.databases.get(config.get("topic.prefix", ""))
    if url is None:
        return None
    if is_binlog(config):
        return BinlogSource(url)
    if not config.get("connector.class", "").endswith(".PostgresConnector"):
        return None
    return PostgresSource(url, config.get("slot.name", "debezium"), config.get("publication.name", "dbz_publication"))


def need_source(settings: Settings, name: str, config: Mapping[str, str]) -> Source:
    """Like `open_source`, but raises `ConfigError` naming the setting that is missing."""
    found = open_source(settings, config)
    if found is None:
        prefix = config.get("topic.prefix", "")
        if prefix in settings.databases:
            raise ConfigError(f"not supported for {config.get('connector.class')}", where=f"connector {name}")
        raise ConfigError("no URL of the source database", where=f"databases.{prefix}", hint="see docs/operations.md")
    return found


def prepare_source(settings: Settings, connector: Connector) -> None:
    """What a connector needs before it starts: its signalling table, where the settings name the database."""
    table, source = connector.config.get(SIGNAL_TABLE), open_source(settings, connector.config)
    if table and source is not None:
        source.prepare_signals(table)
