"""Avro read message by message through fastavro, with a small registry client of its own."""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro
import httpx

from governance.verify.values import Form, reader_of
from headrace.errors import DecodeError, UnavailableError


def readable(schema: Any) -> Any:
    """The schema without decimals that fastavro refuses: PostgreSQL's numeric(2, 4) has more decimals than digits."""
    if isinstance(schema, list):
        return [readable(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("logicalType") == "decimal" and not 0 <= schema.get("scale", 0) <= schema.get("precision", 0):
        schema = {name: value for name, value in schema.items() if name != "logicalType"}
    return {name: readable(value) for name, value in schema.items()}


class Schemas:
    """Writer schemas by id, from the registry."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=10)
        self._parsed: dict[int, Any] = {}
        self._readers: dict[int, Form] = {}

    def parsed(self, schema_id: int) -> Any:
        """Raises `DecodeError` when the registry does not know the id, `UnavailableError` when it does not answer."""
        if schema_id not in self._parsed:
            try:
                answer = self._client.get(f"/schemas/ids/{schema_id}")
            except httpx.TransportError as e:
                raise UnavailableError("the registry cannot be reached", where=str(self._client.base_url)) from e
            if answer.status_code == 404:
                raise DecodeError(f"unknown schema id {schema_id}")
            if answer.status_code != 200:
                raise UnavailableError(f"the registry answered {answer.status_code}", where=f"schema {schema_id}")
            self._parsed[schema_id] = fastavro.parse_schema(readable(json.loads(answer.json()["schema"])))
        return self._parsed[schema_id]

    def decode(self, payload: bytes) -> tuple[Any, Any]:
        """(value, schema) of one Confluent-framed message. Raises `DecodeError` with the reason."""
        if len(payload) < 5 or payload[0] != 0:
            raise DecodeError("not framed")
        schema = self.parsed(int.from_bytes(payload[1:5], "big"))
        body = io.BytesIO(payload[5:])
        try:
            value = fastavro.schemaless_reader(body, schema)
        except Exception as e:  # fastavro raises whatever its reader stumbles over
            raise DecodeError(f"{type(e).__name__}: {e}") from e
        if body.tell() != len(payload) - 5:
            raise DecodeError("trailing bytes")
        return value, schema

    def read(self, payload: bytes) -> tuple[Any, Any]:
        """As `decode`, the value in canonical form."""
        value, schema = self.decode(payload)
        number = int.from_bytes(payload[1:5], "big")
        if number not in self._readers:
            self._readers[number] = reader_of(schema)
        return self._readers[number](value), schema
