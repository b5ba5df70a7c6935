from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastavro
import orjson
import pytest

from connectors.convert import JsonConverter
from connectors.feed import MAX_RECORD_BYTES, Stream
from connectors.mqtt import contract_of, routes
from connectors.payloads import SINGLE_OBJECT, Message, Translator
from headrace.errors import ConfigError, ContractError
from schemas.codec.encoder import Encoder
from schemas.contracts import Contract, ContractSet, load_contract, load_contracts

ROOT = Path(__file__).parents[3]
READING = load_contract(ROOT / "schemas" / "contracts" / "reading.avsc")
GOOD = {
    "device_id": "fr-0001",
    "seq": 1,
    "measured_at": 1700000000000,
    "temperature": 4.5,
    "door_open": False,
    "battery": 90,
}


@pytest.fixture(scope="module")
def translator() -> Translator:
    return Translator(Stream(READING, 7, Encoder(READING.avro, 7), JsonConverter(READING.avro)))


def avro() -> bytes:
    out = io.BytesIO()
    row: dict[str, Any] = GOOD | {"measured_at": 1700000000000000, "humidity": None}
    fastavro.schemaless_writer(out, fastavro.parse_schema(READING.avro), row)
    return out.getvalue()


def test_every_payload_becomes_one_record_in_order(translator: Translator) -> None:
    fingerprint = fastavro.schema.fingerprint(
        fastavro.schema.to_parsing_canonical_form(fastavro.parse_schema(READING.avro)), "CRC-64-AVRO"
    )
    framed = b"\0\0\0\0\x07" + avro()
    payloads = [
        orjson.dumps(GOOD),
        b'{"device_id": "fr-0',
        framed,
        SINGLE_OBJECT + bytes.fromhex(fingerprint) + avro(),
        orjson.dumps(GOOD | {"temperature": "warm"}),
        b"\0\0\0\0\x63" + b"other schema",
        b"",
        framed[:-1],
        b"x" * (MAX_RECORD_BYTES + 1),
    ]
    found = translator.translate([Message(1, i, 1, "t", payload) for i, payload in enumerate(payloads)])
    key = b"fr-0001"
    assert found.keys.to_pylist() == [key, None, key, key, None, None, None, None, None]
    values = found.values.to_pylist()
    assert values[0] == values[2] == values[3] == framed
    assert [values[i] for i in (1, 4, 5, 6, 7)] == [payloads[i] for i in (1, 4, 5, 6, 7)]
    assert values[8].startswith(b"1000001 bytes from MQTT topic t are too large")
    assert len(values[8]) < 5000
    assert found.unreadable == 5


def test_routes_come_from_contracts_and_settings() -> None:
    contracts = load_contracts([ROOT])
    assert {one: c.name for one, c in routes(contracts, {}).items()} == {"coldchain/+/reading": "Reading"}
    assert set(routes(contracts, {"site/#": "Reading"})) == {"coldchain/+/reading", "site/#"}
    for configured, error in (
        ({"a/b": "Nothing"}, ConfigError),
        ({"a/#/b": "Reading"}, ContractError),
        ({"a+": "Reading"}, ContractError),
        ({"": "Reading"}, ContractError),
        ({"a": "Order"}, ContractError),
        ({"a": "CleanReading"}, ContractError),
    ):
        with pytest.raises(error):
            routes(contracts, configured)


def test_one_filter_of_two_contracts_is_refused() -> None:
    def named(name: str) -> Contract:
        return replace(READING, name=name, topic=name, avro=json.loads(json.dumps(READING.avro)))

    both = {name: named(name) for name in ("A", "B")}
    with pytest.raises(ContractError):
        routes(ContractSet(both, both), {})


def test_the_most_exact_filter_takes_a_topic() -> None:
    filters = ["a/#", "a/+/c", "a/b/c", "+/b/+"]
    assert contract_of("a/b/c", filters) == "a/b/c"
    assert contract_of("a/x/c", filters) == "a/+/c"
    assert contract_of("a/x", filters) == "a/#"
    assert contract_of("z", filters) is None
