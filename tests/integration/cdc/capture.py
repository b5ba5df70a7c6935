"""A database of a test's own, captured by a real Debezium connector and landed by a real sink in this process."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka import KafkaException
from psycopg.conninfo import make_conninfo
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from connectors.connect import Connect, Connector, load_connector
from governance.verify.current import forms_of, read_database
from governance.verify.kafka import KafkaReader
from governance.verify.values import canonical
from headrace.config import Settings
from headrace.process import Lifecycle
from schemas.names import table_name
from sinks.iceberg.catalog import find_table, open_catalog
from tests.integration.sinks.iceberg.shop import made_settings, running

SHOP = Path(__file__).parents[3] / "connectors" / "debezium" / "shop.json"


@dataclass
class Capture:
    """Tables of one schema and what became of them in the lake."""

    name: str
    url: str = field(repr=False)
    settings: Settings
    connector: Connector
    schema: str = "public"
    _catalog: Catalog | None = None

    def configure(self, **changes: str) -> None:
        path = self.connector.path
        path.write_text(json.dumps({"name": self.name, "config": {**self.connector.config, **changes}}))
        self.connector = load_connector(path)

    def execute(self, *statements: str) -> None:
        """Each statement in a transaction of its own."""
        with psycopg.connect(self.url, autocommit=True) as db:
            for statement in statements:
                db.execute(statement)

    def transaction(self, *statements: str) -> None:
        with psycopg.connect(self.url) as db:
            for statement in statements:
                db.execute(statement)

    def topic(self, name: str) -> str:
        return f"{self.name}.{self.schema}.{name}"

    def table_name(self, name: str, layer: str = "silver") -> str:
        return table_name(layer, self.topic(name))

    def table(self, name: str, layer: str = "silver") -> Table | None:
        self._catalog = self._catalog or open_catalog(self.settings.lake)
        return find_table(self._catalog, self.table_name(name, layer))

    def landed(self, name: str, layer: str = "silver") -> list[dict[str, Any]]:
        found = self.table(name, layer)
        return [] if found is None else found.scan().to_arrow().to_pylist()

    def quarantined(self, name: str) -> list[dict[str, Any]]:
        self._catalog = self._catalog or open_catalog(self.settings.lake)
        found = find_table(self._catalog, "ops.quarantine")
        rows = [] if found is None else found.scan().to_arrow().to_pylist()
        return [row for row in rows if row["source_topic"] == self.topic(name)]

    def sent(self, name: str) -> int:
        """How many records its topic has."""
        kafka, topic = KafkaReader(self.settings.kafka), self.topic(name)
        try:
            return sum(kafka.bounds(topic, partition)[1] for partition in range(kafka.topics().get(topic, 0)))
        except KafkaException:  # a topic that is being made has no leader
            return 0

    def difference(self, name: str) -> str | None:
        """What the current state has that the database has not, and the other way; the database's columns count."""
        found = self.table(name)
        if found is None:
            return "there is no table yet"
        arrow = found.scan().to_arrow()
        database = read_database(self.url, self.schema, name)
        forms = forms_of(self.url, database.types, {column.name: column.type for column in arrow.schema})
        if absent := set(forms.types) - set(forms.lake):
            return f"no column {', '.join(sorted(absent))}"
        rows = arrow.select(list(forms.types)).to_pylist()
        want = Counter(repr(forms.expected(row)) for row in database.rows)
        have = Counter(repr(forms.held({c: canonical(v) for c, v in row.items()})) for row in rows)
        if want == have:
            return None
        missing, surplus = ([row[:300] for row in more][:3] for more in (want - have, have - want))
        return f"database only: {missing}; table only: {surplus}"

    async def equal(self, *names: str, seconds: float = 40) -> None:
        """Return once each table's current state is what the database holds."""
        seen: dict[str, tuple[str, str | None]] = {}

        def differs(name: str) -> str | None:
            # Both are read whole: only once the table is another.
            table = self.table(name)
            at = table.metadata_location if table is not None else ""
            if seen.get(name, ("", ""))[0] != at or not at:
                seen[name] = at, self.difference(name)
            return seen[name][1]

        await self.until(lambda: next(((n, d) for n in names if (d := differs(n))), None), seconds)

    async def until(self, wrong: Any, seconds: float = 40) -> None:
        """Return once `wrong()` has nothing to say."""
        deadline = time.monotonic() + seconds
        while (said := await asyncio.to_thread(wrong)) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.3)
        assert not said, f"{said}; quarantined: {[(q['source_topic'], q['reason']) for q in self._refused()][:5]}"

    def _refused(self) -> list[dict[str, Any]]:
        self._catalog = self._catalog or open_catalog(self.settings.lake)
        found = find_table(self._catalog, "ops.quarantine")
        rows = [] if found is None else found.scan().to_arrow().to_pylist()
        return [row for row in rows if row["source_topic"].startswith(self.name)]


@contextmanager
def captured(
    settings: Settings, connect_url: str, folder: Path, *setup: str, sink: dict[str, Any] | None = None, **config: str
) -> Iterator[Capture]:
    """A database made by `setup`, and its connector, not started. `config` is laid over the shop's connector file."""
    name = f"e{uuid.uuid4().hex[:8]}"
    mine = made_settings(settings, folder, name, **(sink or {}))
    source = f"{name}_source"
    url = make_conninfo(settings.postgres.url, dbname=source)
    chosen = json.loads(SHOP.read_text())["config"] | {
        "database.dbname": source,
        "topic.prefix": name,
        "table.include.list": "public[.].*",
        "slot.name": name,
        "publication.name": name,
        "topic.creation.default.partitions": "4",
        "topic.creation.control.include": f"{name}\\.(transaction|notifications|.*_signal),__debezium-heartbeat\\..*",
        "notification.sink.topic.name": f"{name}.notifications",
    }
    file = folder / "connectors" / "debezium" / f"{name}.json"
    file.write_text(json.dumps({"name": name, "config": chosen | config}))
    with psycopg.connect(settings.postgres.url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {source}")
        capture = Capture(name, url, mine.model_copy(update={"databases": {name: url}}), load_connector(file))
        capture.execute(*setup)
        try:
            yield capture
        finally:
            _removed(capture, Connect(connect_url), admin)
            for database in (source, name):
                admin.execute(f'DROP DATABASE "{database}" WITH (FORCE)')


def _removed(capture: Capture, client: Connect, admin: psycopg.Connection) -> None:
    if any(one.name == capture.connector.name for one in client.statuses()):
        client.remove(capture.connector.name)
    slot = capture.connector.config["slot.name"]
    for _ in range(100):
        slots = admin.execute("SELECT active FROM pg_replication_slots WHERE slot_name = %s", (slot,)).fetchall()
        if not slots:
            break
        if slots == [(False,)]:
            admin.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
        time.sleep(0.1)


@asynccontextmanager
async def streaming(capture: Capture, connect_url: str) -> AsyncIterator[Lifecycle]:
    """Connector and sink at work."""
    await asyncio.to_thread(Connect(connect_url).apply, capture.connector)
    async with running(capture.settings) as lifecycle:
        yield lifecycle
