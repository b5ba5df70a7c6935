"""Payloads of devices to Kafka records: JSON by the contract, Avro as it is, anything else raw.

What is neither stays as it came: it is no valid record of its topic, so the topic's readers put it into the quarantine.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import fastavro.schema
import orjson
import pyarrow as pa

from connectors.feed import MAX_RECORD_BYTES, Stream
from schemas.codec.decoder import Decoder
from schemas.keys import record_keys

SINGLE_OBJECT = b"\xc3\x01"


@dataclass(frozen=True, slots=True)
class Message:
    """One publish as received. `session` counts connections: an acknowledgement is good for its own alone."""

    session: int
    id: int
    qos: int
    topic: str
    payload: bytes


@dataclass(frozen=True)
class Records:
    """Kafka records of messages, in their order; `unreadable` of them are raw."""

    keys: pa.BinaryArray
    values: pa.BinaryArray
    unreadable: int


class Translator:
    """Payloads of one contract to Kafka records. Never refuses: what it cannot read stays as it is."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        schema = fastavro.schema.to_parsing_canonical_form(stream.contract.avro)
        fingerprint = fastavro.schema.fingerprint(schema, "CRC-64-AVRO")
        self._single_object = SINGLE_OBJECT + bytes.fromhex(fingerprint)
        self._frame = b"\0" + stream.schema_id.to_bytes(4, "big")
        self._decoder = Decoder(stream.contract.avro)

    def translate(self, messages: Sequence[Message]) -> Records:
        values: list[bytes] = []
        rows: list[tuple[int, Any]] = []
        framed: list[int] = []
        for index, message in enumerate(messages):
            payload = message.payload
            if payload.startswith(self._single_object):
                payload = self._frame + payload[len(self._single_object) :]
            if payload.startswith(self._frame):
                framed.append(index)
            elif payload[:1] != b"\0":
                with suppress(orjson.JSONDecodeError):  # it stays raw, for the quarantine
                    rows.append((index, orjson.loads(payload)))
            values.append(payload)
        keys: list[bytes | None] = [None] * len(values)
        good = self._from_json(rows, keys, values)
        good += self._from_avro(framed, keys, values)
        foreign = sum(1 for value in values if value[:1] == b"\0" and not value.startswith(self._frame))
        for index, value in enumerate(values):
            if len(value) > MAX_RECORD_BYTES:
                values[index], keys[index] = stand_in(value, f"MQTT topic {messages[index].topic}"), None
        return Records(pa.array(keys, pa.binary()), pa.array(values, pa.binary()), len(values) - good - foreign)

    def _from_json(self, rows: list[tuple[int, Any]], keys: list[bytes | None], values: list[bytes]) -> int:
        converted = self.stream.converter.convert([row for _, row in rows])
        if not len(converted.rows):
            return 0
        new_keys, encoded = self.stream.encode(converted.batch)
        for row, key, value in zip(converted.rows.tolist(), new_keys.to_pylist(), encoded.to_pylist(), strict=True):
            index = rows[row][0]
            keys[index], values[index] = key, value
        return len(converted.rows)

    def _from_avro(self, framed: list[int], keys: list[bytes | None], values: list[bytes]) -> int:
        """Keys for messages that are framed already. One of a foreign schema keeps its bytes and has no key."""
        if not framed:
            return 0
        decoded = self._decoder.decode(pa.array([values[index] for index in framed], pa.binary()))
        found = record_keys(decoded.batch, self.stream.contract.key).to_pylist()
        for row, key in zip(decoded.rows.tolist(), found, strict=True):
            keys[framed[row]] = key
        return len(decoded.rows)


def stand_in(payload: bytes, where: str) -> bytes:
    """What goes in place of a payload that no record can hold; not a valid record, so the quarantine takes it."""
    head = payload[:4096].decode("utf-8", "replace")
    return f"{len(payload)} bytes from {where} are too large for a record; they began with: {head}".encode()
