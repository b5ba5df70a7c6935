from __future__ import annotations

import uuid
from pathlib import Path

import pyarrow as pa
import pytest

from headrace.errors import ContractError, SchemaNotFoundError
from schemas.codec import ChunkDecoder, Encoder
from schemas.registry import Registry


def test_a_real_registry_from_registration_to_records(registry_url: str, tmp_path: Path) -> None:
    client = Registry(registry_url, tmp_path)
    subject = f"codec-{uuid.uuid4().hex}-value"
    name = f"R{uuid.uuid4().hex}"
    first = {"type": "record", "name": name, "fields": [{"name": "x", "type": "int"}]}
    wider = {**first, "fields": [*first["fields"], {"name": "y", "type": ["null", "string"], "default": None}]}
    broken = {**first, "fields": [{"name": "x", "type": "string"}]}

    assert client.versions(subject) == []
    assert client.compatible(subject, first)
    with pytest.raises(SchemaNotFoundError):
        client.latest(subject)

    old = client.register(subject, first)
    assert client.register(subject, first) == old
    assert client.compatible(subject, wider)
    assert not client.compatible(subject, broken)
    new = client.register(subject, wider)
    assert client.versions(subject) == [1, 2]
    assert client.latest(subject).id == new
    assert client.latest(subject).schema == wider
    assert client.version(subject, 1).schema == first
    assert subject in client.subjects()
    with pytest.raises(ContractError, match="refused"):
        client.register(subject, {"type": "recrd"})

    messages = [
        *Encoder(first, old).encode(pa.RecordBatch.from_pydict({"x": [1]})),
        *Encoder(wider, new).encode(pa.RecordBatch.from_pydict({"x": [2], "y": ["b"]})),
        pa.scalar(b"\0\x7f\xff\xff\xff", pa.binary()),
    ]
    decoded = ChunkDecoder(Registry(registry_url, tmp_path).schema).decode(pa.array(messages, pa.binary()))
    assert decoded.batch.to_pylist() == [{"x": 1, "y": None}, {"x": 2, "y": "b"}]
    assert decoded.reasons == ["unknown schema id: 2147483647"]
