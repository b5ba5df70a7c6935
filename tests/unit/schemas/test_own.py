from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from headrace.errors import ContractError
from schemas.codec import ChunkDecoder
from schemas.own import full_name, own_schemas
from tests.unit.schemas.debezium import ENVELOPE

PLAIN: dict[str, Any] = {"type": "record", "name": "Reading", "fields": [{"name": "id", "type": "long"}]}
TOPIC = full_name(ENVELOPE).rpartition(".")[0]


def of(topic: str, schema: dict[str, Any], **options: bool) -> dict[str, Any]:
    return own_schemas(topic, lambda _: schema, **options)(1)


def test_change_events_are_those_of_the_topic() -> None:
    assert of(TOPIC, ENVELOPE) == of(TOPIC, ENVELOPE, captured=True) == ENVELOPE
    with pytest.raises(ContractError, match="Envelope is not of this topic"):
        of("shop.public.customers", ENVELOPE)


def test_other_records_are_anywhere_but_in_a_captured_topic() -> None:
    assert of("readings", PLAIN) == PLAIN
    with pytest.raises(ContractError, match="Reading is not of this topic"):
        of(TOPIC, PLAIN, captured=True)
    with pytest.raises(ContractError, match="it has no name"):
        of(TOPIC, {"type": "string"}, captured=True)


def test_a_record_under_a_schema_of_another_table_is_bad_and_lends_no_columns() -> None:
    decoder = ChunkDecoder(own_schemas("shop.public.customers", lambda _: ENVELOPE))
    decoded = decoder.decode(pa.array([b"\0\0\0\0\x01xyz"], pa.binary()))
    assert (len(decoded.rows), len(decoded.bad), decoded.batch.schema.names) == (0, 1, [])
    assert decoded.reasons == [f"unsupported schema: 1, {full_name(ENVELOPE)} is not of this topic"]
