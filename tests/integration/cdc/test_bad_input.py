"""What others write into a captured table's topic, beside Debezium, changes nothing in its tables."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fastavro
from confluent_kafka import Producer

from governance.verify.avro import Schemas
from governance.verify.current import check_current
from governance.verify.kafka import KafkaReader, Record
from governance.verify.lake import Lake
from governance.verify.landed import check_bronze
from governance.verify.ledger import Ledger
from headrace.config import Settings
from schemas.names import table_name
from schemas.registry import Registry
from tests.integration.cdc.capture import Capture, captured, streaming
from tests.integration.sinks.iceberg.shop import Proxy

SETUP = (
    # Rows of both are encoded alike.
    "CREATE TABLE things (id int PRIMARY KEY, name text)",
    "CREATE TABLE others (id int PRIMARY KEY, title text)",
    "INSERT INTO things SELECT g, 'n' || g FROM generate_series(1, 40) g",
    "INSERT INTO others SELECT g, 't' || g FROM generate_series(1, 40) g",
)
TABLES = ("things", "others")
FAR = 10**17


class Forger:
    """Writes to the topic of `things` what resembles the last change of its row 1, and remembers what is to become of
    it: the rules that each layer refuses it by."""

    def __init__(self, capture: Capture, registry: str) -> None:
        self._registry = registry
        self.topic = capture.topic("things")
        self.kafka, self.schemas = KafkaReader(capture.settings.kafka), Schemas(self._registry)
        self._producer = Producer({"bootstrap.servers": capture.settings.kafka.bootstrap_servers})
        self.expected: set[tuple[int, int, str, str]] = set()
        self.real = self.last(self.topic, "things")
        self.other = self.last(capture.topic("others"), "others")

    def last(self, topic: str, table: str) -> Record:
        found = [
            record
            for partition in range(self.kafka.topics()[topic])
            for record in self.kafka.read(topic, partition, *self.kafka.bounds(topic, partition))
            if record.value is not None and self.schemas.decode(record.value)[0]["after"]["id"] == 1
        ]
        assert found, f"row 1 of {table} has changed"
        return found[-1]

    def send(self, key: bytes | None, value: bytes | None, **rules: str) -> None:
        placed: list[Any] = []
        self._producer.produce(
            self.topic, key=key, value=value, partition=self.real.partition, on_delivery=lambda e, m: placed.append(m)
        )
        assert self._producer.flush(20) == 0
        self.expected |= {(self.real.partition, placed[0].offset(), stage, rule) for stage, rule in rules.items()}

    def change(self, name: str, position: int, later_ms: int = 0, table: str = "things") -> bytes:
        """An update of row 1 at a place in the log, so much later than the real one."""
        assert self.real.value is not None
        event, written = self.schemas.decode(self.real.value)
        event["after"]["name"] = name
        event["source"] |= {"sequence": json.dumps([str(position)] * 2), "lsn": position}
        event["source"]["ts_ms"] += later_ms
        event["source"]["table"] = table
        body = io.BytesIO()
        fastavro.schemaless_writer(body, written, event)
        return self.real.value[:5] + body.getvalue()

    def key(self, kind: str, value: Any) -> bytes:
        """The key of row 1 as another type, under the name that Debezium's has."""
        schema = {"type": "record", "name": "Key", "namespace": self.topic, "fields": [{"name": "id", "type": kind}]}
        registry = Registry(self._registry)
        number = registry.register(f"{self.topic}-forged-{kind}", schema)
        registry.close()
        body = io.BytesIO()
        fastavro.schemaless_writer(body, fastavro.parse_schema(schema), {"id": value})
        return b"\0" + number.to_bytes(4, "big") + body.getvalue()


async def test_what_others_write_into_a_captured_topic_is_quarantined_and_changes_nothing(
    settings: Settings, connect_url: str, tmp_path: Path
) -> None:
    address = urlsplit(settings.registry.url)
    async with Proxy(address.port or 80) as proxy:
        with captured(settings, connect_url, tmp_path, *SETUP) as capture:
            through = settings.registry.url.replace(address.netloc, f"127.0.0.1:{proxy.port}")
            mine = capture.settings
            capture.settings = mine.model_copy(update={"registry": mine.registry.model_copy(update={"url": through})})
            async with streaming(capture, connect_url) as lifecycle:
                await capture.equal(*TABLES)
                for table, column in (("things", "name"), ("others", "title")):
                    capture.execute(f"UPDATE {table} SET {column} = 'real' WHERE id = 1")
                await capture.equal(*TABLES)
                columns = [_columns(capture, layer) for layer in ("silver", "bronze")]
                forger = Forger(capture, settings.registry.url)
                forge(forger, capture)
                capture.execute("UPDATE things SET name = name || '!'", "DELETE FROM things WHERE id = 40")
                await capture.until(lambda: forger.expected - _refused(capture) or None)
                await capture.equal(*TABLES)
                assert [_columns(capture, layer) for layer in ("silver", "bronze")] == columns
                assert _refused(capture) == forger.expected
                assert all(entry["reason"] and entry["value"] for entry in capture.quarantined("things"))

                # The registry is away: what is written under a schema that only it knows waits, and nothing else.
                proxy.set("refuse")
                capture.execute("ALTER TABLE things ADD COLUMN n int", "UPDATE things SET n = id WHERE id < 9")
                capture.execute("UPDATE others SET title = 'meanwhile'")
                await capture.equal("others")
                await capture.until(lambda: "registry" not in str(lifecycle.problems()) and "it does not wait")
                proxy.set("pass")
                await capture.equal(*TABLES)
                assert _refused(capture) == forger.expected
                await capture.until(lambda: lifecycle.problems() or None)
            assert check(forger, capture) == ([], [])


def forge(forger: Forger, capture: Capture) -> None:
    real, other = forger.real, forger.other
    assert real.value is not None
    assert other.value is not None
    newer, lower = forger.change("forged", FAR), forger.change("forged", 1, later_ms=600_000)
    forger.send(real.key, b"no framing", bronze="not framed")
    forger.send(real.key, b"\0\x7f\xff\xff\xff" + newer[5:], bronze="unknown schema id")
    forger.send(real.key, newer[:-1], bronze="truncated")
    forger.send(real.key, newer + b"\0", bronze="trailing bytes")
    forger.send(real.key, other.value[:5] + newer[5:], bronze="unsupported schema")
    capture.execute("UPDATE things SET name = 'between' WHERE id BETWEEN 2 AND 20")
    forger.send(other.key, other.value, bronze="unsupported schema")
    forger.send(real.key, other.value[:5] + b"\0", bronze="unsupported schema")
    forger.send(real.key, forger.change("forged", FAR, table="others"), current="source table")
    forger.send(None, newer, current="key")
    forger.send(b"1", newer, current="key")
    forger.send(forger.key("string", "1"), newer, current="key")
    forger.send(forger.key("long", 1), newer, current="key")
    forger.send(real.key, real.value)
    forger.send(real.key, forger.change("forged", 1))
    forger.send(real.key, lower, current="position: another log")
    forger.send(real.key, None)


def check(forger: Forger, capture: Capture) -> tuple[list[str], list[str]]:
    """What `headrace verify` finds wrong in bronze and in the current state."""
    lake, kafka, schemas = Lake(capture.settings.lake), forger.kafka, forger.schemas
    bronze, silver = (lake.table(table_name(layer, forger.topic)) for layer in ("bronze", "silver"))
    assert bronze is not None
    assert silver is not None
    ledger = Ledger(kafka, schemas)
    landed = check_bronze(kafka, schemas, lake, ledger, forger.topic, 4, bronze)
    state = check_current(kafka, schemas, lake, forger.topic, 4, silver, capture.url, patience=20)
    return landed.offences, state.offences


def _columns(capture: Capture, layer: str) -> str:
    found = capture.table("things", layer)
    assert found is not None
    return str(found.schema())


def _refused(capture: Capture) -> set[tuple[int, int, str, str]]:
    return {
        (entry["source_partition"], entry["source_offset"], entry["stage"], entry["rule"])
        for entry in capture.quarantined("things")
    }
