from __future__ import annotations

from copy import deepcopy
from typing import Any

import pyarrow as pa
import pytest

from headrace.errors import ContractError
from schemas.codec import ChunkDecoder
from schemas.own import flaw_of, full_name, own_schemas
from tests.unit.schemas.debezium import ENVELOPE

PLAIN: dict[str, Any] = {"type": "record", "name": "Reading", "fields": [{"name": "id", "type": "long"}]}
BLOCK = {"type": "record", "name": "block", "namespace": "event", "fields": [{"name": "total_order", "type": "long"}]}
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


def having(*changes: tuple[str, Any]) -> dict[str, Any]:
    """The envelope with some fields of other types, given by their paths, or without them."""
    schema: dict[str, Any] = deepcopy(ENVELOPE)
    for path, avro in changes:
        *above, name = path.split(".")
        fields = schema["fields"]
        for part in above:
            kind = next(field["type"] for field in fields if field["name"] == part)
            fields = (kind[-1] if isinstance(kind, list) else kind)["fields"]
        fields[:] = [field for field in fields if field["name"] != name]
        if avro is not None:
            fields.append({"name": name, "type": deepcopy(avro)})
    return schema


@pytest.mark.parametrize(
    ("changed", "flaw"),
    [
        ((), ""),
        ((("transaction", None),), ""),
        ((("op", {"type": "enum", "name": "Op", "symbols": ["c"]}),), ""),
        ((("source.ts_us", ["null", "long"]), ("ts_ms", "long")), ""),
        ((("op", None),), "it has no op"),
        ((("op", "int"),), "op is int"),
        ((("op", ["null", "string", "int"]),), "op is None"),
        ((("before", ["null", "string"]), ("after", ["null", "string"])), "before is no record"),
        ((("after", ["null", "string"]),), "after is not the record that before is"),
        ((("source", "string"),), "source is no record"),
        ((("source.lsn", ["null", "string"]),), "source.lsn is string"),
        ((("source.table", "bytes"),), "source.table is bytes"),
        ((("source.pos", "double"),), "source.pos is double"),
        ((("ts_ms", ["null", "string"]),), "ts_ms is string"),
        ((("transaction", ["null", "string"]),), "transaction is no record"),
        (
            (("transaction", ["null", BLOCK]), ("transaction.total_order", "string")),
            "transaction.total_order is string",
        ),
        ((("transaction", ["null", BLOCK]),), ""),
    ],
)
def test_change_events_have_the_types_that_debezium_gives_them(changed: Any, flaw: str) -> None:
    schema = having(*changed)
    assert flaw_of(schema) == flaw
    if flaw:
        with pytest.raises(ContractError, match=f"Envelope is not the schema of change events: {flaw}"):
            of(TOPIC, schema, captured=True)
    else:
        assert of(TOPIC, schema, captured=True) == schema


def test_each_field_that_is_read_of_a_change_is_looked_at() -> None:
    source = "snapshot db schema table sequence file gtid ts_ms ts_us ts_ns txId lsn pos row"
    for path in ("op", "ts_ms", "ts_us", "ts_ns", *(f"source.{name}" for name in source.split())):
        assert flaw_of(having((path, "boolean"))) == f"{path} is boolean"
    for path in ("transaction.id", "transaction.total_order"):
        assert flaw_of(having(("transaction", ["null", BLOCK]), (path, "boolean"))) == f"{path} is boolean"
    for name in ("before", "after", "source", "op"):
        assert flaw_of(having((name, None))) == f"it has no {name}"


@pytest.mark.parametrize(
    ("after", "flaw"),
    [
        ("Value", ""),
        (f"{TOPIC}.Value", ""),
        (PLAIN, ""),
        ("shop.public.others.Value", "after is not the record that before is"),
    ],
)
def test_the_row_after_is_named_with_its_namespace_or_without_or_described_anew(after: Any, flaw: str) -> None:
    before = PLAIN | {"name": "Value", "namespace": TOPIC}
    assert flaw_of(having(("before", ["null", before]), ("after", ["null", after]))) == flaw


@pytest.mark.parametrize("before", ["Value", f"{TOPIC}.Value"])
@pytest.mark.parametrize("after", ["Value", f"{TOPIC}.Value"])
def test_the_row_may_have_the_namespace_of_its_envelope(before: str, after: str) -> None:
    assert flaw_of(having(("before", ["null", PLAIN | {"name": before}]), ("after", ["null", after]))) == ""


def test_an_id_that_comes_to_mean_another_schema_is_looked_at_anew() -> None:
    meant = {1: ENVELOPE}
    own = own_schemas(TOPIC, meant.__getitem__, captured=True)
    assert own(1) is own(1) is ENVELOPE
    meant[1] = having(("op", "int"))
    with pytest.raises(ContractError, match="op is int"):
        own(1)
    meant[1] = having()
    assert own(1) is meant[1]


def test_records_of_the_topics_own_namespace_that_are_no_changes_are_refused() -> None:
    space, _, _ = full_name(ENVELOPE).rpartition(".")
    for name in ("Key", "Value"):
        with pytest.raises(ContractError, match=f"{name} is not the schema of change events: it has no after"):
            of(TOPIC, PLAIN | {"name": name, "namespace": space}, captured=True)
    with pytest.raises(ContractError, match="it has no after"):
        of(TOPIC, {"type": "string", "name": f"{space}.Text"}, captured=True)
